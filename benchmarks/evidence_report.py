"""Tables and pictures of docs/results.md from the records of benchmarks/evidence.py.   python benchmarks/evidence_report.py  (make results)

Prints the tables; writes docs/evidence_*.png. Needs no runs, only benchmarks/results/evidence/*.json.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.stats import ttest_ind

RECORDS, PICTURES = Path("benchmarks/results/evidence"), Path("docs")
REFERENCE = "rates.xpt-2e-3-1e-3"
"""The cell that tables of one change are compared with: everything as in `defaults`."""

Record = dict[str, Any]


def read_records() -> dict[str, list[Record]]:
    """{TABLE.NAME: its seeds' records}."""
    found = defaultdict(list)
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[f"{record['table']}.{record['name']}"].append(record)
    return dict(found)


def final(record: Record) -> float:
    """Validation loss at the end."""
    return float(record["curve"][-1][2])


def loss_at(record: Record, tokens: float) -> float | None:
    """The last validation loss within so many tokens."""
    each = record["tokens"] / record["steps"]
    within = [loss for step, _, loss in record["curve"] if step * each <= tokens]
    return within[-1] if within else None


def tokens_to_reach(record: Record, loss: float) -> float | None:
    """Tokens at the first validation that is no worse, interpolated from the one before; None when there is none."""
    each, before = record["tokens"] / record["steps"], None
    for step, _, found in record["curve"]:
        if found <= loss:
            if before is None or before[1] == found:
                return float(step * each)
            share = (before[1] - loss) / (before[1] - found)
            return float((before[0] + share * (step - before[0])) * each)
        before = (step, found)
    return None


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and, of several, standard deviation."""
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(name: str, records: dict[str, list[Record]]) -> str:
    """Markdown, the best first. Rows of another budget than the reference have their loss within the reference's budget, too."""
    rows = {label: found for label, found in records.items() if label.startswith(f"{name}.")}
    if REFERENCE in records:
        rows.setdefault(REFERENCE, records[REFERENCE])
    budgets = {record["tokens"] for found in rows.values() for record in found}
    shared = min(budgets)
    pieces = any(record["text"].endswith("k") for found in rows.values() for record in found)
    scored = any(record["klue_re"] for found in rows.values() for record in found)
    head = [
        name,
        "seeds",
        "tokens",
        f"loss after {shared / 1e6:.1f}M tokens",
        "final validation loss",
        "perplexity",
        *["nats a character"] * pieces,
        *["micro-F1"] * scored,
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    order = sorted(rows.items(), key=lambda item: statistics.mean(loss_at(record, shared) or math.inf for record in item[1]))
    for label, found in order:
        shown = label.split(".", 1)[1] if label != REFERENCE or name == "rates" else "(as in the other tables)"
        losses = [final(record) for record in found]
        early = [loss for record in found if (loss := loss_at(record, shared)) is not None]
        line = f"| {shown} | {len(found)} | {found[0]['tokens'] / 1e6:.1f}M | {spread(early)} | {spread(losses)} | "
        line += f"{math.exp(statistics.mean(losses)):,.1f} |"
        if pieces:  # of masked pieces: more pieces of a word are more context for each, so that this is no code length
            line += f" {statistics.mean(losses) * found[0]['tokens_per_character']:.3f} |"
        if scored:
            scores = [record["klue_re"][-1]["micro_f1"] for record in found if record["klue_re"]]
            line += f" {spread(scores, 2) if scores else '-'} |"
        lines.append(line)
    return "\n".join(lines)


@contextmanager
def picture(name: str, what: str) -> Iterator[Any]:
    """Axes to draw on, of something against tokens; at the end they are docs/evidence_NAME.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    yield axes
    axes.set_xscale("log")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel(what)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PICTURES / f"evidence_{name}.png", dpi=110)
    pyplot.close(figure)


def draw_curves(name: str, records: dict[str, list[Record]]) -> None:
    """Validation loss against tokens, a line a cell and one of the reference; the range of seeds is shaded."""
    with picture(name, "validation loss") as axes:
        for label, found in sorted(records.items()):
            if not label.startswith(f"{name}.") and (label != REFERENCE or name == "main"):
                continue
            each = found[0]["tokens"] / found[0]["steps"]
            steps = sorted(set.intersection(*({point[0] for point in record["curve"]} for record in found)))
            losses = [[next(point[2] for point in record["curve"] if point[0] == step) for record in found] for step in steps]
            places = [max(step, 1) * each / 1e6 for step in steps]
            (line,) = axes.plot(places, [statistics.mean(several) for several in losses], label=label.split(".", 1)[1])
            if len(found) > 1:
                axes.fill_between(places, [min(s) for s in losses], [max(s) for s in losses], color=line.get_color(), alpha=0.25)


def draw_scores(arms: list[list[Record]]) -> None:
    """Micro-F1 of the main result against tokens: a point a seed, a line through the means."""
    with picture("scores", "KLUE-RE micro-F1") as axes:
        for found in arms:
            points = [(row["tokens"] / 1e6, row["micro_f1"]) for record in found for row in record["klue_re"]]
            places = sorted({place for place, _ in points})
            means = [statistics.mean(score for place, score in points if place == at) for at in places]
            (line,) = axes.plot(places, means, label=found[0]["name"])
            axes.plot(*zip(*points, strict=True), "o", color=line.get_color(), markersize=4)


def scores_table(records: dict[str, list[Record]]) -> str:
    """KLUE-RE micro-F1 after so many tokens, of every cell that was fine-tuned."""
    found: dict[str, dict[float, list[float]]] = {}
    for label, seeds in records.items():
        for record in seeds:
            for row in record["klue_re"]:
                found.setdefault(label, defaultdict(list))[row["tokens"]].append(row["micro_f1"])
    places = sorted({tokens for points in found.values() for tokens in points})
    lines = [
        "| KLUE-RE micro-F1 | " + " | ".join(f"{tokens / 1e6:.1f}M tokens" for tokens in places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]
    for label, points in found.items():
        lines.append(f"| {label} | " + " | ".join(spread(points[tokens], 2) if tokens in points else "-" for tokens in places) + " |")
    return "\n".join(lines)


def difference(one: list[float], other: list[float]) -> str:
    """Of the means, with its 95 % interval over seeds (Welch's t)."""
    interval = ttest_ind(one, other, equal_var=False).confidence_interval()
    return f"{statistics.mean(one) - statistics.mean(other):+.2f} (95 % {interval.low:+.2f} to {interval.high:+.2f})"


def probes_tables(record: Record) -> str:
    """How far layers moved, whether words find their translations, what is near to what; of one run."""
    probes = record["probes"]
    lines = [f"| | {' | '.join(probes['movement'])} |", "|---" * (len(probes["movement"]) + 1) + "|"]
    lines.append("| moved by | " + " | ".join(f"{share:.2f}" for share in probes["movement"].values()) + " |\n")
    if any(change.startswith("holdout") for change in record["variant"]):  # elsewhere the words' translations are what they began as
        lines += ["| translations of held-out words | nearest | among 10 nearest |", "|---|---|---|"]
        lines += [f"| {when} | {found['top1']:.1%} | {found['top10']:.1%} |" for when, found in probes["retrieval"].items()] + [""]
    lines += ["| piece | nearest before | nearest after |", "|---|---|---|"]
    before, after = probes["neighbours"]["before"], probes["neighbours"]["after"]
    lines += [f"| {piece} | {', '.join(before[piece])} | {', '.join(after[piece])} |" for piece in before]
    return "\n".join(lines)


def main() -> None:
    records = read_records()
    for name in dict.fromkeys(label.split(".")[0] for label in records):
        print(table(name, records) + "\n")
        draw_curves(name, records)
    if any(record["klue_re"] for seeds in records.values() for record in seeds):
        print(scores_table(records) + "\n")
    both = [records.get(f"main.{arm}", []) for arm in ("xpt", "scratch")]
    for xpt, scratch in zip(*both, strict=False):
        needed = tokens_to_reach(xpt, final(scratch))
        factor = "never" if needed is None else f"{needed / 1e6:.2f}M tokens, a {scratch['tokens'] / needed:.0f}th"
        print(f"seed {xpt['seed']}: xpt reaches scratch's final loss of {final(scratch):.3f} after {factor}")
    if min(map(len, both)) > 1:
        draw_scores(both)
        print("final validation loss, xpt - scratch: " + difference(*([final(record) for record in arm] for arm in both)))
        print("micro-F1, xpt - scratch: " + difference(*([record["klue_re"][-1]["micro_f1"] for record in arm] for arm in both)))
    for label in dict.fromkeys(label for label in (REFERENCE, "initialisation.holdout", "main.xpt") if label in records):
        print(f"\n{label}\n\n" + probes_tables(records[label][0]))


if __name__ == "__main__":
    main()
