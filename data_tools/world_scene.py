"""What fills the slots of one sentence about one thing of the invented world."""

import random
from dataclasses import dataclass, field

from data_tools.world_facts import LAST_YEAR, Day, Region, Thing, Value
from data_tools.world_text import Frame

_BEGINNINGS = ("birth_date", "founded", "issued")
_FORMS = ("full", "full", "month", "year")


@dataclass
class Scene:
    """One sentence about `x`: resolves slots to values and words, each slot always to the same."""

    x: Thing
    region: Region
    lists: dict[str, tuple[str, ...]]
    rng: random.Random
    values: dict[str, Value] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def word_of(self, path: str, form: str) -> str:
        """The word of a slot; a date without a form is written in one of three ways."""
        if path.startswith("#"):
            first, last = path[1:].split("-")
            return str(self.rng.randint(int(first), int(last)))
        if path in self.lists:
            return self._draw(self.lists[path])
        if path not in self.words or form:
            value = self.value_of(path)
            if isinstance(value, Day):
                self.words[path] = value.word(form or self.rng.choice(_FORMS))
            else:
                self.words[path] = value.name if isinstance(value, Thing) else str(value)
        return self.words[path]

    def value_of(self, path: str) -> Value:
        """The value of a slot. Raises IndexError where there is none: ask `fits` first."""
        if path not in self.values:
            if path.startswith("any_"):
                self.values[path] = self._stranger(path[4:])
            else:
                parent, _, fact = path.rpartition(".")
                owner = self.value_of(parent) if parent else self.x
                assert isinstance(owner, Thing)
                self.values[path] = self.rng.choice(owner.values(fact)) if parent else owner
        return self.values[path]

    def _draw(self, words: tuple[str, ...]) -> str:
        """A word that this sentence has not drawn yet."""
        word = self.rng.choice([word for word in words if word not in self.words] or list(words))
        self.words[word] = word
        return word

    def _stranger(self, kind: str) -> Value:
        """Something of the region that is unrelated to x and to everything else in the sentence."""
        if kind == "date":
            first, last = self._lifetime()
            return Day(self.rng.randint(first, last), self.rng.randint(1, 12), self.rng.randint(1, 28))
        choice = self.region.organisations if kind == "org" else self.region.things["city" if kind == "place" else kind]
        here = [self.x, *(value for value in self.values.values() if isinstance(value, Thing))]
        known = {id(value) for one in here for fact in one.facts for value in one.values(fact)} | {id(one) for one in here}
        while True:
            stranger = self.rng.choice(choice)
            reached = {id(value) for fact in stranger.facts for value in stranger.values(fact)}
            if id(stranger) not in known and not reached.intersection(id(one) for one in here):
                return stranger

    def _lifetime(self) -> tuple[int, int]:
        """The first and last year in which something can happen to x."""
        begin = next((day for fact in _BEGINNINGS if (day := self.x.day(fact))), None)
        end = self.x.day("death_date")
        first = begin.year if begin else 1920
        last = end.year - 1 if end else LAST_YEAR
        return min(first + (18 if self.x.kind == "person" else 1), last), last


def fits(frame: Frame, x: Thing) -> bool:
    """Whether x, and what the frame reaches from it, has every fact that the frame speaks of."""
    for path in frame.paths:
        first, *facts = path.split(".")
        if first != "x":
            continue
        reached: list[Value] = [x]
        for fact in facts:
            values = [thing.values(fact) for thing in reached if isinstance(thing, Thing)]
            if not values or not all(values):
                return False
            reached = [value for found in values for value in found]
    return True
