"""A lexicon's lines, good and bad."""

import unicodedata
from pathlib import Path

import pytest

from data_tools.errors import UserError
from trainer.lexicon import read_lexicon


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("dog\t개\ncat 고양이\n", r"line 2: expected english<TAB>korean, found 'cat 고양이'"),
        ("dog\t개\tx\n", "line 1"),
        ("dog\t \n", "line 1"),
    ],
)
def test_lexicons_that_cannot_be_read(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "pairs.tsv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=expected) as caught:
        read_lexicon(path)
    assert str(path) in str(caught.value)


def test_pairs_are_lower_cased_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("Dog\t개\ndog\t개\n\ncat\t 고양이\r\n", encoding="utf-8")
    assert read_lexicon(tmp_path / "pairs.tsv") == [("dog", "개"), ("cat", "고양이")]
    text = unicodedata.normalize("NFD", "dog\t개\ncat\t고양\u2028이\n")
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8-sig")
    assert read_lexicon(tmp_path / "pairs.tsv") == [("dog", "개"), ("cat", "고양\u2028이")]
