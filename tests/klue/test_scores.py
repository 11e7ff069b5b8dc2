"""KLUE-RE's scores against an independent computation in plain Python."""

import itertools

import numpy as np
import pytest

from trainer.relations import LABELS
from trainer.scores import auprc, label_shift, micro_f1, paired_bootstrap, score_relations


def plain_micro_f1(labels: list[int], predictions: list[int]) -> float:
    hits = sum(a == b != 0 for a, b in zip(labels, predictions, strict=True))
    predicted, actual = sum(p != 0 for p in predictions), sum(a != 0 for a in labels)
    return 200 * hits / (predicted + actual) if predicted + actual else 0.0


def plain_area(targets: list[bool], scores: list[float]) -> float:
    """Trapezoids under (recall, precision), one point a distinct threshold, from recall 0, where precision is 1 by convention."""
    if not any(targets):
        return 0.5
    points = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        chosen = [t for t, s in zip(targets, scores, strict=True) if s >= threshold]
        points.append((sum(chosen) / sum(targets), sum(chosen) / len(chosen)))
        # Official curves go on to the lowest threshold; recall no longer rises there, so the area does not either.
    return sum((r1 - r0) * (p0 + p1) / 2 for (r0, p0), (r1, p1) in itertools.pairwise(points))


def plain_auprc(labels: list[int], probabilities: list[list[float]]) -> float:
    return 100 * sum(plain_area([y == c for y in labels], [row[c] for row in probabilities]) for c in range(30)) / 30


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def draw(case: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 30, 200)
    probabilities = softmax(rng.normal(0, 2, (200, 30)))
    if case == "missing classes":
        labels = rng.choice([0, 3, 17, 29], 200, p=[0.6, 0.2, 0.1, 0.1])
    elif case == "ties":
        probabilities = softmax(np.round(rng.normal(0, 1, (200, 30))))
    elif case == "all no_relation":
        labels[:] = 0
    elif case == "no_relation always predicted":
        probabilities = softmax(np.eye(30)[np.zeros(200, int)] * 9)
    elif case == "perfect":
        probabilities = softmax(np.eye(30)[labels] * 9)
    elif case == "one row":
        labels, probabilities = labels[:1], probabilities[:1]
    return labels, probabilities


CASES = ["random", "missing classes", "ties", "all no_relation", "no_relation always predicted", "perfect", "one row"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_against_plain_computation(case, seed):
    labels, probabilities = draw(case, np.random.default_rng([seed, CASES.index(case)]))
    predictions = [max(range(30), key=lambda c: row[c]) for row in probabilities.tolist()]  # max keeps the first of equals
    scores = score_relations(labels, probabilities)
    assert scores["micro_f1"] == pytest.approx(plain_micro_f1(labels.tolist(), predictions), abs=1e-9)
    assert scores["auprc"] == pytest.approx(plain_auprc(labels.tolist(), probabilities.tolist()), abs=1e-9)
    assert scores["accuracy"] == pytest.approx(100 * np.mean([a == b for a, b in zip(labels, predictions, strict=True)]))
    assert scores["num_examples"] == len(labels) and list(scores["per_label"]) == list(LABELS)
    for number, name in enumerate(LABELS):
        hits = sum(a == b == number for a, b in zip(labels, predictions, strict=True))
        predicted, actual = predictions.count(number), labels.tolist().count(number)
        expected = {
            "precision": 100 * hits / predicted if predicted else 0.0,
            "recall": 100 * hits / actual if actual else 0.0,
            "f1": 200 * hits / (predicted + actual) if predicted + actual else 0.0,
            "support": actual,
        }
        assert scores["per_label"][name] == pytest.approx(expected)


def test_by_hand():
    # 5 rows: one relation right, one confused, one missed, one invented, one no_relation right: P = 1/3, R = 1/3.
    assert micro_f1(np.array([1, 2, 3, 0, 0]), np.array([1, 5, 0, 4, 0])) == pytest.approx(100 / 3)
    probabilities = np.zeros((3, 30))
    probabilities[:, 0], probabilities[:, 1] = [0.9, 0.5, 0.4], [0.2, 0.1, 0.3]
    # (recall, precision) of class 0, ranked wrong, right, right: (0, 1), (0, 0), (1/2, 1/2), (1, 2/3); of class 1, ranked wrong, right:
    # (0, 1), (0, 0), (1, 1/2); the other 28 have no row.
    class_0, class_1 = 0.5 * (0 + 0.5) / 2 + 0.5 * (0.5 + 2 / 3) / 2, 0.25
    assert auprc(np.array([1, 0, 0]), probabilities) == pytest.approx(100 * (class_0 + class_1 + 28 * 0.5) / 30)


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """What scikit-learn gives, a thousand times as fast."""
    return 200 * ((labels == predictions) & (labels > 0)).sum() / ((labels > 0).sum() + (predictions > 0).sum())


def test_paired_bootstrap_against_resampling_row_by_row() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, 150)
    first, second = (np.where(rng.random(150) < share, labels, rng.integers(0, 5, 150)) for share in (0.8, 0.5))
    difference, low, high = paired_bootstrap(labels, first, second)
    assert difference == pytest.approx(micro_f1(labels, first) - micro_f1(labels, second)) and low < difference < high
    draws = [rng.integers(0, 150, 150) for _ in range(2000)]
    plain = [f1(labels[draw], first[draw]) - f1(labels[draw], second[draw]) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=1.5)
    assert paired_bootstrap(labels, first, first) == (0.0, 0.0, 0.0)


def test_paired_bootstrap_over_seeds_against_resampling_by_hand() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 150)
    first = np.stack([np.where(rng.random(150) < share, labels, 0) for share in (0.9, 0.7, 0.5)])
    second = np.stack([np.where(rng.random(150) < share, labels, 0) for share in (0.5, 0.5, 0.45)])
    gaps = [micro_f1(labels, a) - micro_f1(labels, b) for a, b in zip(first, second, strict=True)]
    difference, low, high = paired_bootstrap(labels, first, second)
    assert difference == pytest.approx(np.mean(gaps)) and low < difference < high

    def plain(draw_seeds: bool) -> tuple[float, ...]:
        found = []
        for _ in range(4000):
            rows, seeds = rng.integers(0, 150, 150), rng.integers(0, 3, 3) if draw_seeds else range(3)
            found.append(np.mean([f1(labels[rows], first[s][rows]) - f1(labels[rows], second[s][rows]) for s in seeds]))
        return tuple(np.percentile(found, [2.5, 97.5]))

    assert (low, high) == pytest.approx(plain(draw_seeds=True), abs=1.5) != pytest.approx(plain(draw_seeds=False), abs=4)


def test_label_shift_by_hand() -> None:
    """Trained on equal shares of two labels, 19 to 1 in the data: what is likelier there wins what the model is undecided about."""
    train = np.bincount([0] * 500 + [4] * 500, minlength=30)
    labels = np.array([0] * 95 + [4] * 5)
    probabilities = np.zeros((100, 30))
    probabilities[:, 4], probabilities[:, 0] = 0.6, 0.4
    probabilities[95:, 4], probabilities[95:, 0] = 0.99, 0.01
    found = label_shift(train, labels, probabilities)
    assert found["total_variation"] == pytest.approx(0.45)  # 0.95 - 0.5
    assert micro_f1(labels, probabilities.argmax(axis=1)) == pytest.approx(100 * 10 / 105)
    assert found["micro_f1_at_these_shares"] == 100.0
    assert label_shift(np.bincount(labels, minlength=30), labels, probabilities)["total_variation"] == 0.0
