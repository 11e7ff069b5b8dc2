"""What a file's contents are known by. Imports nothing heavy: commands that answer at once import it."""

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
