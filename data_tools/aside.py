"""Files that are there whole or not at all: written under a temporary name, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_tools.errors import GIVEN, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path, PATH.partial; the file written there takes PATH's place at the end of the block, or is removed on an error.

    A link stays: the file it leads to is replaced. What is not a file (/dev/stdout, a pipe) is itself the path to write to.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    partial = target.with_name(target.name + ".partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file by way of `replacing`. Makes the folder when it is missing.

    Half of a surrogate pair, which is what Python makes of a byte in a file's name that is not UTF-8, is written as JSON writes it.
    Raises UserError when the place is wrong, OSError when the disk is (full).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        if error.errno not in GIVEN:
            error.filename = error.filename or str(path)  # the error of a full disk names no file
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from None


def flush(*paths: Path) -> None:
    """Wait until these files (of a folder: its list of names) are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
