"""The indexed dataset, against DeepSpeed's reader (the oracle) and against its own bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset

from data_tools.errors import UserError
from data_tools.mmididx import IndexedDataset, IndexedDatasetWriter, write_dataset


def random_documents(seed: int, high: int) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        [generator.integers(0, high, generator.integers(1, 20)) for _ in range(generator.integers(1, 6))]
        for _ in range(generator.integers(20, 40))
    ]


def add_documents(writer: IndexedDatasetWriter, documents: list[list[np.ndarray]]) -> None:
    items = [item for document in documents for item in document]
    writer.add_documents(
        np.concatenate(items), np.array([len(item) for item in items]), np.array([len(document) for document in documents])
    )


def write_items(prefix: Path, documents: list[list[np.ndarray]], dtype: type) -> None:
    """One document at a time."""
    with write_dataset(prefix, dtype) as writer:
        for document in documents:
            add_documents(writer, [document])


@pytest.mark.parametrize(("dtype", "high"), [(np.uint16, 65536), (np.int32, 250_000), (np.int64, 2**40)])
def test_deepspeed_and_we_read_the_same(tmp_path: Path, dtype: type, high: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.mmididx._CHUNK", 17)
    documents = random_documents(0, high)
    write_items(tmp_path / "data", documents, dtype)
    items = [item for document in documents for item in document]
    ours, oracle = IndexedDataset(tmp_path / "data"), MMapIndexedDataset(str(tmp_path / "data"), skip_warmup=True)
    assert len(ours) == len(oracle) == len(items)
    for index, item in enumerate(items):
        np.testing.assert_array_equal(ours[index], item)
        np.testing.assert_array_equal(oracle[index], item)
    np.testing.assert_array_equal(ours.sizes, oracle.sizes)
    np.testing.assert_array_equal(ours.document_index, oracle.doc_idx)
    assert ours.document_index.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    np.testing.assert_array_equal(ours.tokens, np.concatenate(items))
    assert ours.tokens.dtype == oracle.dtype == dtype and ours.sizes.dtype == np.int32 and ours.document_index.dtype == np.int64


def test_bulk_writing_gives_the_same_bytes(tmp_path: Path) -> None:
    documents = random_documents(1, 1000)
    write_items(tmp_path / "one", documents, np.uint16)
    with write_dataset(tmp_path / "bulk", np.uint16) as writer:
        for some in (documents[:1], documents[1:5], documents[5:]):
            add_documents(writer, some)
    for extension in (".bin", ".idx"):
        assert (tmp_path / f"one{extension}").read_bytes() == (tmp_path / f"bulk{extension}").read_bytes()


def test_the_bytes_of_the_index(tmp_path: Path) -> None:
    write_items(tmp_path / "data", [[np.array([1, 2, 3]), np.array([4])], [np.array([5, 6])]], np.uint16)
    assert (tmp_path / "data.bin").read_bytes() == bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0])
    index = (tmp_path / "data.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0" and index[9:17] == (1).to_bytes(8, "little") and index[17] == 6
    assert np.frombuffer(index, "<u8", 2, 18).tolist() == [3, 3]
    assert np.frombuffer(index, "<i4", 3, 34).tolist() == [3, 1, 2]
    assert np.frombuffer(index, "<i8", 6, 46).tolist() == [0, 6, 8, 0, 2, 3]  # offsets, then documents
    assert len(index) == 46 + 48


def test_an_empty_dataset_opens(tmp_path: Path) -> None:
    write_items(tmp_path / "data", [], np.uint16)
    dataset = IndexedDataset(tmp_path / "data")
    assert len(dataset) == 0 and len(dataset.tokens) == 0 and dataset.document_index.tolist() == [0]


def test_nothing_is_left_by_a_writer_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit uint16"), write_dataset(tmp_path / "data", np.uint16) as writer:
        add_documents(writer, [[np.array([1, 2])]])
        assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}  # killed here, it leaves no file of its final name
        add_documents(writer, [[np.array([65536])]])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_on_a_full_disk(tmp_path: Path) -> None:
    """A limit on a file's size stands for the disk; in a process of its own."""
    code = f"""
import resource, signal, numpy
from data_tools.mmididx import write_dataset
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
with write_dataset({str(tmp_path / "data")!r}, numpy.uint16) as writer:
    for _ in range(COUNT):
        writer.add_documents(numpy.array([1, 2, 3]), numpy.array([3]), numpy.array([1]))
"""
    for count in ("9000", "20"):  # the second is written when the files are closed
        done = subprocess.run([sys.executable, "-c", code.replace("COUNT", count)], capture_output=True, text=True)
        assert "File too large" in done.stderr and list(tmp_path.iterdir()) == [], done.stderr


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "data", random_documents(2, 100), np.uint16)
    index, data = (tmp_path / "data.idx").read_bytes(), (tmp_path / "data.bin").read_bytes()
    damages = {
        "expected .* bytes, found": (index, data[:-1]),
        "cut short or altered": (index[:-8], data),
        "another format": (b"TNTIDX\0\0" + index[8:], data),
        "dtype code 9": (index[:17] + bytes([9]) + index[18:], data),
        "index, found another": (index[:20], data),
    }
    for message, (bad_index, bad_data) in damages.items():
        (tmp_path / "data.idx").write_bytes(bad_index)
        (tmp_path / "data.bin").write_bytes(bad_data)
        with pytest.raises(UserError, match=message):
            IndexedDataset(tmp_path / "data")
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match="found none"):
        IndexedDataset(tmp_path / "data")
