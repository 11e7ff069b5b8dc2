"""What occurred before is left out, however it is written."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus import SPLITS, Corpus
from data_tools.duplicates import first_occurrences
from data_tools.sentences import split_sentences
from tests.prepared import invented_documents, run

LEFT_OUT = ("short", "long", "script", "excluded", "duplicates")


def test_duplicates_in_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)[np.random.default_rng(1).integers(0, 3000, 20_000)]
    hashes.tofile(tmp_path / "hashes")
    expected = np.zeros(len(hashes), bool)
    expected[np.unique(hashes, return_index=True)[1]] = True
    for size in (1 << 22, 5000, 300):
        monkeypatch.setattr("data_tools.duplicates.PARTITION", size)
        assert (first_occurrences(tmp_path / "hashes") == expected).all()


def test_equal_text_is_a_duplicate_however_it_is_written(tmp_path: Path) -> None:
    documents = [" ".join(sentences) for sentences in invented_documents(60, 1)]
    again = [unicodedata.normalize("NFD", documents[3]), documents[4].replace(" ", "\u200b \u202a", 1), documents[5].replace("다", "다", 1)]
    (tmp_path / "text").write_text("\n\n".join([*documents, *again, "\u3164\u3164\u3164 \u3164"]))
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", "--vocab-size", 150, "--workers", 1)
    corpus = Corpus.open(tmp_path / "c")
    found, splits = corpus.manifest["sentences"], corpus.manifest["splits"].values()
    repeated = sum(len(split_sentences(documents[number])) for number in (3, 4, 5))
    assert found["duplicates"] == repeated, found
    assert sum(split["empty"] for split in splits) == 1
    assert sum(split["sentences"] + split["empty"] for split in splits) == found["found"] - found["duplicates"] - found["short"]


def test_duplicates_are_kept_and_lines_left_whole_where_that_is_asked_for(tmp_path: Path) -> None:
    documents = invented_documents(60, 1)
    (tmp_path / "text").write_text("\n\n".join("\n".join([*document, " ".join(documents[3][:2])]) for document in documents))
    options = ("--keep-duplicates", "--splitter", "lines", "--vocab-size", 150, "--workers", 1)
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", *options)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.manifest["sentences"] == {"found": sum(map(len, documents)) + 60, **dict.fromkeys(LEFT_OUT, 0)}
    assert sum(len(corpus.split(name)) for name in SPLITS) == sum(map(len, documents)) + 60
