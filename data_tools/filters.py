"""Which sentences are left out of a corpus, and why: by length, by script, or because they occur in text that must not be seen."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

# Unicode blocks whose letters make up a script, close enough to tell languages apart.
SCRIPTS = {
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc",
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": "\u3041-\u30ff\uff66-\uff9d",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_NO_LETTER = re.compile(r"[\W\d_]+")
_NO_WORD = re.compile(r"[\W_]+")
_NOTES = re.compile(r"(?:\[\d{1,3}\]\s*)+$")


@dataclass(frozen=True)
class SentenceFilter:
    """The limits; a small picklable object, since it travels to worker processes."""

    min_characters: int = 2
    max_characters: int = 4000
    script: str | None = None
    """A key of SCRIPTS: sentences with less than half of their letters in it are left out."""
    excluded: Path | None = None
    """An .npy file of sorted `content_key`s."""

    def reason(self, sentence: str) -> str | None:
        """Why the sentence is left out: "short", "long", "script" or "excluded"; None when it is kept."""
        if len(sentence) < self.min_characters:
            return "short"
        if len(sentence) > self.max_characters:
            return "long"
        if self.script is not None:
            letters = _NO_LETTER.sub("", sentence)
            if 2 * len(_other_letters(self.script).sub("", letters)) < max(1, len(letters)):
                return "script"
        if self.excluded is not None and _holds(_load_keys(self.excluded), content_key(sentence)):
            return "excluded"
        return None


def letters_and_digits(text: str) -> str:
    """A text's letters and digits alone."""
    return _NO_WORD.sub("", text)


def content_key(text: str) -> int:
    """XXH3-64 of the letters and digits alone, after NFKC and case folding: the same for a sentence with other spaces or punctuation, or
    with note numbers at its end."""
    plain = letters_and_digits(_NOTES.sub("", unicodedata.normalize("NFKC", text).casefold()))
    return xxhash.xxh3_64_intdigest(plain.encode("utf-8", "replace"))


def _holds(keys: np.ndarray, key: int) -> bool:
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place < len(keys) and int(keys[place]) == key


@lru_cache(maxsize=1)
def _load_keys(path: Path) -> np.ndarray:
    return np.load(path)


@lru_cache(maxsize=1)
def _other_letters(script: str) -> re.Pattern[str]:
    return re.compile(f"[^{SCRIPTS[script]}]+")
