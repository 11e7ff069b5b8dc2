"""Word vectors of a corpus's pieces, beside the formula written out."""

from types import SimpleNamespace

import numpy as np
import pytest

from trainer import static_vectors


def test_static_vectors_are_the_svd_of_positive_pmi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_vectors, "CONTEXTS", 6)
    monkeypatch.setattr(static_vectors, "WINDOW", 2)
    tokens = np.random.default_rng(0).choice(9, 200, p=[0.05, 0.2, 0.1, 0.15, 0.1, 0.15, 0.05, 0.1, 0.1])
    commonest = sorted(range(10), key=lambda piece: (-np.sum(tokens == piece), piece))[:6]
    table = np.zeros((10, 2, 6))
    for place, piece in enumerate(tokens):
        for distance, weight in ((1, 1.0), (2, 0.5)):
            for side, other in ((0, place - distance), (1, place + distance)):
                if 0 <= other < len(tokens) and tokens[other] in commonest:
                    table[piece, side, commonest.index(tokens[other])] += weight
    flat = table.reshape(10, 12)
    contexts = flat.sum(0) ** 0.75 / (flat.sum(0) ** 0.75).sum()
    pmi = np.array([[np.log(max(1.0, n / row.sum() / p)) if n else 0.0 for n, p in zip(row, contexts, strict=True)] for row in flat])
    left, values, _ = np.linalg.svd(pmi)
    expected = left[:, :9] * values[:9] ** 0.25
    expected[:9] /= np.linalg.norm(expected[:9], axis=1, keepdims=True)

    vectors, seen = static_vectors.static_vectors(SimpleNamespace(tokens=tokens.astype(np.uint16)), 10, 0)  # type: ignore[arg-type]
    assert seen.tolist() == [True] * 9 + [False]
    np.testing.assert_allclose((vectors @ vectors.T)[:9, :9], expected[:9] @ expected[:9].T, atol=1e-4)  # SVDs differ by signs


def test_a_large_split_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_vectors, "STRETCH", 10)
    monkeypatch.setattr(static_vectors, "STATIC_TOKENS", 30)
    assert static_vectors.sample_of(np.arange(95), static_vectors.STATIC_TOKENS).tolist() == [*range(10), *range(30, 40), *range(60, 70)]
    assert static_vectors.sample_of(np.arange(25), static_vectors.STATIC_TOKENS).tolist() == list(range(25))
