"""Several models under one fine-tuning recipe, each with several seeds, in one table."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from data_tools import aside
from data_tools.errors import UserError
from trainer.classifier import check_source, new_classifier
from trainer.comparison_table import as_latex, as_markdown, draw
from trainer.finetune import train
from trainer.relations import LABELS
from trainer.scores import paired_bootstrap
from trainer.settings import Settings, check_output

TABLES = ("table.json", "table.md", "table.tex", "table.png")
SCORES = ("micro_f1", "auprc", "accuracy", "training_seconds")


@dataclass(frozen=True)
class Arm:
    """What is compared: a model, and what is done with contradicting training rows."""

    name: str
    source: str
    folder: Path
    conflicts: dict[str, str]


def named_models(given: Sequence[str]) -> dict[str, str]:
    """{name: folder or Hub id} of NAME=DIR_OR_HUB_ID arguments. Raises UserError for one that is not, and for a name given twice."""
    models: dict[str, str] = {}
    for argument in given:
        name, equals, source = argument.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise UserError(
                f"--model {argument}: expected NAME=DIR_OR_HUB_ID with a name of letters, digits, '.', '-' and '_', such as xpt=run/model"
            )
        if name in TABLES:
            raise UserError(f"--model {argument}: {name} is what the table will be called; give the model another name")
        if name in models:
            raise UserError(f"--model {argument}: expected a name of its own for each model, found {name!r} twice; rename one")
        models[name] = source
    return models


def compare(
    models: Mapping[str, str], seeds: Sequence[int], output_dir: Path, recipe: Mapping[str, Any], both_conflicts: bool = False
) -> str:
    """Fine-tune every model with every seed into output_dir/NAME/seed-N, going on where an earlier call was; returns the table.

    recipe: the other fields of `Settings`, eval_file among them. both_conflicts: each model also without the training rows that
    contradict another, into output_dir/NAME/without-conflicts/seed-N. Writes table.json (see `summarise`), table.md, table.tex, table.png.
    """
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds: expected each seed once, found {' '.join(map(str, seeds))}; take the repeats out")
    if both_conflicts:
        recipe = {key: value for key, value in recipe.items() if key != "conflicts"}
    arms = []
    for name, source in models.items():
        arms.append(Arm(name, source, output_dir / name, {"conflicts": "keep"} if both_conflicts else {}))
        if both_conflicts:
            arms.append(Arm(f"{name} without conflicts", source, output_dir / name / "without-conflicts", {"conflicts": "drop"}))
        check_source(source)
    runs = [  # all before the first, for mistakes to show at once; seeds outermost, for an interrupted comparison to see every model
        (arm.name, Settings(model=arm.source, output_dir=arm.folder / f"seed-{seed}", seed=seed, **{**recipe, **arm.conflicts}))
        for seed in seeds
        for arm in arms
    ]
    unfinished: dict[str, Settings] = {}
    for _, run in runs:
        check_output(run)
        if not (run.output_dir / "config.json").is_file():
            unfinished.setdefault(run.model, run)
    for run in unfinished.values():
        new_classifier(run.model, run.input_format, run.max_length, run.seed, run.head)
    reports: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for name, settings in runs:
        print(f"--- {name}, seed {settings.seed}", flush=True)
        train(settings)
        reports[name].append(_report_of(settings))
    if len({report["data_sha256"] for found in reports.values() for report in found}) > 1:
        raise UserError(f"--eval-file {recipe['eval_file']}: it was altered meanwhile; give the command again to score all models on it")
    table = summarise(reports)
    for name, text in (("json", json.dumps(table, indent=1) + "\n"), ("md", as_markdown(table)), ("tex", as_latex(table))):
        aside.write_text(output_dir / f"table.{name}", text)
    draw(table, output_dir / "table.png")
    return as_markdown(table)


def summarise(reports: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The table of a comparison, from the reports of `_report_of`, per model those of each seed, the same seeds for all.

    data, selection, num_examples. models: {name: parameters; runs [{seed, micro_f1, auprc, accuracy, training_seconds}]; mean and sd
    of each of these, sd that of the sample, null for one seed}. differences: [{first, second, micro_f1, low, high}] for each pair of
    models, with the 95 % interval of `trainer.scores.paired_bootstrap`.
    """
    models = {}
    for name, found in reports.items():
        runs = [{"seed": report["seed"], **{key: report[key] for key in SCORES}} for report in found]
        columns = {key: np.array([run[key] for run in runs]) for key in SCORES}
        mean = {key: float(values.mean()) for key, values in columns.items()}
        sd = {key: float(values.std(ddof=1)) if len(values) > 1 else None for key, values in columns.items()}
        models[name] = {"parameters": found[0]["parameters"], "runs": runs, "mean": mean, "sd": sd}
    differences = []
    for first, second in combinations(reports, 2):
        labels = reports[first][0]["labels"]
        ours, theirs = (np.stack([report["predictions"] for report in reports[name]]) for name in (first, second))
        difference, low, high = paired_bootstrap(labels, ours, theirs)
        differences.append({"first": first, "second": second, "micro_f1": difference, "low": low, "high": high})
    one = next(iter(reports.values()))[0]
    about = {key: one[key] for key in ("data", "selection", "num_examples")}
    return {**about, "models": models, "differences": differences}


def _report_of(settings: Settings) -> dict[str, Any]:
    """A finished run's report, with its seed and class numbers: labels and predictions, both (rows,)."""
    report = json.loads((settings.output_dir / "report.json").read_text(encoding="utf-8"))
    lines = (settings.output_dir / "predictions.jsonl").read_text(encoding="utf-8").split("\n")  # a guid may hold U+2028
    rows = [json.loads(line) for line in lines if line]
    numbers = {key: np.array([LABELS.index(row[key[:-1]]) for row in rows]) for key in ("labels", "predictions")}
    return {**report, "seed": settings.seed, **numbers}
