"""Files that stand there whole or not at all."""

from pathlib import Path

from data_tools.errors import GIVEN, UserError


def write_text(path: Path, text: str) -> None:
    """Write PATH.partial, then give it its name. What is no file (/dev/stdout) is written to. Makes the folder when it is missing.

    Raises UserError when the place is wrong, OSError when the disk is (full).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        if error.errno not in GIVEN:
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from None
