"""MMIDIDX indexed datasets: a .bin file of token ids and an .idx file that says where its items and documents are.

The format is Megatron-LM's, which DeepSpeed 0.19.8 reads (`MMapIndexedDataset`). All numbers are little-endian:

    9 bytes   magic                     u64  version, 1              u8  code of the token dtype
    u64       number of items           u64  length of the document index
    i32 each  item sizes, in tokens     i64 each  item offsets, in bytes     i64 each  document index, in items

The document index begins with 0 and ends with the number of items: document d holds the items index[d]:index[d+1].
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_tools.aside import replacing
from data_tools.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.uint16, 7: np.uint32, 8: np.uint64}
_HEADER = struct.Struct("<9sQBQQ")
_CHUNK = 1 << 20  # items whose offsets are computed together


@contextmanager
def write_dataset(path_prefix: str | Path, dtype: type) -> Iterator["IndexedDatasetWriter"]:
    """A writer of PREFIX.bin and PREFIX.idx. They get their names at the end of the block; a run that fails or is killed leaves neither."""
    with (
        replacing(Path(f"{path_prefix}.idx")) as index_path,
        replacing(Path(f"{path_prefix}.bin")) as bin_path,
        open(index_path, "w+b") as index_file,
        open(bin_path, "wb") as bin_file,
    ):
        writer = IndexedDatasetWriter(bin_file, index_file, dtype)
        yield writer
        writer.finish()


class IndexedDatasetWriter:
    """Writes the two files of a dataset; see `write_dataset`."""

    def __init__(self, bin_file: BinaryIO, index_file: BinaryIO, dtype: type) -> None:
        codes = {np.dtype(known): code for code, known in DTYPES.items()}
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dtype_code = codes[np.dtype(dtype)]
        self._document_ends: list[np.ndarray] = []
        self._num_items = 0
        self.num_tokens = 0
        self._bin, self._index = bin_file, index_file
        self._index.write(bytes(_HEADER.size))  # the sizes follow as they come: memory holds a number for each document, not each sentence

    def add_documents(self, ids: np.ndarray, sizes: np.ndarray, items_per_document: np.ndarray) -> None:
        """Append whole documents: ids (tokens,), sizes (items,) and items_per_document (documents,)."""
        assert sizes.sum() == len(ids) and items_per_document.sum() == len(sizes)
        if not len(sizes):
            return
        limits = np.iinfo(self._dtype.name)
        if len(ids) and (ids.min() < limits.min or ids.max() > limits.max):
            raise ValueError(f"token ids from {ids.min()} to {ids.max()} do not fit {self._dtype}")
        self._bin.write(ids.astype(self._dtype).tobytes())
        self._index.write(sizes.astype("<i4").tobytes())
        self._document_ends.append(self._num_items + np.cumsum(items_per_document, dtype="<i8"))
        self.num_tokens += len(ids)
        self._num_items += len(sizes)

    def finish(self) -> None:
        """Complete the index: offsets, documents and, over the zeros at its beginning, the header."""
        document_index = np.concatenate([np.zeros(1, "<i8"), *self._document_ends]).astype("<i8")
        end = 0
        for first in range(0, self._num_items, _CHUNK):
            count = min(_CHUNK, self._num_items - first)
            self._index.seek(_HEADER.size + 4 * first)
            sizes = np.frombuffer(self._index.read(4 * count), "<i4").astype("<i8")
            ends = end + np.cumsum(sizes)
            self._index.seek(_HEADER.size + 4 * self._num_items + 8 * first)
            self._index.write(((ends - sizes) * self._dtype.itemsize).astype("<i8").tobytes())
            end = int(ends[-1])
        self._index.seek(0, os.SEEK_END)
        self._index.write(document_index.tobytes())
        self._index.seek(0)
        self._index.write(_HEADER.pack(MAGIC, VERSION, self._dtype_code, self._num_items, len(document_index)))


class IndexedDataset:
    """PREFIX.bin and PREFIX.idx, memory-mapped: opening one of any size reads nothing but the header.

    tokens: all ids in file order, flat, shape (tokens,)
    sizes: int32, tokens of each item, shape (items,)
    offsets: int64, where each item begins in `tokens`'s bytes, shape (items,)
    document_index: int64, shape (documents + 1,), first item of each document; begins with 0, ends with the number of items
    path: PREFIX.bin

    Raises UserError when a file is missing, cut short or of another format.
    """

    def __init__(self, path_prefix: str | Path) -> None:
        index_path, bin_path = Path(f"{path_prefix}.idx"), Path(f"{path_prefix}.bin")
        self.path = bin_path
        for path in (index_path, bin_path):
            if not path.is_file():
                raise UserError(f"{path}: expected a file of an indexed dataset, found none; make the corpus with data_tools.prepare")
        with open(index_path, "rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{index_path}: expected an MMIDIDX index, found another format; make the corpus anew")
        _, version, dtype_code, num_items, num_ends = _HEADER.unpack(header)
        if version != VERSION or dtype_code not in DTYPES:
            raise UserError(f"{index_path}: expected MMIDIDX version 1 of an integer dtype, found {version}, dtype code {dtype_code}")
        _check_size(index_path, _HEADER.size + 12 * num_items + 8 * num_ends)
        self.sizes = _map(index_path, "<i4", _HEADER.size, num_items)
        self.offsets = _map(index_path, "<i8", _HEADER.size + 4 * num_items, num_items)
        self.document_index = _map(index_path, "<i8", _HEADER.size + 12 * num_items, num_ends)
        dtype = np.dtype(DTYPES[dtype_code]).newbyteorder("<")
        num_bytes = int(self.offsets[-1]) + int(self.sizes[-1]) * dtype.itemsize if num_items else 0
        _check_size(bin_path, num_bytes)
        self.tokens = _map(bin_path, dtype, 0, num_bytes // dtype.itemsize)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> np.ndarray:
        """The ids of one item, a view of the mapped file."""
        start = int(self.offsets[item]) // self.tokens.itemsize
        return self.tokens[start : start + int(self.sizes[item])]


def _map(path: Path, dtype: str | np.dtype, offset: int, length: int) -> np.ndarray:
    if not length:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(length,))


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size
    if found != expected:
        raise UserError(f"{path}: expected {expected} bytes, found {found}: the file is cut short or altered; make the corpus anew")
