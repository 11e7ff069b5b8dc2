"""Table and picture of benchmarks/real_run.sh: python benchmarks/real_run.py RUNS_FOLDER

Copies the metrics of each finished run to benchmarks/results/real_run/, prints the tables for docs/results.md
and draws docs/real_run.png. Without RUNS_FOLDER it reads the committed records.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RECORDS = Path("benchmarks/results/real_run")
NAMES = {"dictionary": "XPT, dictionary embeddings", "random": "XPT, random embeddings", "scratch": "same net, random weights"}
COLOURS = {"dictionary": "#1b6ca8", "random": "#d1495b", "scratch": "#7a7a7a"}


def collect(runs: Path) -> None:
    """Keep the small record of every finished run."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in runs.iterdir() if (path / "model").is_dir()):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (RECORDS / f"{folder.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(name: str) -> list[dict]:
    path = RECORDS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def speed(rows: list[dict], stage: str) -> float:
    """Median tokens per second of a stage's logged steps."""
    rates = sorted(row["tokens_per_second"] for row in rows if row["stage"] == stage and row.get("tokens_per_second"))
    return rates[len(rates) // 2] if rates else float("nan")


def tables() -> None:
    """Print the search and the full runs as Markdown."""
    rates = sorted({path.stem.split("-", 2)[2] for path in RECORDS.glob("search-*.jsonl")}, key=float)
    print("| validation loss after the search's budget | " + " | ".join(rates) + " |\n|---|" + "---|" * len(rates))
    for arm in NAMES:
        losses = [rows[-1]["valid_loss"] if (rows := read(f"search-{arm}-{rate}")) else float("nan") for rate in rates]
        print(f"| {NAMES[arm]} | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |")
    print("\n| run | tokens | stage 1 end | final loss | perplexity | tokens/s stage 1 | tokens/s stage 2 |\n|---|---|---|---|---|---|---|")
    for arm, name in NAMES.items():
        if rows := read(f"full-{arm}"):
            last, stages = rows[-1], list(dict.fromkeys(row["stage"] for row in rows))
            first_end = [row["valid_loss"] for row in rows if row["stage"] == stages[0] and "valid_loss" in row][-1]
            one = f"{first_end:.3f} | " if len(stages) > 1 else "- | "
            speeds = f"{speed(rows, 'adapt'):,.0f} | {speed(rows, 'all'):,.0f}"
            print(f"| {name} | {last['tokens']:,} | {one}{last['valid_loss']:.3f} | {last['valid_perplexity']:,.1f} | {speeds} |")


def picture() -> None:
    """Validation loss against tokens seen, all arms in one axes."""
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), dpi=130)
    for arm, name in NAMES.items():
        rows = [row for row in read(f"full-{arm}") if "valid_loss" in row]
        steps = [row["step"] * 4096 / 1e6 for row in rows]
        axes.plot(steps, [row["valid_loss"] for row in rows], label=name, color=COLOURS[arm], linewidth=1.8)
    axes.axvline(480 * 4096 / 1e6, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.text(480 * 4096 / 1e6 + 0.03, axes.get_ylim()[1], "XPT: the encoder thaws", va="top", fontsize=8, color="#777777")
    axes.set(xlabel="tokens seen (millions)", ylabel="validation loss (nats per masked token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig("docs/real_run.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    tables()
    picture()
