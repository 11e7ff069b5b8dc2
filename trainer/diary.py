"""What a fine-tuning run tells: its metrics log, and a progress bar, or a line a logged step where nobody watches."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainer.metrics_log import MetricsLog


class Diary:
    """One row per logged step, in `D/metrics.jsonl` and under `D/tensorboard`."""

    def __init__(self, folder: Path, step: int, total_steps: int, batch_size: int) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out."""
        self._log = MetricsLog(folder, step)
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
        self.seconds = self._log.kept[-1].get("seconds", 0.0) if self._log.kept else 0.0
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
        self._log.write(row)
        self._log.draw({_tag(key): value for key, value in row.items() if key not in ("step", "epoch")}, row["step"], flush=True)
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
        self._log.close()


def _tag(key: str) -> str:
    """hold_out_micro_f1 -> hold_out/micro_f1; what is of neither evaluation is of the training."""
    group = next((name for name in ("eval", "hold_out") if key.startswith(f"{name}_")), "train")
    return f"{group}/{key.removeprefix(f'{group}_')}"
