"""metrics.jsonl: no row of a run that began anew, and on a full disk none is lost."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_tools.errors import UserError
from trainer.journal import Journal
from trainer.metrics_log import cut_off, read_rows


def test_a_start_from_the_beginning_keeps_no_row_of_before(tmp_path: Path) -> None:
    for step, kept in ((0, []), (2, [0, 1, 2])):
        (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {number}}}\n' for number in range(4)))
        rows = cut_off(tmp_path / "metrics.jsonl", step)
        assert [row["step"] for row in rows] == kept == [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]


def test_only_a_last_line_may_be_cut_short(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2}\n{"step"')
    assert read_rows(metrics) == [{"step": 1}, {"step": 2}]
    metrics.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: expected JSON, found .*; repair or remove the line"):
        cut_off(metrics, 3)
    assert metrics.read_text().endswith('{"step": 3}\n')


def test_on_a_full_disk_rows_wait_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        """A file whose disk takes half a line more."""

        def __init__(self, file: Any) -> None:
            self.file, self.name = file, file.name

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return self.file.write(data[: len(data) // 2])

    main: Any = SimpleNamespace(is_main=True)
    journal, full = Journal(tmp_path, main, 0, 9, 9, patient=True), None
    for step in range(1, 6):
        if step in (2, 4):
            journal._log._file, full = (Full(journal._log._file), journal._log._file) if step == 2 else (full, None)
        journal.record({"step": step, "stage": "one"})
        assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 2 if step in (2, 3) else step + 1))
    assert capsys.readouterr().out.count("WARNING") == 1

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    board, journal._log._board = journal._log._board, SimpleNamespace(add_scalar=refuse, flush=refuse, close=refuse)  # type: ignore[assignment]
    assert board
    board.close()
    journal.record({"step": 5.5, "stage": "one", "loss": 1.0})
    assert journal._log._board is None and capsys.readouterr().out.count("WARNING") == 1
    journal._log._file = Full(journal._log._file)
    journal.record({"step": 6, "stage": "one"})
    with pytest.raises(OSError, match="No space left"):
        journal.catch_up()
    journal = Journal(tmp_path, main, 5, 9, 9, patient=False)
    journal._log._file = Full(journal._log._file)
    with pytest.raises(OSError, match="No space left"):
        journal.record({"step": 6, "stage": "one"})
