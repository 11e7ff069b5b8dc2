"""What a fine-tuning run tells: metrics.jsonl, TensorBoard, and a progress bar, or a line a logged step where nobody watches."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.journal import cut_off


class Diary:
    """One row per logged step, in `D/metrics.jsonl` and under `D/tensorboard`."""

    def __init__(self, folder: Path, step: int, total_steps: int, batch_size: int) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out."""
        kept = cut_off(folder / "metrics.jsonl", step)
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (closed in close)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=step * batch_size,
            unit="row",
            dynamic_ncols=True,
            disable=not self._watched,
            smoothing=0.05,
        )
        self._total_steps, self._batch_size = total_steps, batch_size
        self.seconds = kept[-1].get("seconds", 0.0) if kept else 0.0
        """Spent on training until the last `lap`, that of earlier calls of an interrupted run included."""
        self.start_clock()

    def start_clock(self) -> None:
        """Begin the time of a lap, so that evaluations and checkpoints are not in it."""
        self._rows, self._since = 0, time.monotonic()

    def lap(self) -> dict[str, float]:
        """examples_per_second since the clock was started, and seconds: all that was spent on training."""
        lap = time.monotonic() - self._since
        self.seconds += lap
        return {"examples_per_second": self._rows / lap, "seconds": self.seconds}

    def advance(self, rows: int) -> None:
        """One step over so many rows is done."""
        self._rows += rows
        self._bar.update(rows)

    def record(self, row: dict[str, Any]) -> None:
        """Write the row of `row["step"]`; it holds at least step, epoch, loss and examples_per_second."""
        self._file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if key not in ("step", "epoch"):
                group = next((name for name in ("eval", "hold_out") if key.startswith(f"{name}_")), "train")
                self._board.add_scalar(f"{group}/{key.removeprefix(f'{group}_')}", value, row["step"])
        self._board.flush()
        scores = "".join(f", {key.removeprefix('eval_')} {row[key]:.2f}" for key in ("eval_micro_f1", "eval_auprc") if key in row)
        if self._watched:
            self._bar.set_postfix_str(f"loss {row['loss']:.3f}{scores}")
        if scores or not self._watched:
            seconds_left = (self._total_steps - row["step"]) * self._batch_size / row["examples_per_second"]
            speed = f"{row['examples_per_second']:.1f} rows/s, {timedelta(seconds=round(seconds_left))} left"
            self._bar.write(f"epoch {row['epoch']}, step {row['step']}/{self._total_steps}: loss {row['loss']:.3f}{scores}; {speed}")
            sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()
