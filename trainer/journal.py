"""What a run tells: metrics.jsonl, TensorBoard, a progress bar. Rank 0 only; on other ranks every call does nothing."""

import errno
import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

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

    def __init__(self, run: Path, ranks: Ranks, step: int, total_steps: int, tokens_per_step: int, patient: bool) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out. patient: on a full disk rows wait for room
        instead of ending the run."""
        self._main = ranks.is_main
        if not self._main:
            return
        self._seen = {row["step"] for row in cut_off(run / "metrics.jsonl", step)}
        self._file = open(run / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115  (closed in close)
        self._waiting, self._patient = b"", patient
        threading.excepthook = _without_tensorboards
        self._board: SummaryWriter | None = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else 0)
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
        self._append(json.dumps(finite).encode() + b"\n")  # JSON has no NaN
        self._draw(row)
        self._bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "valid_loss", "mfu") if row.get(key) is not None}, refresh=False)
        if "valid_loss" in row:
            train = f", training loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s" if row.get("loss") is not None else ""
            valid = f"validation loss {row['valid_loss']:.3f}, perplexity {row['valid_perplexity']:,.1f}"
            self.say(f"step {row['step']:>6} [{row['stage']}] {valid}{train}")

    def _append(self, line: bytes) -> None:
        """Whole lines or nothing, in order."""
        self._waiting += line
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._waiting) != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
            self._waiting = b""
        except OSError as error:
            self._file.truncate(size)
            self._survive(error, len(self._waiting) == len(line))

    def _draw(self, row: dict[str, Any]) -> None:
        """Onto TensorBoard, whose writer does not get over a full disk."""
        if self._board:
            try:
                for key, tag in _TAGS.items():
                    if row.get(key) is not None:
                        self._board.add_scalar(tag, row[key], row["step"])
                if "valid_loss" in row:
                    self._board.flush()
            except OSError as error:
                self._board = None
                self._survive(error, True)

    def _survive(self, error: OSError, say: bool) -> None:
        if not self._patient:
            raise error
        if say:
            self.say(f"WARNING: {error.filename or 'metrics'}: {error.strerror}; going on, make room")

    def catch_up(self) -> None:
        """Write the rows that wait for room. Raises OSError when there still is none."""
        if self._main and self._waiting:
            self._patient = False
            self._append(b"")

    def close(self) -> None:
        """Raises as `catch_up` does."""
        if self._main:
            self._bar.close()
            self.catch_up()
            self._file.close()
            if self._board:
                try:
                    self._board.close()
                except OSError as error:
                    self._survive(error, True)


def _without_tensorboards(happened: threading.ExceptHookArgs) -> None:
    """Its writing thread ends by a full disk with a traceback; the next call of the writer raises the same error, which is dealt with."""
    if not (isinstance(happened.exc_value, OSError) and type(happened.thread).__module__.startswith("tensorboard")):
        threading.__excepthook__(happened)


def cut_off(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl up to `step`; later ones, of before an interruption, are taken out of the file."""
    kept = [row for row in read_rows(path) if row["step"] <= step] if step else []  # what stands there is perhaps another model's
    aside.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


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
