"""trainer/xpt.py with another way to the first embeddings, for benchmarks/evidence.yaml.

    python -m benchmarks.variants CHANGE [CHANGE ...] -- ARGUMENTS_OF_XPT
parts=A+B        rows are made of these only: neighbours, translations, copies
lexicon=N        N of the translated pieces, drawn once, nested: the 300 are among the 1,000
holdout=N        without every N-th translated piece (benchmarks/probes.py asks for them)
static=N         static vectors from N tokens
map=procrustes   an orthogonal map instead of the kernel ridge, or map=ridge, a linear one
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from trainer import embedding_init
from trainer.embedding_init import Pieces
from trainer.ranks import run_on_ranks
from trainer.xpt import main as post_train


def linear_map(kind: str) -> Any:
    """A replacement of embedding_init._map_into. procrustes: orthogonal, between unit vectors, static ones padded with zeros to H."""

    def map_into(centred: np.ndarray, static: np.ndarray, translations: dict[int, list[int]]) -> np.ndarray:
        pieces = sorted(translations)
        directions = np.stack([centred[translations[number]].mean(axis=0) for number in pieces])
        if kind == "ridge":
            return embedding_init._unit(Ridge(alpha=1.0).fit(static[pieces], directions).predict(static))
        padded = np.pad(static, ((0, 0), (0, max(0, centred.shape[1] - static.shape[1]))))
        rotation, _ = orthogonal_procrustes(padded[pieces], embedding_init._unit(directions))
        return embedding_init._unit(padded @ rotation)

    return map_into


def fewer(chosen: Callable[[list[int]], Iterable[int]]) -> Any:
    """A replacement of embedding_init._translations that keeps what `chosen` takes of the sorted pieces that are no copies."""
    every = embedding_init._translations

    def translations(pairs: Any, english: Pieces, korean: Pieces) -> dict[int, list[int]]:
        found = every(pairs, english, korean)
        return {int(number): found[int(number)] for number in chosen(sorted(set(found) - set(korean.shared_with(english))))}

    return translations


def apply(change: str) -> None:
    """Change the module `embedding_init` of this process."""
    key, _, value = change.partition("=")
    if key == "parts":
        embedding_init.PARTS = tuple(value.split("+"))
    elif key == "lexicon":
        embedding_init._translations = fewer(lambda pieces: sorted(np.random.default_rng(0).permutation(pieces)[: int(value)]))
    elif key == "holdout":
        embedding_init._translations = fewer(lambda pieces: [number for place, number in enumerate(pieces) if place % int(value)])
    elif key == "static":
        embedding_init.STATIC_TOKENS = int(value)
        embedding_init.STRETCH = min(embedding_init.STRETCH, int(value) // 16)
    elif key == "map":
        embedding_init._map_into = linear_map(value)
    else:
        sys.exit(f"error: no such change: {change}")


if __name__ == "__main__":
    end = sys.argv.index("--")
    for change in sys.argv[1:end]:
        apply(change)
    del sys.argv[1 : end + 1]
    run_on_ranks(post_train)
