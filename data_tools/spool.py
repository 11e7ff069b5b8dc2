"""The sentences of all documents, kept on disk between the two passes over the text: one a line, documents one after another."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_tools import wikitext
from data_tools.duplicates import first_occurrences
from data_tools.filters import SentenceFilter
from data_tools.sentences import make_splitter
from data_tools.sources import Document
from data_tools.vocabulary import INVISIBLE

BLOCK_BYTES = 1 << 20
_INVISIBLE = re.compile(f"[{INVISIBLE}\u200c\u200d]+")  # joiners as well


class SplitDocuments(NamedTuple):
    """Some documents as sentences: `text` holds one sentence a line, the lists one number for each document that has any."""

    text: bytes
    hashes: np.ndarray
    """(lines,) uint64, XXH3 of each line as `_as_compared`."""
    num_bytes: list[int]
    num_sentences: list[int]
    num_without_sentences: int
    left_out: Counter[str]
    """Sentences by the reason of the filter."""
    failed: list[str]
    """Titles of the pages that could not be parsed."""
    position: int
    """Bytes of the input files that had been read with the last of them."""


def split_documents(documents: list[Document], splitter: str, keep: SentenceFilter) -> SplitDocuments:
    """Split documents into sentences that pass the filter; a page that cannot be parsed is named, never fatal."""
    split = make_splitter(splitter)
    parts, num_bytes, num_sentences, failed = [], [], [], []
    hashes: list[int] = []
    num_empty, left_out = 0, Counter[str]()
    for document in documents:
        try:
            text = wikitext.to_paragraphs(document.text, document.namespaces) if document.is_wikitext else document.text
        except Exception:  # whatever the parser stumbles over costs one page only
            failed.append(document.title)
            continue
        lines = []
        for sentence in split(text.replace("\0", "")):  # JSON may hold it, but a file with it is not read as text
            if reason := keep.reason(sentence):
                left_out[reason] += 1
            else:
                lines.append(sentence)
        if not lines:
            num_empty += 1
            continue
        part = ("\n".join(lines) + "\n").encode("utf-8", "replace")  # JSON may hold half a surrogate pair
        parts.append(part)
        hashes += [xxhash.xxh3_64_intdigest(_as_compared(line)) for line in lines]
        num_bytes.append(len(part))
        num_sentences.append(len(lines))
    return SplitDocuments(
        b"".join(parts), np.array(hashes, np.uint64), num_bytes, num_sentences, num_empty, left_out, failed, documents[-1].position
    )


def _as_compared(line: str) -> bytes:
    """The same bytes for lines that look the same: NFKC, without what cannot be seen."""
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", line)).encode("utf-8", "replace")


def batch_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Tasks for workers: runs of documents of about BLOCK_BYTES / 2 characters in all."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BLOCK_BYTES // 2:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Spool:
    """Sentences in a file, one a line; for each document its bytes, its lines, and how many of these are kept."""

    def __init__(self, folder: Path) -> None:
        """A spool in an existing folder, to be filled; or with `load`, one that was finished there."""
        self.path, self._hashes, self._arrays = folder / "sentences.txt", folder / "hashes", folder / "documents.npz"
        self.num_bytes = self.num_lines = self.num_sentences = np.zeros(0, np.int64)  # (documents,), from `fill` or `load` on
        self.kept = np.zeros(0, bool)  # (lines,)

    def fill(self, splits: Iterable[SplitDocuments], keep_duplicates: bool) -> None:
        """Write all documents; of equal sentences keep only the first, unless duplicates are wanted."""
        num_bytes, num_lines = [], []
        with open(self.path, "wb") as text, open(self._hashes, "wb") as hashes:
            for split in splits:
                text.write(split.text)
                hashes.write(split.hashes.tobytes())
                num_bytes.append(np.asarray(split.num_bytes, np.int64))
                num_lines.append(np.asarray(split.num_sentences, np.int64))
        self.num_bytes, self.num_lines = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (num_bytes, num_lines))
        self.kept = np.ones(int(self.num_lines.sum()), bool) if keep_duplicates else first_occurrences(self._hashes)
        self._hashes.unlink()
        np.savez(self._arrays, num_bytes=self.num_bytes, num_lines=self.num_lines, kept=np.packbits(self.kept))
        self._count()

    def load(self) -> None:
        """Open what an earlier `fill` wrote."""
        with np.load(self._arrays) as arrays:
            self.num_bytes, self.num_lines = arrays["num_bytes"], arrays["num_lines"]
            self.kept = np.unpackbits(arrays["kept"], count=int(self.num_lines.sum())).astype(bool)
        self._count()

    def _count(self) -> None:
        self._first_line = np.cumsum(self.num_lines) - self.num_lines
        if len(self.num_lines):
            self.num_sentences = np.add.reduceat(self.kept, self._first_line, dtype=np.int64)

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """(offset in bytes, documents) of consecutive runs of whole documents, about BLOCK_BYTES each."""
        ends = np.cumsum(self.num_bytes)
        first, offset = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, offset + BLOCK_BYTES, "right")))
            yield offset, slice(first, last)
            first, offset = last, int(ends[last - 1])

    def kept_lines(self, documents: slice) -> np.ndarray:
        """Which lines of a block are kept; (lines,) bool."""
        first = int(self._first_line[documents.start])
        return self.kept[first : first + int(self.num_lines[documents].sum())]

    def read(self, offset: int, documents: slice) -> list[str]:
        """The kept sentences of a block."""
        return read_sentences(self.path, offset, int(self.num_bytes[documents].sum()), self.kept_lines(documents))


def read_sentences(path: Path, offset: int, num_bytes: int, kept: np.ndarray) -> list[str]:
    """The kept lines in a stretch of a spool file."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        lines = stream.read(num_bytes).decode("utf-8").split("\n")[:-1]
    return lines if kept.all() else list(compress(lines, kept))
