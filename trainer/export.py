"""A checkpoint as a plain Hugging Face folder: weights, configuration, tokenizer, model card.

A run exports its last checkpoint by itself. Any other, step-0 (before post-training) for one:
    python -m trainer.export --checkpoint RUN/checkpoints/step-0 --corpus CORPUS --output-dir DIR
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_tools.aside import flush
from data_tools.corpus import Corpus
from data_tools.errors import UserError, run_command
from trainer import accelerator  # noqa: F401  (accelerate imports DeepSpeed, which warns where nobody has chosen)
from trainer.architecture import architecture_of
from trainer.checkpoint import Checkpoint
from trainer.mlm import tie_output_bias
from trainer.pretrained import write_model


def load_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The checkpoint's model in fp32, an ordinary `...ForMaskedLM`."""
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**checkpoint.state["model_config"]), dtype=torch.float32)
    tie_output_bias(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value, _ in checkpoint.entries(parameters):
            parameters[name].copy_(value)
    return model.eval()


def export(checkpoint: Checkpoint, corpus: Corpus, folder: Path, scores: dict[str, Any]) -> None:
    """Write the folder aside, then give it its name. `AutoModelForMaskedLM` and `AutoTokenizer` load it without custom code.

    scores: what the card reports, e.g. the last validation row.
    """
    checkpoint.expect_post_training()
    if corpus.fingerprint != checkpoint.state["corpus_fingerprint"]:
        raise UserError(f"corpus {corpus.path}: checkpoint {checkpoint.path} is of another corpus; give the one it was trained on")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = load_model(checkpoint)
    if not model.config.tie_word_embeddings:  # `transformers` then reads a bias of the decoder's own
        names = architecture_of(model.config)
        decoder = model.get_submodule(names.decoder)
        decoder.bias = torch.nn.Parameter(model.get_parameter(names.bias).detach().clone())
    partial.mkdir(parents=True)
    for path in corpus.tokenizer_dir.iterdir():
        shutil.copyfile(path, partial / path.name)  # not its mode: a corpus may be read-only
    _shorten(partial / "tokenizer_config.json", model.config)
    write_model(model, partial)
    (partial / "README.md").write_text(model_card(checkpoint, corpus, scores), encoding="utf-8")
    flush(*partial.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    flush(folder.absolute().parent)


def _shorten(tokenizer_config: Path, config: PretrainedConfig) -> None:
    """A tokenizer that truncates must not give more tokens than the model has positions for."""
    settings = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    positions = config.max_position_embeddings - architecture_of(config).first_position(config)
    if positions < settings.get("model_max_length", positions):
        tokenizer_config.write_text(
            json.dumps(settings | {"model_max_length": positions}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )


def model_card(checkpoint: Checkpoint, corpus: Corpus, scores: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    recipe, config = checkpoint.state["recipe"], checkpoint.state["model_config"]
    stages = "\n".join(
        f"| {s['name']} | {', '.join(s['train'])} | {s['steps']} | {s['learning_rate']:g} | {s['warmup_steps']} | {s['schedule']} |"
        for s in recipe["stages"]
    )
    # PATH, step N; the card shows only the last parts of the path
    begun = checkpoint.state["surgery"].get("initialised_from", "").rpartition(", step ")[0]
    begun = f"\n\nIt began from the weights of `{'/'.join(Path(begun).parts[-3:])}`, which had been trained before." if begun else ""
    figures = "\n".join(f"| {key} | {'not finite' if value is None else f'{value:.4f}'} |" for key, value in scores.items())
    train = corpus.manifest["splits"]["train"]
    seed, random = recipe["seed_model"], recipe["surgery"]["seed_weights"] == "random"
    base = "" if random else f"base_model: {seed}\n"
    if random:
        origin = f"of random weights in place of those of `{seed}`, otherwise made and trained as by cross-lingual post-training (XPT)"
        terms = (
            "The weights inherit the terms of the text they were trained on (Wikipedia text is CC BY-SA). Check them before you\n"
            "pass this model on."
        )
    else:
        origin = f"made from the English model `{seed}` by cross-lingual post-training (XPT)"
        terms = (
            f"The weights inherit the terms of the seed model (`{seed}`) and of the text they were trained on\n"
            "(Wikipedia text is CC BY-SA). Check both before you pass this model on."
        )
    return f"""---
language: ko
library_name: transformers
pipeline_tag: fill-mask
{base}---

# {recipe["name"]}

A {config["model_type"].upper()} encoder of {config["num_hidden_layers"]} layers x {config["hidden_size"]},
{origin}: new word embeddings and output layer for the target vocabulary
({config["vocab_size"]} pieces), adaptation layers: {recipe["surgery"]["itl"]}. It is a plain `{config["model_type"]}` model; no custom
code is needed.

## Training

{checkpoint.state["step"]} steps, {checkpoint.state["tokens"]:,} tokens, blocks of {recipe["sequence_length"]},
{recipe["global_batch_size"]} blocks a step,
seed {recipe["seed"]}.{begun}

| stage | trains | steps | learning rate | warm-up | schedule |
|---|---|---|---|---|---|
{stages}

## Corpus

{train["documents"]:,} documents, {train["sentences"]:,} sentences, {train["tokens"]:,} tokens in the training split;
fingerprint `{corpus.fingerprint}`.

## Scores

| | |
|---|---|
{figures}

## Licences

{terms}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Export a checkpoint as a Hugging Face folder.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN/checkpoints/step-N")
    parser.add_argument("--corpus", type=Path, required=True, help="the corpus it was trained on; its tokenizer goes along")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.output_dir.exists():
        raise UserError(f"--output-dir {arguments.output_dir}: exists already; give another name")
    transformers_logging.disable_progress_bar()
    export(Checkpoint.open(arguments.checkpoint), Corpus.open(arguments.corpus), arguments.output_dir, {})
    print(arguments.output_dir)


if __name__ == "__main__":
    run_command(main)
