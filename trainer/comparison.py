"""Several models under one fine-tuning recipe, each with several seeds, in one table."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import UserError
from trainer.evaluation import write_aside
from trainer.finetune import Settings, train


def named_models(given: Sequence[str]) -> dict[str, str]:
    """{name: folder or Hub id} of NAME=DIR_OR_HUB_ID arguments. Raises UserError for one that is not, and for a name given twice."""
    models: dict[str, str] = {}
    for argument in given:
        name, equals, source = argument.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise UserError(
                f"--model {argument}: expected NAME=DIR_OR_HUB_ID with a name of letters, digits, '.', '-' and '_', such as xpt=run/model"
            )
        if name in models:
            raise UserError(f"--model {argument}: expected a name of its own for each model, found {name!r} twice; rename one")
        models[name] = source
    return models


def compare(models: Mapping[str, str], seeds: Sequence[int], output_dir: Path, recipe: Mapping[str, Any]) -> str:
    """Fine-tune every model with every seed into output_dir/NAME/seed-N, going on where an earlier call was; returns the table.

    recipe: the other fields of `Settings`, eval_file among them. Writes table.md and table.json: per model the runs, and mean and
    standard deviation (of the sample) of micro-F1, AUPRC and accuracy after the last epoch.
    """
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds: expected each seed once, found {' '.join(map(str, seeds))}; take the repeats out")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for seed in seeds:  # outermost, so that an interrupted comparison has seen every model
        for name, source in models.items():
            settings = Settings(model=source, output_dir=output_dir / name / f"seed-{seed}", seed=seed, **recipe)
            print(f"--- {name}, seed {seed}", flush=True)
            train(settings)
            report = json.loads((settings.output_dir / "report.json").read_text(encoding="utf-8"))
            if report["data"] != str(settings.eval_file):
                found = f"expected scores on {settings.eval_file}, found scores on {report['data']}"
                raise UserError(f"{settings.output_dir}: {found}; give another --output-dir")
            runs[name].append({"seed": seed, **{key: report[key] for key in ("micro_f1", "auprc", "accuracy")}})
    table = _markdown(runs)
    for path, text in ((output_dir / "table.md", table + "\n"), (output_dir / "table.json", json.dumps(runs, indent=1) + "\n")):
        write_aside(path, text)
    return table


def _markdown(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    lines = ["| model | seeds | micro-F1 | AUPRC | accuracy |", "|---|---|---|---|---|"]
    for name, scores in runs.items():
        cells = []
        for key in ("micro_f1", "auprc", "accuracy"):
            values = np.array([score[key] for score in scores])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}")
        lines.append(f"| {name} | {len(scores)} | {' | '.join(cells)} |")
    return "\n".join(lines)
