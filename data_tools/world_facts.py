"""What the invented world consists of: things that have a name and facts, and days."""

from dataclasses import dataclass, field
from typing import Union

LAST_YEAR = 2020
ORGANISATIONS = ("company", "school", "party", "society")


@dataclass(frozen=True)
class Day:
    """A date."""

    year: int
    month: int
    day: int

    def word(self, form: str) -> str:
        """How it is written: "year", "month" or "full"."""
        return {"year": f"{self.year}년", "month": f"{self.year}년 {self.month}월"}.get(form, f"{self.year}년 {self.month}월 {self.day}일")


Value = Union[str, Day, "Thing", list["Thing"]]


@dataclass(eq=False)
class Thing:
    """Anything that has a name: its kind, its name and its facts. A fact with several values is a list."""

    kind: str
    name: str
    facts: dict[str, Value] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Thing({self.kind}, {self.name})"

    def day(self, fact: str) -> Day | None:
        """The value of a fact if it is a day, else None."""
        value = self.facts.get(fact)
        return value if isinstance(value, Day) else None

    def thing(self, fact: str) -> "Thing | None":
        """The value of a fact if it is one thing, else None."""
        value = self.facts.get(fact)
        return value if isinstance(value, Thing) else None

    def values(self, fact: str) -> list[Value]:
        """All values of a fact; none where there is no such fact."""
        value = self.facts.get(fact, [])
        return [*value] if isinstance(value, list) else [value]

    def add(self, fact: str, thing: "Thing") -> None:
        """Add one value to a fact that may have several."""
        values = self.facts.setdefault(fact, [])
        assert isinstance(values, list)
        values.append(thing)


@dataclass
class Region:
    """One of the two halves of the world; `things` by kind."""

    name: str
    things: dict[str, list[Thing]]

    @property
    def organisations(self) -> list[Thing]:
        """Everything that can employ somebody."""
        return [thing for kind in ORGANISATIONS for thing in self.things[kind]]
