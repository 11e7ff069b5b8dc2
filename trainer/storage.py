"""Which ranks see the same run folder, and what reaches those that do not.

Hosts may share a file system or not. Where they do not, every host keeps whole copies of the checkpoints: the parts that ranks elsewhere
wrote are sent to it. So any host may be missing at the next start.
"""

import errno
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_tools import lock
from data_tools.aside import flush
from data_tools.errors import UserError
from trainer.checkpoint import Checkpoint, newest
from trainer.ranks import Ranks

PIECE = 1 << 24
"""Bytes sent at a time."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


class _Newest(NamedTuple):
    """The newest good checkpoint of a file system, by what must be the same on all: state.json has a loss that may differ in rounding
    between hosts."""

    step: int
    """-1: none."""
    files: dict[str, Any]


class Storage:
    """The file systems that a run folder lies on."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        """Collective. Writes an empty file into `run`, or the nearest folder above that exists, and removes it again."""
        self._run, self._ranks = run, ranks
        place = nearest_folder(run)
        token = ranks.gather(uuid.uuid4().hex)[0]
        mine = place / f".seen-{token}-{ranks.rank}"
        failure = None
        try:
            mine.touch()
        except OSError as error:
            failure = f"{ranks.name}: {place}: {error.strerror}; choose another --output-dir, or make it writable"
        written = ranks.gather((str(mine), failure))
        seen = [rank for rank, (path, _) in enumerate(written) if Path(path).exists()]
        self._first = ranks.gather(seen[0] if seen else ranks.rank)  # of each rank, the first that shares its file system
        mine.unlink(missing_ok=True)
        problem = next((problem for _, problem in written if problem), None)
        if problem:
            raise UserError(problem)

    @property
    def separate(self) -> bool:
        """Whether there is more than one file system."""
        return len(set(self._first)) > 1

    @property
    def is_first(self) -> bool:
        """Whether this rank does what is done once on a file system."""
        return self._first[self._ranks.rank] == self._ranks.rank

    def describe(self) -> str:
        """For people."""
        if not self.separate:
            return f"{self._run} is one folder for all ranks"
        folders = f"{self._run} is {len(set(self._first))} folders"
        return f"{folders}; each gets whole checkpoints and metrics; TensorBoard and export are on rank 0's host"

    def level(self, check: Callable[[Checkpoint], None]) -> None:
        """Bring the newest good checkpoint that any file system has to all of them. Collective.

        check: raises UserError for a checkpoint of another run. Raises UserError on all ranks when that happens on any, or when a run
        folder is in use.
        """
        if not self.separate:
            return
        here, problem = self._newest_here(check)
        answers, problems = zip(*self._ranks.gather((here, problem)), strict=True)
        if any(problems):
            raise UserError(next(filter(None, problems)))
        best = max(answers, key=lambda answer: answer.step)
        source = answers.index(best)
        if best.step < 0 or all(answers[first] == best for first in self._first):
            return
        lacking = self.is_first and here != best
        if lacking and here.step == best.step:  # both hosts went on alone
            print(
                f"WARNING: {self._ranks.name}: its step {best.step} is of another history; that of rank {source} takes its place",
                flush=True,
            )
        partial = self._run / "checkpoints" / f"step-{best.step}.partial"
        final = partial.with_suffix("")
        self._send(source, final, [*sorted(best.files), "state.json", "complete.json"], partial if lacking else None)
        if lacking:
            shutil.rmtree(final, ignore_errors=True)  # this file system's own, damaged: what is good elsewhere takes its place
            partial.rename(final)
            flush(final.parent)
            lock.hold(self._run)
        self._send(source, self._run, ["recipe.yaml", "metrics.jsonl"], self._run if lacking else None)

    def _newest_here(self, check: Callable[[Checkpoint], None]) -> tuple[_Newest, str | None]:
        """Of this rank's file system, once on each; and what stands against going on here."""
        try:
            if self.is_first and self._run.is_dir():
                lock.hold(self._run)
                found, _ = newest(self._run)
                if found:
                    check(found)
                    files = {name: info for name, info in found.files.items() if name != "state.json"}
                    return _Newest(found.state["step"], files), None
        except UserError as error:
            return _Newest(-1, {}), f"{self._ranks.name}: {error}"
        return _Newest(-1, {}), None

    def spread(self, source: int, folder: Path, names: Iterable[str]) -> None:
        """Bring files of `folder` at rank `source` to that folder on every other file system. Collective.

        Raises OSError on a rank that cannot write them, after all was received.
        """
        if self.separate:
            elsewhere = self.is_first and self._first[source] != self._ranks.rank
            self._send(source, folder, names, folder if elsewhere else None)

    def _send(self, source: int, folder: Path, names: Iterable[str], target: Path | None) -> None:
        """target: where this rank writes what comes; None: nowhere. Files that are not there are left out."""
        failure: OSError | None = None
        for name in names:
            pieces = self._pieces(source, folder / name)
            try:
                if target and not failure:
                    _write(target / name, pieces)
            except OSError as error:
                failure = error
            try:
                for _ in pieces:  # whoever does not write takes part all the same
                    pass
            except OSError as error:  # the source's own
                failure = failure or error
        if failure:
            raise failure

    def _pieces(self, source: int, path: Path) -> Iterator[bytes]:
        """A file of rank `source` on every rank; nothing when it is not there. Raises OSError on `source` when it cannot be read, after as
        many bytes as the others wait for."""
        failure: OSError | None = None
        with ExitStack() as stack:
            size, file = -1, None
            try:
                if self._ranks.rank == source and path.exists():
                    size, file = path.stat().st_size, stack.enter_context(open(path, "rb"))
            except OSError as error:
                size, failure = -1, error
            size = self._ranks.gather(size)[source]
            for begin in range(0, size, PIECE):
                length = min(PIECE, size - begin)
                data = bytes(length)
                try:
                    if file and not failure:
                        data = _exactly(file, length)
                except OSError as error:
                    failure = error
                yield self._ranks.broadcast(data, source)
        if failure:
            raise failure


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise OSError(errno.EIO, "it has become shorter", file.name)
    return data


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    """Write aside, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with open(aside, "wb") as file:
        for piece in pieces:
            file.write(piece)
    flush(aside)
    aside.rename(path)
