"""Relation extraction on KLUE-RE: fine-tune a model, evaluate it, compare several, use one; list the public models with a short name.

    python trainer/klue_re.py train --model run/model --train-file klue-re-v1.1_train.json --eval-file klue-re-v1.1_dev.json --output-dir D
    python trainer/klue_re.py eval --model D --data klue-re-v1.1_dev.json --report R.json --predictions P.jsonl
    python trainer/klue_re.py compare --model xpt=run/model --model seed=SEED --train-file F --eval-file F --seeds 0 1 2 --output-dir D
    python trainer/klue_re.py predict --model D --sentence 김철수는서울에서태어났다. --subject 김철수 --object 서울
    python trainer/klue_re.py models --scope korean --runnable

Runs on a GPU where there is one, else on the CPU (OMP_NUM_THREADS sets the threads). A train or compare that was interrupted goes
on where it was when the same command is given again.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from data_tools.errors import RunError, UserError, first_line, run_command
from trainer.catalogue import SCOPES, STRUCTURES, as_csv, as_markdown, as_text, read_models, resolve_model, resolve_named, select
from trainer.settings import CONFLICTS, DEFAULTS, HEADS, INPUT_FORMATS, Settings, load_recipe


def main() -> None:
    arguments = _parse()
    if arguments.command == "models":
        _print_models(arguments)
        return
    if arguments.command == "train":
        arguments.model = resolve_model(arguments.model)
    elif arguments.command == "compare":
        arguments.model = [resolve_named(model) for model in arguments.model]
    # After parsing, so that --help and mistakes answer at once: these take seconds to import.
    from trainer.accelerator import refuse_unseen_gpus, repeat_exactly
    from trainer.classifier import quiet_transformers
    from trainer.comparison import compare, named_models
    from trainer.evaluation import evaluate, summary
    from trainer.finetune import train
    from trainer.memory import keep_freed_memory

    refuse_unseen_gpus()
    keep_freed_memory()
    repeat_exactly()
    quiet_transformers()
    if arguments.command == "eval":
        print(summary(evaluate(arguments.model, arguments.data, arguments.report, arguments.predictions, arguments.html)))
        return
    if arguments.command == "predict":
        _print_triples(arguments)
        return
    given = {name: getattr(arguments, name) for name in DEFAULTS if hasattr(arguments, name)}  # flags come before the recipe
    recipe = {**(load_recipe(arguments.recipe) if arguments.recipe else {}), **given}
    files = {"train_file": arguments.train_file, "eval_file": arguments.eval_file}
    if arguments.command == "train":
        train(Settings(model=arguments.model, output_dir=arguments.output_dir, seed=arguments.seed, **files, **recipe))
    else:
        print(compare(named_models(arguments.model), arguments.seeds, arguments.output_dir, files | recipe, arguments.both_conflicts))


def _print_triples(arguments: argparse.Namespace) -> None:
    from trainer.classifier import load_classifier, pick_device
    from trainer.relations import read_relations
    from trainer.triples import one_row, read_triples

    words = (arguments.sentence, arguments.subject, arguments.object)
    if arguments.data is None and None in words:
        raise UserError("expected --data FILE, or --sentence, --subject and --object together")
    if arguments.data is not None and any((*words, arguments.types)):
        raise UserError("expected --data FILE alone, or --sentence, --subject and --object without it, found both; leave one out")
    rows = (
        [one_row(*words, arguments.types or ("PER", "ORG"))] if arguments.data is None else read_relations(arguments.data, labelled=False)
    )
    classifier = load_classifier(arguments.model)
    if arguments.data is None and arguments.types is None and classifier.input_format.startswith("typed"):
        raise UserError(f"--types: the model reads the entities' types (format {classifier.input_format}); give them, such as PER LOC")
    classifier.model.to(pick_device())  # type: ignore[arg-type]
    for triples in read_triples(classifier, rows, str(arguments.data or "--sentence"), arguments.top):
        for triple in triples:
            print(f"({triple.subject}, {triple.relation}, {triple.object})\t{triple.probability:.4f}", flush=True)


def _print_models(arguments: argparse.Namespace) -> None:
    models = select(read_models(), arguments.scope, arguments.structure, arguments.runnable)
    if arguments.format == "csv":
        print(as_csv(models), end="")
    else:
        print(as_markdown(models) if arguments.format == "markdown" else as_text(models, shutil.get_terminal_size((140, 0)).columns))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="klue_re.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="fine-tune a model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.add_argument(
        "--model", required=True, metavar="DIR_OR_HUB_ID", help="a Hugging Face model folder or Hub id, or a short name of `models`"
    )
    train.add_argument("--eval-file", type=Path, help="rows to score after every epoch; no epoch is chosen by them")
    train.add_argument("--output-dir", type=Path, required=True, help="where the fine-tuned model, metrics and TensorBoard logs go")
    train.add_argument("--seed", type=int, default=0, help="of the new head, the order of the rows and dropout")
    _add_recipe(train)

    evaluate = commands.add_parser("eval", help="score a fine-tuned model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    evaluate.add_argument("--model", required=True, metavar="D", help="a folder that `train` wrote")
    evaluate.add_argument("--data", type=Path, required=True, help="KLUE-RE rows: KLUE's JSON, or JSON lines")
    evaluate.add_argument("--report", type=Path, help="write the scores there, as JSON")
    evaluate.add_argument("--html", type=Path, help="write a page to look at there: relations, confusion, curves, mistakes")
    evaluate.add_argument("--predictions", type=Path, help="write every row's probabilities there, as JSON lines")

    predict = commands.add_parser("predict", help="read triples out of sentences", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    predict.add_argument("--model", required=True, metavar="D", help="a folder that `train` wrote")
    predict.add_argument("--data", type=Path, help="rows as KLUE-RE's, JSON lines or JSON; guid and label may be missing")
    predict.add_argument("--sentence", help="instead of --data: one sentence")
    predict.add_argument("--subject", help="a word of it")
    predict.add_argument("--object", help="another")
    predict.add_argument(
        "--types", nargs=2, metavar="TYPE", help="with --sentence, where the input format has types: subject's and object's"
    )
    predict.add_argument("--top", type=int, choices=range(1, 31), default=1, metavar="N", help="triples of each sentence, likeliest first")

    compare = commands.add_parser(
        "compare", help="fine-tune and score several models", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    compare.add_argument(
        "--model", required=True, nargs="+", action="extend", metavar="NAME=DIR_OR_HUB_ID", help="a model and the name it has in the table"
    )
    compare.add_argument("--eval-file", type=Path, required=True, help="rows to score each model on when it is trained")
    compare.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="every model is fine-tuned once with each")
    compare.add_argument("--output-dir", type=Path, required=True, help="NAME/seed-N of every model; table.md, .tex, .json and .png")
    compare.add_argument("--both-conflicts", action="store_true", help="each model with --conflicts keep and with drop")
    _add_recipe(compare)

    models = commands.add_parser("models", help="list the public models that --model knows by a short name")
    models.add_argument("--scope", choices=SCOPES)
    models.add_argument("--structure", choices=STRUCTURES)
    models.add_argument("--runnable", action="store_true", help="only those that --model takes")
    models.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="csv has every field; default: text")
    return parser.parse_args()


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-file", type=Path, required=True, help="KLUE-RE rows: KLUE's JSON, or JSON lines")
    parser.add_argument("--recipe", type=Path, help="YAML with any of the settings below; flags come before it")

    def add(name: str, text: str, **how: Any) -> None:
        default = DEFAULTS[name.removeprefix("--").replace("-", "_")]
        parser.add_argument(name, default=argparse.SUPPRESS, help=text if default is None else f"{text} (default: {default})", **how)

    add("--epochs", "passes over the training rows", type=int)
    add("--batch-size", "rows a step", type=int)
    add("--learning-rate", "its peak: it rises over the warm-up, then falls to 0", type=float)
    add("--warmup", "that share of the steps", type=float)
    add("--input-format", "entity markers", choices=INPUT_FORMATS)
    add("--head", "on the [CLS] state, or the entities' first states", choices=HEADS)
    add("--hold-out", "of the training sentences; keeps the best epoch on them, otherwise the last one", type=float, metavar="SHARE")
    add("--max-length", "in tokens; longer rows are cut around their entities", type=int)
    add("--conflicts", "training rows that give one pair of entities in one sentence different labels", choices=CONFLICTS)


def _with_memory() -> None:
    """`main`, for which a GPU may be too small (not run on a GPU)."""
    try:
        main()
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; this file does not import it before it has to
            raise
        raise RunError(f"{first_line(error)}; lower --batch-size or --max-length, or end what else holds the GPU's memory") from None


if __name__ == "__main__":
    run_command(_with_memory)
