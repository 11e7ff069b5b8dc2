"""What the pieces of a vocabulary stand for, whatever marks its tokenizer sets."""

from dataclasses import dataclass

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pieces:
    """A vocabulary by what its pieces stand for: (at the start of a word?, text) -> id. Special pieces are left out."""

    ids: dict[tuple[bool, str], int]
    special: dict[str, int]
    """Role (bos, pad, eos, unk, mask) -> id."""
    cased: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Pieces":
        """Tells WordPiece (##ing), byte-level BPE (Ġword) and SentencePiece (▁word) apart by the marks of the pieces."""
        vocabulary, special_ids = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
        marks = {mark: sum(piece.startswith(mark) for piece in vocabulary) for mark in ("##", "Ġ", "▁")}
        mark = max(marks, key=lambda candidate: marks[candidate])
        bytes_to_text = decoders.ByteLevel()
        ids: dict[tuple[bool, str], int] = {}
        for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
            if number in special_ids:
                continue
            marked = piece.startswith(mark)
            text = piece.removeprefix(mark)
            if mark == "Ġ":
                text = bytes_to_text.decode([text])
                if "\ufffd" in text:  # part of a character
                    continue
            ids.setdefault((marked != (mark == "##"), text), number)
        roles = {
            "bos": (tokenizer.bos_token_id, tokenizer.cls_token_id),
            "pad": (tokenizer.pad_token_id,),
            "eos": (tokenizer.eos_token_id, tokenizer.sep_token_id),
            "unk": (tokenizer.unk_token_id,),
            "mask": (tokenizer.mask_token_id,),
        }
        special = {role: next((number for number in numbers if number is not None), None) for role, numbers in roles.items()}
        cased = any(text != text.lower() for _, text in ids)
        return cls(ids, {role: number for role, number in special.items() if number is not None}, cased)

    def find(self, text: str, initial: bool = True) -> int | None:
        """Id of the piece for `text`, preferably at that place in a word; a vocabulary without capitals is asked in lower case."""
        if not self.cased:
            text = text.lower()
        # signs and Chinese characters are words of their own in WordPiece; its ##-forms of these are never trained
        initial = initial or not any(character.isalnum() and character < "\u2e80" for character in text)
        for place in (initial, not initial):
            if (place, text) in self.ids:
                return self.ids[place, text]
        return None

    def shared_with(self, other: "Pieces") -> dict[int, int]:
        """Id here -> id there, of the pieces that `other` has too."""
        return {number: same for (initial, text), number in self.ids.items() if (same := other.find(text, initial)) is not None}

    def special_in(self, other: "Pieces") -> dict[int, int]:
        """Id here -> id there, of the special pieces whose role `other` has too."""
        return {number: other.special[role] for role, number in self.special.items() if role in other.special}

    def words(self) -> np.ndarray:
        """(W,) sorted ids of the pieces that are words of two letters or more."""
        return np.array(sorted(number for (initial, text), number in self.ids.items() if initial and text.isalpha() and len(text) > 1))

    def find_word(self, word: str) -> int | None:
        """Id of the piece for a lower-case word; names stand in a cased vocabulary with a capital only."""
        for spelling in (word, word.capitalize(), word.upper()):
            if (True, spelling) in self.ids:
                return self.ids[True, spelling]
        return self.ids.get((False, word))
