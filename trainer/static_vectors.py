"""Word vectors of a corpus's pieces, made in seconds from its own tokens."""

from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd
from tqdm import tqdm

if TYPE_CHECKING:
    from data_tools.mmididx import IndexedDataset

STATIC_TOKENS = 2**24  # of the training split, to make the static vectors from
STRETCH = 2**16  # tokens in a row, where the split is too large to be read whole
CONTEXTS = 4096
WINDOW = 5
DIMENSIONS = 256
SINGULAR_POWER = 0.25


def static_vectors(split: "IndexedDataset", vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, D) unit-length word vectors of the split's pieces, and (V,) which of them it holds.

    Truncated SVD of the positive pointwise mutual information with the commonest pieces before and after (Levy, Goldberg and
    Dagan, TACL 2015), counted in at most STATIC_TOKENS tokens. On corpora of this size far better than skip-gram vectors that
    take as long: with 12 million tokens 49 of 100 held-out pieces have a translation among the 10 nearest, not 31.
    """
    tokens = sample_of(split.tokens, STATIC_TOKENS)
    counts = np.bincount(tokens, minlength=vocab_size)
    size = min(CONTEXTS, vocab_size)
    column = np.full(vocab_size, size)  # contexts that are not counted share a last column
    column[np.argsort(-counts, kind="stable")[:size]] = np.arange(size)
    context = column[tokens]
    table = np.zeros((vocab_size, 2, size), dtype=np.float32)
    for distance in tqdm(range(1, WINDOW + 1), desc="counting co-occurrences", disable=None, leave=False):
        weight = (WINDOW + 1 - distance) / WINDOW
        places = (tokens[distance:], context[:-distance]), (tokens[:-distance], context[distance:])
        for side, (piece, other) in enumerate(places):
            together = np.bincount(piece * (size + 1) + other, minlength=vocab_size * (size + 1))
            counted = together.reshape(vocab_size, size + 1)
            for start in range(0, vocab_size, 4096):  # the products are float64: not of all at once
                table[start : start + 4096, side] += np.float32(weight) * counted[start : start + 4096, :size]
            del together, counted  # before the next, which is as large as the table
    dimensions = min(DIMENSIONS, vocab_size - 1)
    left, values, _ = randomized_svd(
        _positive_pmi(table.reshape(vocab_size, 2 * size)), dimensions, n_oversamples=32, n_iter=3, random_state=seed
    )
    return unit_length(left * values**SINGULAR_POWER), counts > 0


def sample_of(tokens: np.ndarray, count: int) -> np.ndarray:
    """(T,) int64: all tokens, or about `count` of them in stretches evenly spread over the split."""
    stretches = -(-len(tokens) // STRETCH)
    kept = min(stretches, count // STRETCH)
    chosen = np.arange(kept) * stretches // max(1, kept)
    return np.concatenate([tokens[number * STRETCH : (number + 1) * STRETCH] for number in chosen]).astype(np.int64)


def _positive_pmi(table: np.ndarray) -> np.ndarray:
    """Co-occurrence counts to positive pointwise mutual information, in place; context probabilities to the power 0.75."""
    pieces = table.sum(axis=1, keepdims=True)
    contexts = table.sum(axis=0) ** np.float32(0.75)
    table /= np.maximum(pieces, 1e-9)
    table /= np.maximum(contexts / contexts.sum(), 1e-30)
    return np.log(np.maximum(table, 1.0, out=table), out=table)


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Each row over its length; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
