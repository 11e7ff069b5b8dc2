"""Decontamination: the sentences of evaluation data, so that a corpus can leave them out."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.compression import DAMAGES, open_decompressed
from data_tools.errors import UserError
from data_tools.filters import content_key, letters_and_digits

LEAST_LETTERS = 10  # a shorter text ("그는 배우이다.") says nothing about an example and occurs in many articles
_JSON = re.compile(r'\s*(\[\s*(\[\s*[\[{"\d]|[{"])|\{\s*")')  # not the wiki link that a text may begin with


def read_exclusions(files: list[Path], split: Callable[[str], list[str]]) -> np.ndarray:
    """Sorted `content_key`s of every text in the files, whole and sentence by sentence.

    files: JSON (KLUE's arrays of objects, or any other: all strings in it), JSON lines, or plain text; compressed ones too. split: the
    corpus's own splitter. Raises UserError for a file that is missing, empty or not text.
    """
    keys = set()
    for file in files:
        found = 0
        for text in _texts(file):
            for part in {text, *split(text)}:
                if len(letters_and_digits(part)) >= LEAST_LETTERS:
                    keys.add(content_key(part))
                    found += 1
        if not found:
            raise UserError(f"--exclude {file}: expected KLUE JSON or plain text, found no text of {LEAST_LETTERS} letters; check it")
    return np.array(sorted(keys), dtype=np.uint64)


def _texts(file: Path) -> Iterator[str]:
    """All strings of JSON or JSON lines; of any other text the lines and their columns."""
    content = _read(file)
    try:
        yield from _strings(json.loads(content))
        return
    except (ValueError, RecursionError) as error:
        problem = str(error)
    found: list[Any] = []
    for number, line in enumerate(content.split("\n"), 1):  # a string may hold U+2028, which splitlines() takes for an end
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            if not _JSON.match(content):
                yield from _lines_and_columns(content)
                return
            where = f"line {number}: {error}" if found else problem
            raise UserError(f"--exclude {file}: begins as JSON, but is neither JSON nor JSON lines ({where}); fix it") from None
    yield from _strings(found)


def _read(file: Path) -> str:
    try:
        with open(file, "rb") as raw, open_decompressed(raw) as stream:
            return stream.read().decode("utf-8-sig")
    except (OSError, *DAMAGES) as error:
        raise UserError(f"--exclude {file}: cannot be read ({getattr(error, 'strerror', None) or error}); check the file") from None
    except UnicodeDecodeError:
        raise UserError(f"--exclude {file}: expected UTF-8 text, found other bytes; convert the file") from None


def _lines_and_columns(content: str) -> Iterator[str]:
    for line in content.splitlines():
        yield from {line, *line.split("\t")}
    for cells in _table(content):
        yield from cells


def _table(content: str) -> list[list[str]]:
    """The cells of a comma-separated table: two or more columns, the same number in every row. Nothing for any other text."""
    try:
        rows = [row for row in csv.reader(io.StringIO(content), strict=True) if row]
    except csv.Error:
        return []
    widths = {len(row) for row in rows}
    return rows if len(widths) == 1 and min(widths) > 1 else []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
