"""Holds rows of KLUE-RE's training file out, to choose learning rates on; and prints the tables of an earlier run that did so.

    python benchmarks/real_klue.py split TRAIN OUT [ROWS]    # writes part.json (4,000 rows, or ROWS) and holdout.json (2,000 rows) into OUT
    python benchmarks/real_klue.py                           # prints the tables of benchmarks/results/real_klue/, scores in per cent

No sentence is in both files.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from trainer.relations import LABELS
from trainer.scores import micro_f1

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
    if sys.argv[1:2] == ["split"]:
        split(Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
    else:
        tables()
