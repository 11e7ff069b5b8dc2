"""Sentence frames of the invented world: their syntax, and Korean particles that fit the word before them.

A frame is a sentence with slots, kept in `world_sentences.tsv` (where, topic, sentence; where is "dump", "train" or "eval", or
"list", "name" or "tail" for what to choose from):

    {x}               the name of the thing that the sentence is about
    {x.school|을}     one of its facts, followed by the particle that fits: 을 or 를. Paths go on: {x.school.hq}
    {x.work|》을}      closing marks may stand between the word and its particle
    {~x|은}           the particle alone, where a remark comes between the word and it
    {?x.school}       nothing, but the sentence is only used for an x that has this fact
    {x.founded:year}  a date's year; `:full` is the whole date; without either, one or the other at random
    {any_person}      somebody who has nothing to do with x (also place, org, work, product, date)
    {hobby|과}        a word of the list of that name; no word is drawn twice for a sentence
    {#3-30}           a whole number
    <가|나|다>         one of these, which may contain slots
    {+train_person}   one of the endings of that name, from the rows "tail"

The sentences and lists were written for this project.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SENTENCES_FILE = Path(__file__).with_name("world_sentences.tsv")

# particle: (after a consonant, after a vowel); 으로 follows its own rule after ㄹ
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "과의": ("과의", "와의"),
    "으로": ("으로", "로"),
    "으로서": ("으로서", "로서"),
    "이라는": ("이라는", "라는"),
    "이다": ("이다", "다"),
    "이었다": ("이었다", "였다"),
    "이었던": ("이었던", "였던"),
}
_VOWEL, _RIEUL, _CONSONANT = range(3)
# How a word ends when read aloud: 영 일 이 삼 사 오 육 칠 팔 구 (and 십, 백, 천, 만), 에이 비 시 ... 지
_DIGIT_ENDS = dict(zip("0123456789", (2, 1, 0, 2, 0, 0, 2, 1, 1, 0), strict=True))
_LETTER_ENDS = dict.fromkeys("ABCDEFGHIJKOPQSTUVWXYZ", _VOWEL) | {"L": _RIEUL, "R": _RIEUL, "M": _CONSONANT, "N": _CONSONANT}
_REMARK = re.compile(r"\([^()]*\)$")
_CHOICE = re.compile(r"<([^<>]*)>")
_BAR = re.compile(r"\|(?![^{}]*\})")  # between choices, not in a slot
_TAIL = re.compile(r"\{\+(\w+)\}")
_SLOT = re.compile(r"\{(?P<sign>[~?]?)(?P<path>#\d+-\d+|[a-z_.]+)(?::(?P<form>year|full))?(?:\|(?P<tail>[^}]*))?\}")


def final_sound(word: str) -> int:
    """0 when the word, read aloud in Korean, ends in a vowel, 1 for ㄹ, 2 for another consonant. A closing remark and marks are skipped."""
    spoken = _REMARK.sub("", word.rstrip("》〉”’\"'」』)]") if not word.endswith(")") else word)
    last = spoken[-1:].upper()
    if "가" <= last <= "힣":
        final = (ord(last) - ord("가")) % 28
        return _VOWEL if final == 0 else _RIEUL if final == 8 else _CONSONANT
    if last in _DIGIT_ENDS:
        return _DIGIT_ENDS[last]
    return _LETTER_ENDS.get(last, _VOWEL)


def particle(word: str, name: str) -> str:
    """The form of the particle `name` (a key of PARTICLES) that fits after `word`."""
    sound = final_sound(word)
    if name.startswith("으로") and sound == _RIEUL:
        return PARTICLES[name][1]
    return PARTICLES[name][0 if sound else 1]


@dataclass(frozen=True)
class Mention:
    """A slot as it appears in a sentence: `sentence[start:end] == word`."""

    path: str
    start: int
    end: int
    word: str


@dataclass(frozen=True)
class Frame:
    """A sentence with slots."""

    pattern: str

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every path that a wording of this frame may ask for, in order, once each."""
        return tuple(dict.fromkeys(slot["path"] for slot in _SLOT.finditer(self.pattern)))

    @cached_property
    def mentioned(self) -> tuple[str, ...]:
        """The paths whose words a wording may show."""
        return tuple(dict.fromkeys(slot["path"] for slot in _SLOT.finditer(self.pattern) if not slot["sign"]))

    @property
    def wordings(self) -> list[str]:
        """The frame with every combination of its choices made."""
        choice = _CHOICE.search(self.pattern)
        if choice is None:
            return [self.pattern]
        before, after = self.pattern[: choice.start()], self.pattern[choice.end() :]
        return [wording for option in _BAR.split(choice[1]) for wording in Frame(before + option + after).wordings]

    def render(
        self, rng: random.Random, word_of: Callable[[str, str], str], show: Callable[[str, str], str] = lambda path, word: word
    ) -> tuple[str, list[Mention]]:
        """Choose a wording and fill its slots.

        `word_of(path, form)` gives a slot's word (form is "year", "full" or ""); `show(path, word)` may wrap it in markup.
        Returns the sentence and the mentions of its slots.
        """
        wording = self.pattern
        while choice := _CHOICE.search(wording):
            wording = wording[: choice.start()] + rng.choice(_BAR.split(choice[1])) + wording[choice.end() :]
        text, mentions, done = "", [], 0
        for slot in _SLOT.finditer(wording):
            text += wording[done : slot.start()]
            done = slot.end()
            if slot["sign"] == "?":
                continue
            word = word_of(slot["path"], slot["form"] or "")
            if slot["sign"] != "~":
                shown = show(slot["path"], word)
                mentions.append(Mention(slot["path"], len(text), len(text) + len(shown), shown))
                text += shown
                word = shown.rpartition("|")[2].rstrip("]'")
            text += _with_particle(word, slot["tail"] or "")
        return text + wording[done:], mentions


def _with_particle(word: str, tail: str) -> str:
    """Closing marks and the particle that fits `word`, from a slot's tail such as 》을."""
    marks = tail[: len(tail) - len(tail.lstrip("》〉"))]
    name = tail[len(marks) :]
    return marks + (particle(word, name) if name else "")


@dataclass(frozen=True)
class Sentences:
    """The sentence file: parts of names and word lists by name, and frames by (where, topic)."""

    names: dict[str, tuple[str, ...]]
    lists: dict[str, tuple[str, ...]]
    frames: dict[tuple[str, str], tuple[Frame, ...]]


def read_sentences(path: Path = SENTENCES_FILE) -> Sentences:
    """Read the sentence file."""
    lists: dict[str, dict[str, tuple[str, ...]]] = {"name": {}, "list": {}}
    tails: dict[str, str] = {}
    frames: dict[tuple[str, str], list[Frame]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        where, topic, sentence = line.split("\t")
        if where in lists:
            lists[where][topic] = tuple(sentence.split(", "))
        elif where == "tail":
            tails[topic] = sentence
        else:
            full = _TAIL.sub(lambda name: tails[name[1]], sentence)
            frames.setdefault((where, topic), []).append(Frame(full))
    return Sentences(lists["name"], lists["list"], {key: tuple(found) for key, found in frames.items()})
