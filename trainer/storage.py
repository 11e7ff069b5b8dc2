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
from typing import BinaryIO

from data_tools import lock
from data_tools.errors import UserError
from trainer.checkpoint import Checkpoint, flush, newest
from trainer.ranks import Ranks

PIECE = 1 << 24
"""Bytes sent at a time."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


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
        found, problem = None, None
        try:
            if self.is_first and self._run.is_dir():
                lock.hold(self._run)
                found, _ = newest(self._run)
                if found:
                    check(found)
        except UserError as error:
            problem = f"{self._ranks.name}: {error}"
        # state.json has a loss that hosts may round otherwise; what it describes must be the same
        files = {name: info for name, info in found.files.items() if name != "state.json"} if found else {}
        answers = self._ranks.gather((problem, found.state["step"] if found else -1, files))
        problem = next((text for text, _, _ in answers if text), None)
        if problem:
            raise UserError(problem)
        step = max(step for _, step, _ in answers)
        source = next(rank for rank, (_, theirs, _) in enumerate(answers) if theirs == step)
        wanted = answers[source][1:]
        if step < 0 or all(answers[first][1:] == wanted for first in self._first):
            return
        lacking = self.is_first and answers[self._ranks.rank][1:] != wanted
        if lacking and answers[self._ranks.rank][1] == step:  # both hosts went on alone
            print(f"WARNING: {self._ranks.name}: its step {step} is of another history; that of rank {source} takes its place", flush=True)
        partial = self._run / "checkpoints" / f"step-{step}.partial"
        final = partial.with_suffix("")
        self._send(source, final, [*sorted(wanted[1]), "state.json", "complete.json"], partial if lacking else None)
        if lacking:
            shutil.rmtree(final, ignore_errors=True)  # this file system's own, damaged: what is good elsewhere takes its place
            partial.rename(final)
            flush(final.parent)
            lock.hold(self._run)
        self._send(source, self._run, ["recipe.yaml", "metrics.jsonl"], self._run if lacking else None)

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
