"""KLUE-RE's official scores, from class probabilities. All are percentages, 0 to 100.

Source: Park et al., "KLUE: Korean Language Understanding Evaluation" (2021), and the benchmark's published baseline code.
"""

from typing import Any

import numpy as np
from sklearn.metrics import auc, f1_score, precision_recall_curve, precision_recall_fscore_support

from trainer.relations import LABELS

NUM_LABELS = len(LABELS)


def micro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Micro-averaged F1 over the 29 positive relations.

    All rows count: a no_relation row predicted as a relation is a false positive, a relation predicted as no_relation a false
    negative; only a correct no_relation counts for nothing. labels, predictions: (rows,) class numbers. No positive at all: 0.
    """
    return 100.0 * float(f1_score(labels, predictions, average="micro", labels=list(range(1, NUM_LABELS)), zero_division=0))


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
    """Difference of two models' micro-F1 on the same rows (first less second) and its 95 % percentile interval over resampled rows.

    labels, first, second: (rows,) class numbers. Efron & Tibshirani 1993, chapter 13; for test sets Berg-Kirkpatrick et al. 2012.
    """
    positive = labels > 0
    counts = np.stack([np.stack([(p == labels) & positive, p > 0, positive]) for p in (first, second)]).astype(float)  # (2, 3, rows)
    generator, rows = np.random.default_rng(seed), len(labels)
    scores = []
    for start in range(0, resamples, 1000):
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(1000, resamples - start))
        hits, said, true = np.moveaxis(counts @ weights.T, 1, 0)  # each (2, resamples)
        scores.append(200.0 * hits / np.maximum(1, said + true))
    differences = np.subtract(*np.concatenate(scores, axis=1))
    low, high = np.percentile(differences, [2.5, 97.5])
    return micro_f1(labels, first) - micro_f1(labels, second), float(low), float(high)


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
