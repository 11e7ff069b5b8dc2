"""A vocabulary's pieces, by the marks of the three kinds of tokenizers."""

import pytest

from tests.vocabularies import ROLES, tokenizer_of
from trainer.pieces import Pieces


@pytest.mark.parametrize("style", ["##", "Ġ", "▁"])
def test_pieces_of_every_kind_of_vocabulary(style: str) -> None:
    marked = ["the", "##ing", "##the", "é", "한"] if style == "##" else [style + "the", "ing", "the", style + "é", "한"]
    if style == "Ġ":
        marked[3], marked[4] = "ĠÃ©", "íķľ"  # the same in UTF-8 bytes, as byte-level BPE spells them
    pieces = Pieces.of(tokenizer_of(ROLES, [*marked, "London" if style == "##" else style + "London"]))
    assert pieces.ids[True, "the"] == 5 and pieces.ids[False, "ing"] == 6 and pieces.ids[False, "the"] == 7 and pieces.ids[True, "é"] == 8
    assert pieces.special == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4}
    assert pieces.cased and pieces.find("The") is None and pieces.find("한", initial=False) == 9
    assert pieces.find_word("london") == 10 and pieces.find_word("the") == 5 and pieces.find_word("ing") == 6
