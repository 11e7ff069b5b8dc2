"""How tokens per second depend on sequence length, vocabulary, layers and ranks.

    python -m benchmarks.cost_curves CORPUS        # a corpus of 32,000 pieces

Measured: tokens per second of training at the MiniLM shape (8 layers x 384, 32,000 pieces, blocks of 128), everything trained, 4,096
tokens a step, one rank of one thread; each curve varies one of these. A point is the median of three launches; the launches of different
points alternate. Prints the medians, and writes every launch to benchmarks/results/cost_curves.json and a picture to docs/cost_curves.png.
"""

import json
import statistics
from pathlib import Path

from benchmarks.command import paths
from benchmarks.speed import Row, machine, run

RECORD, PICTURE = Path("benchmarks/results/cost_curves.json"), Path("docs/cost_curves.png")
CURVES = {
    "sequence length": ("--length", (64, 128, 256, 512)),
    "vocabulary": ("--vocab", (8000, 16000, 32000, 64000)),
    "layers": ("--layers", (4, 8, 12, 16)),
    "ranks of one thread": ("", (1, 2)),
}
REPETITIONS = 3


def measure(corpus: str) -> dict[str, dict[str, list[float]]]:
    """{curve: {point: tokens per second of each repetition}}."""
    row = Row("curve", "minilm", 128, "all", False, False, 4)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in CURVES}
    for _ in range(REPETITIONS):
        for name, (option, points) in CURVES.items():
            for point in points:
                place = (1, 1, "") if option else (point, 1, "")
                more = [option, str(point)] * bool(option)
                found[name].setdefault(str(point), []).append(run("ours", row, corpus, place, more=more)["tokens_per_second"])
    return found


def draw(found: dict[str, dict[str, list[float]]]) -> None:
    """A panel a curve: medians joined, each repetition a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 2.8), sharey=True)
    for axes, (name, curve) in zip(plots, found.items(), strict=True):
        points = [int(point) for point in curve]
        axes.plot(points, [statistics.median(rates) for rates in curve.values()], "o-", color="#3b6ea5")
        for point, rates in zip(points, curve.values(), strict=True):
            axes.plot([point] * len(rates), rates, "k.", markersize=3)
        axes.set_xlabel(name)
        axes.set_xticks(points)
        axes.set_xlim(0, 1.08 * max(points))
        axes.tick_params(axis="x", labelsize=7, rotation=45)
    plots[0].set_ylim(0, 1.05 * max(rate for curve in found.values() for rates in curve.values() for rate in rates))  # shared by all
    plots[0].set_ylabel("tokens per second")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    (corpus,) = paths(__doc__, "CORPUS")
    found = measure(str(corpus))
    RECORD.write_text(json.dumps({"curves": found, "machine": machine()}, indent=1) + "\n")
    for name, curve in found.items():
        print(f"{name}: " + ", ".join(f"{point}: {statistics.median(rates):,.0f}" for point, rates in curve.items()))
    draw(found)


if __name__ == "__main__":
    main()
