"""Training speed beside Hugging Face's Trainer, with the same model, text, tokens a step, precision, dropout and cores.

    python -m benchmarks.speed --corpus CORPUS [--pairs 5] [--only minilm-stage2 ...]        # or: make bench

Measured: tokens per second, and per second of CPU time; the ratio of the two sides is the median over pairs of launches. Each side runs as
a program of its own, and the two alternate; benchmarks/README.md says what each computes. Prints a table, and writes
benchmarks/results/speed/*.json and docs/speed.png.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.origin import commit, processor
from data_tools.corpus import Corpus
from data_tools.errors import UserError, run_command

RESULTS = Path("benchmarks/results/speed")
SIDE = "benchmarks.speed_sides"


@dataclass(frozen=True)
class Row:
    """A line of the table. steps: of 4,096 tokens, after two that are not counted."""

    name: str
    shape: str
    length: int
    stage: str
    theirs_freezes: bool
    compiled: bool
    steps: int
    theirs_keeps_memory: bool = False
    """As trainer/memory.py has it, which no user of theirs would come upon: how much of the ratio that is."""


ROWS = [
    Row("minilm-stage2", "minilm", 128, "all", False, False, 4),
    Row("minilm-stage1", "minilm", 128, "adapt", False, False, 4),
    Row("minilm-stage1-frozen", "minilm", 128, "adapt", True, False, 4),
    Row("minilm-stage2-memory-kept", "minilm", 128, "all", False, False, 4, theirs_keeps_memory=True),
    Row("base-stage2", "base", 512, "all", False, False, 2),
    Row("base-stage1", "base", 512, "adapt", False, False, 2),
    Row("minilm-stage2-compiled", "minilm", 128, "all", False, True, 4),
]
SPREADS = [(2, 1), (1, 2)]  # ranks, threads of each
ATTENTIONS = {"ours": [""], "theirs": ["sdpa", "eager"]}  # theirs: transformers' default, and what may be faster on CPU
Place = tuple[int, int, str]  # ranks, threads, attention


def run(side: str, row: Row, corpus: str, place: Place, steps: int | None = None, more: Sequence[str] = ()) -> dict[str, float]:
    """One launch of one side: {tokens_per_second, ...} as its rank 0 prints it. more: arguments, which replace the row's."""
    ranks, threads, attention = place
    words = ["--side", side, "--shape", row.shape, "--length", str(row.length), "--stage", row.stage, "--corpus", corpus,
             "--steps", str(steps or row.steps)]  # fmt: skip
    words += ["--attention", attention] * bool(attention)
    words += ["--freeze"] * (side == "theirs" and row.theirs_freezes) + ["--compile"] * (side == "theirs" and row.compiled)
    words += ["--keep-memory"] * (side == "theirs" and row.theirs_keeps_memory)
    words += more
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=29611", "-m", SIDE, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tokens_per_second"')]
    if done.returncode or not lines:
        raise SystemExit(f"{side}, {row.name}, {ranks} x {threads} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(lines[-1])
    return result


def measure(row: Row, corpus: str, pairs: int) -> dict[str, object]:
    """Both sides in their fastest place (one trial of each), then `pairs` pairs, in turn begun by one and the other."""
    trials: dict[str, dict[Place, float]] = {}
    for side, attentions in ATTENTIONS.items():
        places = [(*spread, attention) for spread in SPREADS for attention in attentions]
        trials[side] = {place: run(side, row, corpus, place, steps=2)["tokens_per_second"] for place in places}
    best = {side: max(found, key=lambda place, found=found: found[place]) for side, found in trials.items()}  # type: ignore[misc]
    orders = [("ours", "theirs"), ("theirs", "ours")]
    measured = [{side: run(side, row, corpus, best[side]) for side in orders[pair % 2]} for pair in range(pairs)]
    rates = {side: [pair[side]["tokens_per_second"] for pair in measured] for side in ("ours", "theirs")}
    cpu = [pair["ours"]["tokens_per_cpu_second"] / pair["theirs"]["tokens_per_cpu_second"] for pair in measured]
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True)]
    return {
        "row": row.name, "ratio": statistics.median(ratios), "ratios": ratios,
        "cpu_ratio": statistics.median(cpu), **rates,
        "trials": {side: {f"{r}x{t} {a}".strip(): rate for (r, t, a), rate in found.items()} for side, found in trials.items()},
        "place": {side: f"{r} ranks x {t} threads {a}".strip() for side, (r, t, a) in best.items()}, "pairs": measured,
        "machine": machine(),
    }  # fmt: skip


def measure_ranks(corpus: str, pairs: int) -> dict[str, object]:
    """2 ranks of one thread over 1 rank of one thread."""
    row = ROWS[0]
    measured = [[run("ours", row, corpus, (ranks, 1, ""))["tokens_per_second"] for ranks in (1, 2)] for _ in range(pairs)]
    ratios = [two / one for one, two in measured]
    return {"row": "ranks", "ratio": statistics.median(ratios), "ratios": ratios, "pairs": measured,
            "machine": machine()}  # fmt: skip


def machine() -> dict[str, str]:
    import deepspeed
    import torch
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, transformers, deepspeed)}
    cores = str(os.cpu_count())
    return {"cpu": processor(), "cores": cores, "commit": commit(), "python": platform.python_version(), **versions}


def picture() -> None:
    """docs/speed.png from the committed records."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [json.loads((RESULTS / f"{row.name}.json").read_text()) for row in ROWS if (RESULTS / f"{row.name}.json").exists()]
    figure, axes = pyplot.subplots(figsize=(8, 0.6 * len(found) + 1.2))
    for number, result in enumerate(found):
        axes.barh(number, result["ratio"], color="#3b6ea5")
        axes.plot(result["ratios"], [number] * len(result["ratios"]), "k.", markersize=4)
    axes.set_yticks(range(len(found)), [result["row"] for result in found])
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, ours over Hugging Face's Trainer (dots: pairs)")
    figure.tight_layout()
    figure.savefig("docs/speed.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a corpus of 32,000 pieces")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*(row.name for row in ROWS), "ranks"], help="these rows (default: all)")
    arguments = parser.parse_args()
    if (pieces := Corpus.open(arguments.corpus).vocab_size) != 32_000:
        raise UserError(f"--corpus {arguments.corpus}: expected 32,000 pieces, found {pieces:,}; benchmarks/README.md has the command")
    RESULTS.mkdir(parents=True, exist_ok=True)
    print("| row | ours, tokens/s | theirs | ratio | ratio in CPU seconds | ours, of the multiplication rate |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for row in ROWS:
        if arguments.only and row.name not in arguments.only:
            continue
        result = measure(row, arguments.corpus, arguments.pairs)
        (RESULTS / f"{row.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        ours, theirs = (statistics.median(result[side]) for side in ("ours", "theirs"))  # type: ignore[call-overload]
        share = statistics.median(pair["ours"]["mfu"] for pair in result["pairs"])  # type: ignore[attr-defined]
        figures = [f"{ours:,.0f}", f"{theirs:,.0f}", f"{result['ratio']:.2f}", f"{result['cpu_ratio']:.2f}"]
        print(f"| {' | '.join([row.name, *figures, f'{share:.0%}'])} |", flush=True)
    if not arguments.only or "ranks" in arguments.only:
        result = measure_ranks(arguments.corpus, arguments.pairs)
        (RESULTS / "ranks.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"2 ranks of one thread over 1: {result['ratio']:.2f}", flush=True)
    picture()


if __name__ == "__main__":
    run_command(main)
