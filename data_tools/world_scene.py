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
        """The value of a slot. Raises KeyError where there is none."""
        if path not in self.values:
            if path.startswith("any_"):
                self.values[path] = self._stranger(path[4:])
            else:
                parent, _, fact = path.rpartition(".")
                owner = self.value_of(parent) if parent else self.x
                assert isinstance(owner, Thing)
                value: Value = owner if not parent else owner.facts[fact]
                self.values[path] = self.rng.choice(value) if isinstance(value, list) else value
        return self.values[path]

    def _draw(self, words: tuple[str, ...]) -> str:
        """A word that this sentence has not drawn yet."""
        word = self.rng.choice([word for word in words if word not in self.words] or list(words))
        self.words[word] = word
        return word

    def _stranger(self, kind: str) -> Value:
        """Something of the region that x and what else is in the sentence have nothing to do with."""
        if kind == "date":
            first, last = self._lifetime()
            return Day(self.rng.randint(first, last), self.rng.randint(1, 12), self.rng.randint(1, 28))
        choice = self.region.organisations if kind == "org" else self.region.things["city" if kind == "place" else kind]
        here = [value for value in self.values.values() if isinstance(value, Thing)] + [self.x]
        known = {id(value) for one in here for value in _flat(one)} | {id(one) for one in here}
        while True:
            stranger = self.rng.choice(choice)
            if id(stranger) not in known and not known.intersection(id(value) for value in _flat(stranger) if value in here):
                return stranger

    def _lifetime(self) -> tuple[int, int]:
        """The first and last year in which something can happen to x."""
        begin, end = (self.x.facts.get(key) for key in _BEGINNINGS), self.x.facts.get("death_date")
        first = next((day.year for day in begin if isinstance(day, Day)), 1920)
        last = end.year - 1 if isinstance(end, Day) else LAST_YEAR
        return min(first + (18 if self.x.kind == "person" else 1), last), last


def _flat(thing: Thing) -> list[Value]:
    """Every value of every fact."""
    return [value for fact in thing.facts.values() for value in (fact if isinstance(fact, list) else [fact])]


def fits(frame: Frame, x: Thing) -> bool:
    """Whether x, and what the frame reaches from it, has every fact that the frame speaks of."""
    for path in frame.paths:
        first, _, rest = path.partition(".")
        if first != "x":
            continue
        things: list[Value] = [x]
        for fact in rest.split(".") if rest else ():
            things = [value for thing in things if isinstance(thing, Thing) and fact in thing.facts for value in _flat_one(thing, fact)]
            if len(things) == 0:
                return False
    return True


def _flat_one(thing: Thing, fact: str) -> list[Value]:
    value = thing.facts[fact]
    return [*value] if isinstance(value, list) else [value]
