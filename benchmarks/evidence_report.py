"""Makes the tables and pictures of docs/results.md from the records of benchmarks/evidence.py.

    python benchmarks/evidence_report.py        # or: make results

Writes the tables between `<!-- make results: NAME -->` and `<!-- end -->` in docs/results.md, and docs/evidence_*.png. Losses are in nats
per masked token, KLUE-RE scores in per cent. It needs benchmarks/results/evidence/*.json only, no runs.
"""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.stats import t, ttest_ind

RECORDS, DOCS = Path("benchmarks/results/evidence"), Path("docs")
WORD_BASELINE = Path("benchmarks/results/word_baseline.json")
DEFINES = ("tokens", "text", "variant", "set", "stages")
"""The entries of a cell that make its post-training what it is."""
REFERENCE = "rates.xpt-2e-3-1e-3"
"""Everything as in `defaults`."""
COMPARED_WITH = {
    "rates": REFERENCE, "itl": REFERENCE, "schedule": REFERENCE, "initialisation": REFERENCE, "paper": REFERENCE,
    "attribution": "schedule.one-stage", "static": "attribution.co-occurrences", "knobs": "attribution.co-occurrences",
    "late": "main.dictionary",
}  # fmt: skip
"""The cell that a table's others differ from in one thing; it stands among them."""
BESIDE = {
    "rates": ["schedule.one-stage"],
    "knobs": ["rates.scratch-5e-4"],
    "static": ["schedule.one-stage", "attribution.co-occurrences-random-layers"],
    "paper": ["itl.both-random", "initialisation.random"],
    "late": ["main.scratch"],
    "data": ["attribution.co-occurrences", "attribution.co-occurrences-random-layers"],
}
"""Cells of other tables that a table and its picture show, too."""
BEST_CONSTANT = 12.54
"""Micro-F1 of answering per:title to each of the 1,765 rows."""
LOSSES = (7.5, 7.25, 7.0, 6.9)
"""At which the tokens of both arms of the main result are compared, besides the random net's final loss."""
SAME_RUN = 0.01
"""How far two runs of the same steps may differ in validation loss: in bf16, on processors that round otherwise."""
BLOCK = re.compile(r"(?<=<!-- make results: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)

Record = dict[str, Any]


def read_records() -> dict[str, list[Record]]:
    """{TABLE.NAME: its seeds' records}. Raises ValueError when they are not of one experiment, or not of one corpus."""
    found: dict[str, list[Record]] = defaultdict(list)
    shared: dict[str, Any] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        seeds = found[f"{record['table']}.{record['name']}"]
        seeds.append(record)
        for key in DEFINES:
            if record[key] != seeds[0][key]:
                raise ValueError(f"{path}: its {key} are not those of seed {seeds[0]['seed']}")
        for key, value in (("fine_tuning", record.get("fine_tuning")), (f"corpus{record['text']}", record.get("corpus"))):
            if value is not None and value != shared.setdefault(key, value):  # records until commit 31b02d1 do not name their corpus
                raise ValueError(f"{path}: its {key} is not that of other records")
    return dict(found)


def final(record: Record) -> float:
    """Validation loss at the end."""
    return float(record["curve"][-1][2])


def mean_loss(seeds: list[Record]) -> float:
    """Mean validation loss at the end."""
    return statistics.mean(map(final, seeds))


def after_first_stage(record: Record) -> float | None:
    """Validation loss at the end of the first stage; None for a run of one."""
    first = [point[2] for point in record["curve"] if point[1] == record["curve"][0][1]]
    return None if len(first) == len(record["curve"]) else float(first[-1])


def scores_after(share: float, seeds: list[Record]) -> list[float]:
    """KLUE-RE micro-F1 after this share of the tokens, of the seeds that have it."""
    return [row["micro_f1"] for record in seeds for row in record["klue_re"] if row["tokens"] == share * record["tokens"]]


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
    """Mean and standard deviation of three or more; of fewer the values themselves."""
    if len(values) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def of_some(values: list[float], seeds: int, digits: int = 3) -> str:
    """`spread` of a figure that some of a row's seeds have."""
    few = f" ({len(values)} of {seeds} seeds)" if 0 < len(values) < seeds else ""
    return spread(values, digits) + few


def rows_of(name: str, records: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The cells of a table, and those that stand beside them."""
    beside = [COMPARED_WITH.get(name), *BESIDE.get(name, ())]
    return {label: found for label, found in records.items() if label.startswith(f"{name}.") or label in beside}


def shown_as(label: str, name: str) -> str:
    """A cell's name in the table `name`."""
    if label.startswith(f"{name}."):
        return label.removeprefix(f"{name}.")
    return "reference" if label == REFERENCE else label


def difference(one: list[float], other: list[float], digits: int = 3) -> str:
    """Of the means; of three seeds or more each with its 95 % interval (Welch's t: seeds share the order of their texts, little else)."""
    far = f"{statistics.mean(one) - statistics.mean(other):+.{digits}f}"
    if min(len(one), len(other)) < 3:
        return far
    interval = ttest_ind(one, other, equal_var=False).confidence_interval()
    return f"{far} ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"


def comparable(one: Record, other: Record) -> bool:
    """Whether a difference of their losses says something: at the end of as many tokens, of the same hidden ones."""
    masking = [record["set"].get("masking.rate") for record in (one, other)]
    pieces = [record["text"] if record["text"].endswith("k") else "" for record in (one, other)]
    return one["tokens"] == other["tokens"] and masking[0] == masking[1] and pieces[0] == pieces[1]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def table(name: str, records: dict[str, list[Record]]) -> str:
    """Markdown, the best first, what is no comparison last; without the columns that these cells have nothing for."""
    rows = rows_of(name, records)
    everyone = [record for found in rows.values() for record in found]
    reference = rows.get(COMPARED_WITH.get(name, ""), [])

    def called(label: str, found: list[Record]) -> str:
        shown = shown_as(label, name)
        return shown if label.startswith(f"{name}.") else f"*{shown}*"

    def after_one(label: str, found: list[Record]) -> str:
        return spread([loss for loss in map(after_first_stage, found) if loss is not None])

    def on_test(label: str, found: list[Record]) -> str:
        return of_some([record["test_loss"] for record in found if "test_loss" in record], len(found))

    def less_reference(label: str, found: list[Record]) -> str:
        compared = found is not reference and comparable(found[0], reference[0])
        return difference([*map(final, found)], [*map(final, reference)]) if compared else ""

    def a_character(label: str, found: list[Record]) -> str:
        """Of masked pieces: more pieces of a word are more context for each, so that this is no code length."""
        return f"{mean_loss(found) * found[0]['tokens_per_character']:.3f}"

    def order(label: str) -> tuple[bool, int, float]:
        first = rows[label][0]
        return bool(reference) and not comparable(first, reference[0]), first["tokens"], mean_loss(rows[label])

    columns: list[tuple[str, bool, Callable[[str, list[Record]], str]]] = [  # heading, whether it is shown, the cell
        (name, True, called),
        ("seeds", True, lambda label, found: str(len(found))),
        ("tokens", True, lambda label, found: f"{found[0]['tokens'] / 1e6:.2g}M"),
        ("after stage 1", any(after_first_stage(record) is not None for record in everyone), after_one),
        ("validation loss", True, lambda label, found: spread([*map(final, found)])),
        ("perplexity", True, lambda label, found: f"{math.exp(mean_loss(found)):,.1f}"),
        ("test loss", any("test_loss" in record for record in everyone), on_test),
        ("difference", bool(reference), less_reference),
        ("nats a character", any(record["text"].endswith("k") for record in everyone), a_character),
        ("micro-F1 before", name != "main" and bool(scores_after(0.0, everyone)), lambda label, found: score_after(0.0, found)),
        ("micro-F1", any(record["klue_re"] for record in everyone), lambda label, found: score_after(1.0, found)),
    ]
    head, cells = zip(*((heading, cell) for heading, shown, cell in columns if shown), strict=True)
    return markdown([*head], [[cell(label, rows[label]) for cell in cells] for label in sorted(rows, key=order)])


def score_after(share: float, seeds: list[Record]) -> str:
    """Micro-F1 after this share of the tokens, for people."""
    return of_some(scores_after(share, seeds), len(seeds), 2)


@contextmanager
def picture(name: str, what: str, **legend: Any) -> Iterator[Any]:
    """Axes to draw on, of something against tokens; at the end they are docs/evidence_NAME.png. legend: where it stands, if not in
    the emptiest corner."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    yield axes
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel(what)
    axes.legend(fontsize=7, **legend)
    figure.tight_layout()
    figure.savefig(DOCS / f"evidence_{name}.png", dpi=110)
    pyplot.close(figure)


def draw_curves(name: str, records: dict[str, list[Record]]) -> None:
    """Validation loss against tokens, a line a cell, named in the order in which they end; the range of a cell's seeds is shaded."""
    with picture(name, "validation loss") as axes:
        rows = rows_of(name, records)
        for number, label in enumerate(sorted(rows, key=lambda label: -mean_loss(rows[label]))):
            found = rows[label]
            style = "-" if number < 10 else "--"  # there are ten colours
            each = found[0]["tokens"] / found[0]["steps"]
            steps = sorted(set.intersection(*({point[0] for point in record["curve"] if point[0]} for record in found)))
            losses = [[next(point[2] for point in record["curve"] if point[0] == step) for record in found] for step in steps]
            places = [step * each / 1e6 for step in steps]
            (line,) = axes.plot(places, [statistics.mean(several) for several in losses], style, label=shown_as(label, name))
            if len(found) > 1:
                axes.fill_between(places, [min(s) for s in losses], [max(s) for s in losses], color=line.get_color(), alpha=0.25)


def main_arms(records: dict[str, list[Record]]) -> list[list[Record]]:
    """Of the main result, in the order in which they end; a seed that was not scored before its first step has the score of another cell's
    that starts the same, if there is one."""
    rows = [(start_of(record), row) for seeds in records.values() for record in seeds for row in record["klue_re"]]
    started = {start: row for start, row in rows if not row["tokens"]}
    arms = []
    for label in sorted((label for label in records if label.startswith("main.")), key=lambda label: -mean_loss(records[label])):
        found = []
        for record in records[label]:
            later = [row for row in record["klue_re"] if row["tokens"]]
            start = start_of(record)
            found.append({**record, "klue_re": [started[start], *later] if start in started else later})
        arms.append(found)
    return arms


def start_of(record: Record) -> str:
    """What two cells have in common that begin with the same model."""
    return json.dumps([record["seed"], record["text"], record["variant"], record["set"]], sort_keys=True)


def draw_scores(arms: list[list[Record]]) -> None:
    """Micro-F1 of the main result against tokens: a point a seed, the mean with its 95 % interval (t).

    What it is before the first step has no place on the axis, and is a line. The arms stand a little beside each other.
    """
    with picture("scores", "KLUE-RE micro-F1", loc="center left", bbox_to_anchor=(1.01, 0.5)) as axes:
        for number, found in enumerate(arms):
            beside = 1.03 ** (number - len(arms) // 2)
            points = sorted(
                (beside * row["tokens"] / 1e6, row["micro_f1"]) for record in found for row in record["klue_re"] if row["tokens"]
            )
            places = sorted({place for place, _ in points})
            scores = [[score for place, score in points if place == at] for at in places]
            half = [t.ppf(0.975, len(s) - 1) * statistics.stdev(s) / len(s) ** 0.5 if len(s) > 2 else math.nan for s in scores]
            line = axes.errorbar(places, [statistics.mean(s) for s in scores], half, capsize=3, label=found[0]["name"])
            axes.plot(*zip(*points, strict=True), "o", color=line[0].get_color(), markersize=4)
            if begun := scores_after(0.0, found):
                label = f"{found[0]['name']}, before the first step"
                axes.axhline(statistics.mean(begun), color=line[0].get_color(), linestyle="--", label=label)
        axes.axhline(word_scores()["words"]["micro_f1"], color="grey", linestyle="-.", label="linear classifier of words")
        axes.axhline(BEST_CONSTANT, color="grey", linestyle=":", label="best constant answer")


def word_scores() -> dict[str, Record]:
    """{what a linear classifier is given: its scores}, of benchmarks/word_baseline.py."""
    found: dict[str, Record] = json.loads(WORD_BASELINE.read_text(encoding="utf-8"))
    return found


def words_table() -> str:
    """What a linear classifier scores by what it is given."""
    rows = [[given, *(f"{row[score]:.2f}" for score in ("micro_f1", "auprc", "accuracy"))] for given, row in word_scores().items()]
    return markdown(["a linear classifier, given", "micro-F1", "AUPRC", "accuracy"], rows)


def scores_table(records: dict[str, list[Record]]) -> str:
    """KLUE-RE after so many tokens, of the main result's arms, the best first."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for arm in reversed(main_arms(records)):
        for score, shown in (("micro_f1", "micro-F1"), ("auprc", "AUPRC")):
            for record in arm:
                for row in record["klue_re"]:
                    found.setdefault((record["name"], shown), defaultdict(list))[row["tokens"]].append(row[score])
    places = sorted({tokens for points in found.values() for tokens in points})
    head = ["KLUE-RE", "", *(f"{tokens / 1e6:.1f}M tokens" for tokens in places)]
    rows = [
        [label, shown, *(spread(points[tokens], 2) if tokens in points else "" for tokens in places)]
        for (label, shown), points in found.items()
    ]
    return markdown(head, rows)


def hypotheses(records: dict[str, list[Record]]) -> str:
    """What became of the two, in figures."""
    xpts, scratches = records.get("main.xpt", []), records.get("main.scratch", [])
    short = records.get("short.xpt", [])
    lines = []
    if xpts and scratches:
        scores = [scores_after(1.0, arm) for arm in (xpts, scratches)]
        if all(scores):
            lines.append(f"* micro-F1 at the end, xpt less scratch: {difference(scores[0], scores[1], 2)}; hypothesis: +15.")
        lines.append(f"* validation loss at the end: {difference([*map(final, xpts)], [*map(final, scratches)])}.")
    of_seed = {record["seed"]: record for record in scratches}
    arms = {arm: with_first_steps(arm, records) for arm in ("xpt", "dictionary")}
    arms["late.two-stages-unfitted"] = records.get("late.two-stages-unfitted", [])
    for arm, seeds in arms.items():
        for record in seeds:
            if scratch := of_seed.get(record["seed"]):
                needed = tokens_to_reach(record, final(scratch))
                reached = f"after {needed / 1e6:.2f}M tokens, 1/{scratch['tokens'] / needed:.1f}" if needed else "never"
                lines.append(
                    f"* seed {record['seed']}: {arm} reaches scratch's final loss, {final(scratch):.3f}, {reached}; hypothesis: 1/32."
                )
    if short and scratches:
        ours, theirs = ([*map(final, arm)] for arm in (short, scratches))
        lines.append(
            f"* runs of 1/32 of the tokens end at {spread(ours)}, scratch with all of them at {spread(theirs)}: {difference(ours, theirs)}."
        )
    return "\n".join(lines)


def with_first_steps(arm: str, records: dict[str, list[Record]]) -> list[Record]:
    """An arm of the table main, its curves begun by those of the table early: the same steps, validated more often. A seed that has no more
    yet is as it is. Raises ValueError where they do not meet."""
    long, often = ({record["seed"]: record for record in records.get(f"{table}.{arm}", [])} for table in ("main", "early"))
    found = [often[seed] for seed in often.keys() - long.keys()]
    for seed, record in long.items():
        first = often[seed]["curve"] if seed in often else []
        at = {step: loss for step, _, loss in record["curve"]}
        for step, _, loss in first:
            if abs(at.get(step, loss) - loss) > SAME_RUN:
                raise ValueError(f"seed {seed} at step {step}: main.{arm} has {at[step]}, early.{arm} {loss}")
        found.append({**record, "curve": first + [point for point in record["curve"] if not first or point[0] > first[-1][0]]})
    return sorted(found, key=lambda record: record["seed"])


def reached_table(records: dict[str, list[Record]]) -> str:
    """After how many tokens the main result's arms have a loss, over the seeds that both have."""
    of_seed = {record["seed"]: record for record in records.get("main.scratch", [])}
    pairs = [(record, of_seed[record["seed"]]) for record in with_first_steps("xpt", records) if record["seed"] in of_seed]
    lines = ["| validation loss | scratch, M tokens | xpt, M tokens | ratio |", "|---|---|---|---|"]
    for loss in (*LOSSES, None):
        found = [[tokens_to_reach(side, final(pair[1]) if loss is None else loss) for side in pair] for pair in pairs]
        if found and all(tokens for pair in found for tokens in pair):
            ours, theirs = ([tokens / 1e6 for tokens in side if tokens] for side in zip(*found, strict=True))
            ratios = [other / one for one, other in zip(ours, theirs, strict=True)]
            shown = "scratch's final" if loss is None else f"{loss}"
            lines.append(f"| {shown} | {spread(theirs, 2)} | {spread(ours, 2)} | {spread(ratios, 1)} |")
    return "\n".join(lines)


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


def blocks(records: dict[str, list[Record]]) -> dict[str, str]:
    """What stands in the document, by name: TABLE, scores, hypotheses, reached, words, probes.TABLE.NAME."""
    found = {name: table(name, records) for name in dict.fromkeys(label.split(".")[0] for label in records)}
    found |= {"scores": scores_table(records), "hypotheses": hypotheses(records), "reached": reached_table(records), "words": words_table()}
    return found | {f"probes.{label}": probes_tables(seeds[0]) for label, seeds in records.items() if "probes" in seeds[0]}


def rendered(text: str, records: dict[str, list[Record]]) -> str:
    """The document with its blocks made anew. Raises KeyError for a block that no record is behind."""
    made = blocks(records)
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{made[found[1]]}\n", text)


def main() -> None:
    records = read_records()
    document = DOCS / "results.md"
    text = document.read_text(encoding="utf-8")
    document.write_text(rendered(text, records), encoding="utf-8")
    begun = {arm: [record for record in with_first_steps(arm, records) if record["table"] == "main"] for arm in ("xpt", "dictionary")}
    drawn = records | {f"main.{arm}": found for arm, found in begun.items() if found}
    for name in dict.fromkeys(label.split(".")[0] for label in records):
        if f"evidence_{name}.png" in text:
            draw_curves(name, drawn)
    if "evidence_scores.png" in text:
        draw_scores(main_arms(records))


if __name__ == "__main__":
    main()
