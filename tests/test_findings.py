"""What `inspect` tells of a corpus, and its page."""

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data_tools.corpus import Corpus
from data_tools.errors import UserError
from data_tools.findings import Findings
from data_tools.page import render
from data_tools.vocabulary import load_processor
from tests.prepared import run


def test_the_findings_are_recounted(corpus_dir: Path, tmp_path: Path) -> None:
    run("--input", corpus_dir.parent / "text.txt", "--output-dir", tmp_path / "c", "--vocab-size", 460, "--byte-fallback",
        "--character-coverage", 0.98, "--workers", 1)  # fmt: skip
    corpus = Corpus.open(tmp_path / "c")
    processor, dataset = load_processor(corpus.tokenizer_dir), corpus.split("train")
    findings = Findings.of(corpus, num_samples=3, seed_model=str(corpus_dir / "tokenizer"))
    in_bytes = sum(processor.is_byte(piece) for piece in dataset.tokens.tolist())
    assert in_bytes and findings.byte_fallback["train"] == pytest.approx(in_bytes / len(dataset.tokens)) and findings.unknown["train"] == 0
    texts = [processor.decode(dataset[item].tolist()) for item in range(len(dataset))]
    words = sum(len(text.split()) for text in texts)
    other = sum(len(load_processor(corpus_dir / "tokenizer").encode(text)) for text in texts)
    assert [f.tokens_per_word for f in findings.fertility] == pytest.approx([len(dataset.tokens) / words, other / words])
    tokens = np.memmap(tmp_path / "c" / "valid.bin", np.uint16, "r+")
    tokens[7] = 460
    tokens.flush()
    with pytest.raises(UserError, match=r"c.valid\.bin: expected ids of 460 pieces, found 460: damaged; prepare the corpus anew"):
        Findings.of(corpus)
    assert sum(count for _, count in findings.histogram) == len(dataset)
    assert dict(findings.histogram)["10-14"] == ((dataset.sizes >= 10) & (dataset.sizes < 15)).sum()
    page = render(findings)
    assert html.escape(findings.samples["test"][0].text) in page and "src=" not in page and "href=" not in page
    ElementTree.fromstring(re.sub("<meta[^>]*>|<!doctype html>|<br>", "", page))  # every element is closed
