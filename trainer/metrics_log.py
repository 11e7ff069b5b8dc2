"""Figures of a run, a row a logged step: in `metrics.jsonl`, and as curves under `tensorboard`."""

import errno
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from data_tools import aside
from data_tools.errors import UserError


class MetricsLog:
    """Writes both. A file holds whole rows only, whatever the disk does."""

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None] | None = None) -> None:
        """step: finished steps; rows beyond it, written before an interruption, are taken out. warn: what to call when the disk is full,
        after which rows wait for room; without it that raises OSError."""
        self.kept = cut_off(folder / "metrics.jsonl", step)
        self._file = open(folder / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115  (closed in close)
        self._waiting, self._warn = b"", warn
        threading.excepthook = _without_tensorboards
        self._board: SummaryWriter | None = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)

    def write(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl. What is not finite becomes null: JSON has no NaN."""
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        self._append(json.dumps(finite).encode() + b"\n")

    def draw(self, curves: dict[str, float], step: int, flush: bool) -> None:
        """Points on TensorBoard: a value for each tag. flush: show them now."""
        if self._board:
            try:
                for tag, value in curves.items():
                    self._board.add_scalar(tag, value, step)
                if flush:
                    self._board.flush()
            except OSError as error:  # its writer does not get over a full disk
                self._board = None
                self._survive(error, True)

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

    def _survive(self, error: OSError, say: bool) -> None:
        if not self._warn:
            raise error
        if say:
            self._warn(f"WARNING: {error.filename or 'metrics'}: {error.strerror}; going on, make room")

    def catch_up(self) -> None:
        """Write the rows that wait for room. Raises OSError when there still is none."""
        if self._waiting:
            self._warn = None
            self._append(b"")

    def close(self) -> None:
        """Raises as `catch_up` does."""
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; none when there is no file; a last line that was cut short is left out. Raises UserError for any other
    line that is no row."""
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):  # cut short; of a whole file nothing stands after the last line's end
                break
            raise UserError(f"{path}, line {number}: expected JSON, found {line[:40]!r}; repair or remove the line") from None
    return rows
