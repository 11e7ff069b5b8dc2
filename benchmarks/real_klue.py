"""The steps of benchmarks/real_klue.sh between its runs.

split TRAIN OUT [ROWS]   part.json (4,000 rows, or ROWS) and holdout.json (2,000 rows) of the training file; no sentence stands in both
choose OUT         the rate with the best mean micro-F1 over the models on the hold-out
tables [OUT KLUE]  keep the small records of the runs in benchmarks/results/real_klue/ and print the tables; without OUT from those records
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from trainer.relations import LABELS, read_relations
from trainer.scores import label_shift, micro_f1, paired_bootstrap

RECORDS = Path("benchmarks/results/real_klue")
NAMES = {
    "post-trained": "XPT, 5.2M tokens",
    "random-weights": "same net and tokens, random weights",
    "untrained": "English seed, new embeddings, untrained",
}
PART, HOLDOUT = 4000, 2000


def split(train: Path, out: Path, rows_of_part: int = PART) -> None:
    """A fixed random order of the distinct sentences, and the rows of each in that order."""
    rows = json.loads(train.read_text(encoding="utf-8"))
    sentences = sorted({row["sentence"] for row in rows})
    rank = {sentences[place]: number for number, place in enumerate(np.random.default_rng(0).permutation(len(sentences)))}
    rows.sort(key=lambda row: (rank[row["sentence"]], row["guid"]))
    taken = {row["sentence"] for row in rows[:HOLDOUT]}
    rest = [row for row in rows[HOLDOUT:] if row["sentence"] not in taken]
    for name, chosen in (("holdout", rows[:HOLDOUT]), ("part", rest[:rows_of_part])):
        (out / f"{name}.json").write_text(json.dumps(chosen, ensure_ascii=False), encoding="utf-8")


def label_counts(klue: Path) -> dict[str, list[int]]:
    files = {name: next(klue.glob(f"*{name}*.json")) for name in ("train", "dev")}
    return {name: np.bincount([row.label for row in read_relations(path)], minlength=len(LABELS)).tolist() for name, path in files.items()}


def with_prior_of_dev(predictions: Path, klue: Path) -> float:
    """Micro-F1 when the model's probabilities are reweighted from train's label shares to dev's: see `trainer.scores.label_shift`."""
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    labels, probabilities = np.array([LABELS.index(row["label"]) for row in rows]), np.array([row["probabilities"] for row in rows])
    return label_shift(label_counts(klue)["train"], labels, probabilities)["micro_f1_at_these_shares"]


def collect(out: Path, klue: Path) -> None:
    """Keep each finished run's scores and seconds, and the label counts of both files."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for folder in sorted(out.iterdir()):
        if not (folder / "report.json").is_file():
            continue
        report = json.loads((folder / "report.json").read_text())
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        speed = float(np.median([row["examples_per_second"] for row in log]))
        kept = {key: report[key] for key in ("micro_f1", "auprc", "accuracy", "num_examples", "per_label")}
        rows = json.loads((folder / "settings.json").read_text())
        kept |= {"examples_per_second": speed, "learning_rate": rows["learning_rate"], "epochs": rows["epochs"]}
        if (folder / "predictions.jsonl").is_file():
            kept["micro_f1_with_prior_of_dev"] = with_prior_of_dev(folder / "predictions.jsonl", klue)
        (RECORDS / f"{folder.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    differences(out)
    (RECORDS / "labels.json").write_text(json.dumps(label_counts(klue)) + "\n")


def differences(out: Path) -> None:
    """Paired bootstrap of XPT's micro-F1 less each other model's, on dev."""
    rows = {
        path.parent.name.split("-", 1)[1].rsplit("-", 2)[0]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in out.glob("full-*/predictions.jsonl")
    }
    said = {name: np.array([LABELS.index(row["prediction"]) for row in found]) for name, found in rows.items()}
    labels = np.array([LABELS.index(row["label"]) for row in rows["post-trained"]])
    found = {name: paired_bootstrap(labels, said["post-trained"], said[name]) for name in said if name != "post-trained"}
    (RECORDS / "differences.json").write_text(json.dumps(found) + "\n")


def searched(folder: Path, pattern: str) -> dict[str, dict[str, dict]]:
    """{rate: {model: report}} of the runs named KIND-MODEL-RATE; a rate has a minus of its own."""
    found: dict[str, dict[str, dict]] = {}
    for path in sorted(folder.glob(pattern)):
        name, _, rate = path.relative_to(folder).parts[0].removesuffix(".json").partition("-")[2].rpartition("-")
        name, _, mantissa = name.rpartition("-")
        found.setdefault(f"{mantissa}-{rate}", {})[name] = json.loads(path.read_text())
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def choose(found: dict[str, dict[str, dict]]) -> str:
    return max(found, key=lambda rate: np.mean([report["micro_f1"] for report in found[rate].values()]))


def tables() -> None:
    """Print hold-out and final scores, and the label shift, as Markdown."""
    found = searched(RECORDS, "search-*.json")
    print("| micro-F1 on the hold-out | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for name, title in NAMES.items():
        print(f"| {title} | " + " | ".join(f"{found[rate][name]['micro_f1']:.2f}" for rate in found) + " |")
    print(f"\nchosen: {choose(found)}\n\n| model | micro-F1 | with dev's shares | AUPRC | accuracy | rows/s |\n|---|---|---|---|---|---|")
    for final in searched(RECORDS, "full-*.json").values():
        for name, title in NAMES.items():
            if report := final.get(name):
                keys = ("micro_f1", "micro_f1_with_prior_of_dev", "auprc", "accuracy")
                scores = " | ".join(f"{report.get(key, np.nan):.2f}" for key in keys)
                print(f"| {title} | {scores} | {report['examples_per_second']:.0f} |")
    for name, (difference, low, high) in json.loads((RECORDS / "differences.json").read_text()).items():
        print(f"XPT less {NAMES[name]}: {difference:+.2f}, 95 % {low:+.2f} to {high:+.2f}")
    counts = {name: np.array(values) for name, values in json.loads((RECORDS / "labels.json").read_text()).items()}
    share = {name: values / values.sum() for name, values in counts.items()}
    dev = np.repeat(np.arange(len(LABELS)), counts["dev"])
    best = Counter({label: micro_f1(dev, np.full(len(dev), label)) for label in range(1, len(LABELS))}).most_common(1)[0]
    print(f"\nbest constant answer on dev: {LABELS[best[0]]}, micro-F1 {best[1]:.2f}")
    print(f"total variation distance of the label shares: {abs(share['train'] - share['dev']).sum() / 2:.3f}\n")
    print("| label | train % | dev % |\n|---|---|---|")
    for label in np.argsort(-abs(share["train"] - share["dev"]))[:6]:
        print(f"| {LABELS[label]} | {100 * share['train'][label]:.1f} | {100 * share['dev'][label]:.1f} |")


if __name__ == "__main__":
    step, *paths = sys.argv[1], *map(Path, sys.argv[2:])
    if step == "split":
        split(*paths[:2], *(int(str(given)) for given in paths[2:]))
    elif step == "choose":
        print(choose(searched(paths[0], "search-*/report.json")))
    else:
        if paths:
            collect(*paths)
        tables()
