"""KLUE-RE's official scores, from class probabilities. All are percentages, 0 to 100.

Source: Park et al., "KLUE: Korean Language Understanding Evaluation" (2021), and the benchmark's published baseline code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import auc, confusion_matrix, f1_score, precision_recall_curve, precision_recall_fscore_support

from trainer.relations import LABELS

NUM_LABELS = len(LABELS)
NUM_CURVES = 12
"""Relations that are drawn: those with the most rows."""


def micro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Micro-averaged F1 over the 29 positive relations.

    All rows count: a no_relation row predicted as a relation is a false positive, a relation predicted as no_relation a false
    negative; only a correct no_relation counts for nothing. labels, predictions: (rows,) class numbers. No positive at all: 0.
    """
    return 100.0 * float(f1_score(labels, predictions, average="micro", labels=list(range(1, NUM_LABELS)), zero_division=0))


def confusion(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes that occur (C,), and the rows of each true (first axis) and predicted one (C, C). labels, predictions: (rows,)."""
    classes = np.union1d(labels, predictions)
    return classes, np.asarray(confusion_matrix(labels, predictions, labels=classes))


def most_frequent(labels: np.ndarray, number: int) -> list[int]:
    """At most so many classes, those with the most rows first; none without a row. labels: (rows,)."""
    counts = np.bincount(labels, minlength=NUM_LABELS)
    return [int(label) for label in np.argsort(-counts, kind="stable")[:number] if counts[label]]


def auprc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the precision-recall curve, one class against the rest, its mean over all 30 classes, no_relation included.

    labels: (rows,); probabilities: (rows, 30). The curve is integrated by the trapezoid rule, as the benchmark does. A class
    without a row in the data has the curve (recall 1, precision 0) to (0, 1), and counts 50 (scikit-learn's convention).
    """
    areas = []
    for label in range(NUM_LABELS):
        targets = labels == label
        if targets.any():
            precision, recall, _ = precision_recall_curve(targets, probabilities[:, label])
            areas.append(auc(recall, precision))
        else:
            areas.append(0.5)  # what the lines above give, without scikit-learn's warning for each
    return 100.0 * float(np.mean(areas))


def paired_bootstrap(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two models' micro-F1 on the same rows (first less second) and its 95 % percentile interval.

    labels: (rows,) class numbers; first, second: (rows,), or (seeds, rows) of as many fine-tunings of each, whose scores are averaged.
    Each resample draws rows, and seeds too where there are several: the same ones for both models. With few seeds the interval is too
    narrow for their spread, which stands beside it. Efron & Tibshirani 1993, chapter 13; for test sets Berg-Kirkpatrick et al. 2012.
    """
    said = np.stack([np.atleast_2d(first), np.atleast_2d(second)])  # (2, seeds, rows)
    positive, (_, seeds, rows) = labels > 0, said.shape
    counts = np.stack([(said == labels) & positive, said > 0, np.broadcast_to(positive, said.shape)]).astype(float)
    generator = np.random.default_rng(seed)
    differences = []
    for start in range(0, resamples, 1000):
        size = min(1000, resamples - start)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size)
        hits, guesses, true = counts @ weights.T  # each (2, seeds, size)
        scores = 200.0 * hits / np.maximum(1, guesses + true)
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).T / seeds  # (seeds, size)
        differences.append(((scores[0] - scores[1]) * drawn).sum(axis=0))
    low, high = np.percentile(np.concatenate(differences), [2.5, 97.5])
    means = [np.mean([micro_f1(labels, row) for row in model]) for model in said]
    return float(means[0] - means[1]), float(low), float(high)


def label_shift(train_counts: Sequence[int], labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far the label shares of the data are from those of the training rows, and what that costs.

    train_counts: (30,) rows of each label in training; labels: (rows,); probabilities: (rows, 30). total_variation is half the sum of
    the shares' absolute differences, 0 to 1. micro_f1_at_these_shares is the score when the probabilities are reweighted from the
    training shares to the data's own (Saerens et al. 2002, with the shares known). It looks at the answers: no score to report as the
    model's, but what it has over micro_f1 is lost to the shift alone. For it half a row is added to each count, so that no share is 0.
    """
    here, there = np.bincount(labels, minlength=NUM_LABELS), np.asarray(train_counts)
    distance = abs(here / here.sum() - there / there.sum()).sum() / 2
    reweighted = (probabilities * (here + 0.5) / (there + 0.5)).argmax(axis=1)
    return {"total_variation": float(distance), "micro_f1_at_these_shares": micro_f1(labels, reweighted)}


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> list[tuple[float, float, float]]:
    """(mean confidence, share that is right, share of the rows) of each of so many bins of equal width that has rows."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [places == number for number in range(bins)]
    return [(float(confidence[m].mean()), float(right[m].mean()), float(m.mean())) for m in members if m.any()]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015) of the predictions, over `calibration_bins`."""
    return float(sum(abs(right - confidence) * share for confidence, right, share in calibration_bins(labels, probabilities)))


def confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of at most `count` wrong predictions, the most confident first."""
    wrong = np.flatnonzero(labels != probabilities.argmax(axis=1))
    return wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")][:count]


def score_relations(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """The report of an evaluation: micro_f1, auprc, accuracy, num_examples, per_label {name: precision, recall, f1, support}.

    labels: (rows,) class numbers; probabilities: (rows, 30), official order. The prediction is the most probable class, the
    first of them at a tie. A label never predicted has precision 0, one without rows recall 0.
    """
    assert probabilities.shape == (len(labels), NUM_LABELS), probabilities.shape
    predictions = probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(labels, predictions, labels=list(range(NUM_LABELS)), zero_division=0)
    per_label = {
        name: {"precision": 100.0 * float(p), "recall": 100.0 * float(r), "f1": 100.0 * float(f), "support": int(s)}
        for name, p, r, f, s in zip(LABELS, *columns, strict=True)
    }
    return {
        "micro_f1": micro_f1(labels, predictions),
        "auprc": auprc(labels, probabilities),
        "accuracy": 100.0 * float(np.mean(predictions == labels)),
        "num_examples": len(labels),
        "per_label": per_label,
    }
