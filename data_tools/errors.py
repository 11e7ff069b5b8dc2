"""Mistakes that the user can fix, and how the commands end.

Exit status 2: the user gave something that cannot be used. Exit status 1: something broke.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GIVEN = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG)
"""What is wrong with a path that the user gave, rather than with the disk."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""No room on the disk."""


class UserError(Exception):
    """A mistake in what the user gave. The message names the file or setting, what was expected, what was found, and the way out."""


class RunError(Exception):
    """Something outside the program broke a run (a full disk, a loss that is not finite): exit status 1, and no traceback."""


def first_line(error: Exception) -> str:
    """What a library's exception says, short enough for a message; its type when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def wrong_path(error: OSError) -> str | None:
    """What to say about a path that was given and cannot be used; None when something else is wrong."""
    return f"{error.filename}: {error.strerror}; name another path" if error.filename and error.errno in GIVEN else None


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """The error of a full disk names no file; let it name this place. (Others without a name are not files': a connection's, for one.)"""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = error.filename or str(place)
        raise


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main` and end the process as the contract says: no traceback for a user's mistake, exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # a library's threads may still be working; a normal exit would wait for them, or crash
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a path that cannot be used, else a disk that is full or broken
        full = error.errno in FULL
        if error.filename is None and not full:
            raise
        given = wrong_path(error)
        broken = f"{error.filename or 'writing'}: {error.strerror}" + ("; make room, then give the command again" if full else "")
        print(f"error: {given or broken}", file=sys.stderr)
        sys.exit(2 if given else 1)
