"""What a post-training run tells: its metrics log, a progress bar, lines for people. On ranks other than 0 every call does nothing."""

import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainer.metrics_log import MetricsLog
from trainer.ranks import Ranks

# TensorBoard sorts by name: what one looks at first comes first.
_TAGS = {
    "loss": "loss/train",
    "valid_loss": "loss/valid",
    "valid_perplexity": "loss/valid_perplexity",
    "lr": "optimizer/learning_rate",
    "grad_norm": "optimizer/gradient_norm",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
}


class Journal:
    """One row per logged step, in `RUN/metrics.jsonl` and under `RUN/tensorboard`."""

    def __init__(self, run: Path, ranks: Ranks, step: int, total_steps: int, tokens_per_step: int, patient: bool) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out. patient: on a full disk rows wait for room
        instead of ending the run."""
        self._main = ranks.is_main
        if not self._main:
            return
        self._log = MetricsLog(run, step, self.say if patient else None)
        self._bar = tqdm(
            total=total_steps * tokens_per_step, initial=step * tokens_per_step, unit="tok", unit_scale=True, dynamic_ncols=True,
            disable=not sys.stderr.isatty(), smoothing=0.05,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """A line for people."""
        if self._main:
            with self._bar.external_write_mode(file=sys.stdout):
                print(text, flush=True)

    def advance(self, tokens: int, stage: str) -> None:
        """Move the progress bar by one step."""
        if self._main:
            self._bar.set_description(stage, refresh=False)
            self._bar.update(tokens)

    def record(self, row: dict[str, Any]) -> None:
        """Write the row of a step that has none yet."""
        if not self._main:
            return
        self._log.write(row)
        curves = {tag: row[key] for key, tag in _TAGS.items() if row.get(key) is not None}
        self._log.draw(curves, row["step"], flush="valid_loss" in row)
        self._bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "valid_loss", "mfu") if row.get(key) is not None}, refresh=False)
        if "valid_loss" in row:
            train = f", training loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s" if row.get("loss") is not None else ""
            valid = f"validation loss {row['valid_loss']:.3f}, perplexity {row['valid_perplexity']:,.1f}"
            self.say(f"step {row['step']:>6} [{row['stage']}] {valid}{train}")

    def catch_up(self) -> None:
        """Write the rows that wait for room. Raises OSError when there still is none."""
        if self._main:
            self._log.catch_up()

    def close(self) -> None:
        """Raises as `catch_up` does."""
        if self._main:
            self._bar.close()
            self._log.close()


def perplexity(loss: float) -> float:
    """exp(loss), infinite instead of an overflow."""
    return math.exp(loss) if loss < 700 else math.inf
