"""Files that stand there whole or not at all."""

from contextlib import suppress
from pathlib import Path

from data_tools.errors import GIVEN, UserError


def write_text(path: Path, text: str) -> None:
    """Write PATH.partial, then give it its name. What is no file (/dev/stdout) is written to; of a link, what it leads to. Makes the folder
    when it is missing.

    Half of a surrogate pair, which is what Python makes of a byte in a file's name that is not UTF-8, is written as JSON writes it.
    Raises UserError when the place is wrong, OSError when the disk is (full).
    """
    target = path.resolve()
    partial = target.with_name(target.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno not in GIVEN:
            error.filename = error.filename or str(path)  # a full disk's says no name
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from None
