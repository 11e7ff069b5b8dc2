"""What a run spends on other things than training: start-up, validation, logging and checkpoints.

    python -m benchmarks.overheads CORPUS        # under a minute

Measured: seconds of each of these, and their share of the time of the steps at the recipe's default intervals. The run is launched as the
quickstart's is (2 ranks of one thread, MiniLM shape) for 40 steps; functions of trainer/xpt.py are timed on rank 0. Prints the figures,
and writes them with the seconds of every call to benchmarks/results/overheads.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.command import paths

RECORD = Path("benchmarks/results/overheads.json")
STEPS, EVERY = 40, 20


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds.append(time.perf_counter() - begin)

    return wrapper


def inside() -> None:
    """A rank of the launched run."""
    from trainer import xpt
    from trainer.ranks import run_on_ranks

    found: dict[str, list[float]] = {name: [] for name in ("train_step", "draw", "validate", "record", "forward_check", "save", "finish")}
    first: list[float] = []
    train_step = timed(xpt.train_step, found["train_step"])

    def first_step(*arguments: Any) -> Any:
        result = train_step(*arguments)
        if not first:
            first.append(time.time() - float(os.environ["LAUNCHED"]))
        return result

    xpt.train_step = first_step
    xpt.draw = timed(xpt.draw, found["draw"])
    xpt.validate = timed(xpt.validate, found["validate"])
    xpt.Journal.record = timed(xpt.Journal.record, found["record"])  # type: ignore[method-assign]
    xpt.forward_check = timed(xpt.forward_check, found["forward_check"])
    xpt.Saver.save = timed(xpt.Saver.save, found["save"])  # type: ignore[method-assign]
    xpt.Saver.finish = timed(xpt.Saver.finish, found["finish"])  # type: ignore[method-assign]

    def main() -> None:
        xpt.main()
        if os.environ["RANK"] == "0":
            Path(os.environ["MEASURED"]).write_text(json.dumps({**found, "start_up": first}))

    run_on_ranks(main)


def launch(corpus: str, folder: Path, recipe: str) -> dict[str, list[float]]:
    """A short run under the clocks of this file, by the launcher: {part: seconds of each call}."""
    measured = folder / "measured.json"
    stages = f"[{{name: all, train: [all], steps: {STEPS}, learning_rate: 1.0e-4}}]"
    words = [
        str(Path(sys.executable).with_name("deepspeed")), "--hostfile", "hostfiles/localhost", "--no_ssh_check",
        "--master_addr", "127.0.0.1",
        "benchmarks/overheads.py", "--recipe", recipe, "--ds-config", "ds_configs/zero2_cpu.json", "--corpus", corpus,
        "--output-dir", str(folder / "run"), "--set", f"stages={stages}", "surgery.embedding_init=random", "validation_blocks=1024",
        f"every.evaluate={EVERY}", f"every.checkpoint={EVERY}", "every.log=10",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LAUNCHED": str(time.time()), "MEASURED": str(measured), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found: dict[str, list[float]] = json.loads(measured.read_text())
    return found


def main() -> None:
    (corpus,) = paths(__doc__, "CORPUS")
    with tempfile.TemporaryDirectory() as folder:
        fresh = launch(str(corpus), Path(folder), "recipes/minilm.yaml")
    step = statistics.median(fresh["train_step"][2:]) + statistics.median(fresh["draw"][2:])
    every = {"validate": 500, "forward_check": 500, "save": 500, "finish": 500, "record": 10}  # the recipe's defaults
    shares = {name: statistics.median(fresh[name]) / steps / step for name, steps in every.items()}
    reading = statistics.median(fresh["draw"][2:]) / step
    for name, share in shares.items():
        print(f"{name}: {statistics.median(fresh[name]):.3f} s, every {every[name]} steps of {step:.3f} s: {share:.2%}")
    print(f"together {sum(shares.values()):.2%}; reading, masking and the ranks' sum {reading:.2%}")
    print(f"start-up, from launch to the end of the first step, surgery included: {fresh['start_up'][0]:.1f} s")
    RECORD.write_text(json.dumps({"step_seconds": step, "shares": shares, "reading": reading, "measured": fresh}) + "\n")


if __name__ == "__main__":
    inside() if "MEASURED" in os.environ else main()
