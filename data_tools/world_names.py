"""Invented Korean names, put together from syllables. Any likeness to a real name is chance."""

import random
from collections.abc import Iterable, Sequence


class Names:
    """Gives out names, none of them twice. `parts` are the "name" rows of the sentence file."""

    def __init__(self, parts: dict[str, tuple[str, ...]], rng: random.Random) -> None:
        self.surnames = parts["surname"]
        self._parts = parts
        self._rng = rng
        self._given: set[str] = set()

    def person(self, surname: str, male: bool) -> str:
        """A surname and two syllables."""
        sex = "male" if male else "female"
        return self._new([surname], self._parts[f"{sex}_first"], self._parts[f"{sex}_second"])

    def place(self, ending: str) -> str:
        """A town, province, river or mountain."""
        return self._new(self._parts["place_first"], self._parts["place_second"], [ending])

    def firm(self, ending: str) -> str:
        """A company or another organisation; with an empty ending, a brand."""
        return self._new(self._parts["firm_first"], self._parts["firm_second"], [ending])

    def work(self) -> str:
        """A title of a book, film, song or picture: 푸른 강, 마지막 편지의 노래."""
        endings = ["", *self._parts["work_third"]]
        return self._new(self._parts["work_first"], [" "], self._parts["work_second"], endings)

    def product(self, brand: str) -> str:
        """A brand and a model: 가온 K7, 가온 300, 가온 미니."""
        letter_first = (f"{letter}{digit}" for letter in "ABCEGKLMNRSTXZ" for digit in range(1, 10))
        digit_first = (f"{digit}{letter}" for letter in "ELMRSX" for digit in range(1, 10))
        models = [*letter_first, *digit_first, *(str(number) for number in range(20, 1000, 10)), *self._parts["model"]]
        return self._new([brand], [" "], models)

    def _new(self, *parts: Iterable[str]) -> str:
        choices: list[Sequence[str]] = [tuple(part) for part in parts]
        while True:
            for _ in range(100):
                name = "".join(self._rng.choice(choice) for choice in choices)
                if name not in self._given:
                    self._given.add(name)
                    return name
            choices.insert(-1, choices[-2])  # nearly all are taken: make them longer
