"""What a run tells: metrics.jsonl, TensorBoard, a progress bar. Rank 0 only; on other ranks every call does nothing."""

import json
import math
import sys
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data_tools import aside
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

    def __init__(self, run: Path, ranks: Ranks, step: int, total_steps: int, tokens_per_step: int) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out."""
        self._main = ranks.is_main
        if not self._main:
            return
        kept, self._file = reopen(run / "metrics.jsonl", step)
        self._seen = {row["step"] for row in kept}
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
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
        """Write the row of `row["step"]`; a step that stands already is not written again."""
        if not self._main or row["step"] in self._seen:
            return
        self._seen.add(row["step"])
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")  # JSON has no NaN
        for key, tag in _TAGS.items():
            if key in row:
                self._board.add_scalar(tag, row[key], row["step"])
        self._bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "valid_loss", "mfu") if key in row}, refresh=False)
        if "valid_loss" in row:
            self._board.flush()
            train = f", training loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s" if "loss" in row else ""
            valid = f"validation loss {row['valid_loss']:.3f}, perplexity {row['valid_perplexity']:,.1f}"
            self.say(f"step {row['step']:>6} [{row['stage']}] {valid}{train}")

    def close(self) -> None:
        if self._main:
            self._bar.close()
            self._file.close()
            self._board.close()


def reopen(path: Path, step: int) -> tuple[list[dict[str, Any]], TextIO]:
    """The rows of a metrics.jsonl up to `step`, and the file, open for more, without later ones, of before an interruption."""
    kept = [row for row in read_rows(path) if row["step"] <= step]
    aside.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept, open(path, "a", encoding="utf-8", buffering=1)


def perplexity(loss: float) -> float:
    """exp(loss), infinite instead of an overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; none when there is no file; a last line that was cut short is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
