"""The sentences of all documents, aside on disk between the two passes over the text: one a line, documents one after another."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools import wikitext
from data_tools.sentences import split_sentences
from data_tools.sources import Document

BLOCK_BYTES = 1 << 20


class SplitDocuments(NamedTuple):
    """Some documents as sentences: `text` holds a line a sentence, the lists a number a document that has any."""

    text: bytes
    num_bytes: list[int]
    num_sentences: list[int]
    num_without_sentences: int
    failed: list[str]  # titles of the pages that could not be parsed
    position: int  # bytes of the input files read when the last of them was


def split_documents(documents: list[Document]) -> SplitDocuments:
    """Split documents into sentences; a page that cannot be parsed is named, never fatal."""
    parts, num_bytes, num_sentences, failed = [], [], [], []
    num_empty = 0
    for document in documents:
        try:
            text = wikitext.to_paragraphs(document.text) if document.is_wikitext else document.text
        except Exception:  # whatever the parser stumbles over, it costs one page
            failed.append(document.title)
            continue
        sentences = split_sentences(text)
        if not sentences:
            num_empty += 1
            continue
        part = ("\n".join(sentences) + "\n").encode("utf-8", "replace")  # JSON may hold half a surrogate pair
        parts.append(part)
        num_bytes.append(len(part))
        num_sentences.append(len(sentences))
    return SplitDocuments(b"".join(parts), num_bytes, num_sentences, num_empty, failed, documents[-1].position)


def batch_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Tasks for workers: runs of documents of about BLOCK_BYTES characters together."""
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
    """Sentences in a file, and for each document its bytes and its number of sentences."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = open(path, "wb")  # noqa: SIM115  (closed in finish)
        self._num_bytes: list[np.ndarray] = []
        self._num_sentences: list[np.ndarray] = []
        self.num_bytes = np.zeros(0, np.int64)  # of each document, from `finish` on
        self.num_sentences = np.zeros(0, np.int64)

    def add(self, split: SplitDocuments) -> None:
        """Append documents."""
        self._stream.write(split.text)
        self._num_bytes.append(np.asarray(split.num_bytes, np.int64))
        self._num_sentences.append(np.asarray(split.num_sentences, np.int64))

    def finish(self) -> None:
        """No more documents; from now on it can be read."""
        self._stream.close()
        self.num_bytes = np.concatenate([self.num_bytes, *self._num_bytes])
        self.num_sentences = np.concatenate([self.num_sentences, *self._num_sentences])

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """(offset in bytes, documents) of consecutive runs of whole documents, about BLOCK_BYTES each."""
        ends = np.cumsum(self.num_bytes)
        first, offset = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, offset + BLOCK_BYTES, "right")))
            yield offset, slice(first, last)
            first, offset = last, int(ends[last - 1])

    def read(self, offset: int, documents: slice) -> list[str]:
        """The sentences of a block."""
        return read_sentences(self.path, offset, int(self.num_bytes[documents].sum()))


def read_sentences(path: Path, offset: int, num_bytes: int) -> list[str]:
    """The lines of a stretch of a spool file."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        return stream.read(num_bytes).decode("utf-8").split("\n")[:-1]
