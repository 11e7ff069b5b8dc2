"""What words alone score on KLUE-RE: a linear classifier, no net, no other text.

    python -m benchmarks.word_baseline TRAIN EVAL      # prints JSON

Features are pieces of words (characters by two and three, tf-idf) of the sentence without its two entities, of what stands between them,
of the subject and of the object, which is what a net is given whose markers have no types; and the types of the two entities and their
order. The classifier is scikit-learn's linear support vector machine, one relation against the rest; its C is chosen on 2,000 training
rows, no sentence of which is in the others (benchmarks/real_klue.py), then it is fitted to all rows. Two minutes on one core.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

from benchmarks.command import paths
from benchmarks.real_klue import split
from trainer.relations import Relation, read_relations
from trainer.scores import NUM_LABELS, micro_f1, score_relations

CHOICES = (0.02, 0.1, 0.5)  # of C, the inverse of the penalty's weight
REST = 30_000  # of the training rows: all but the hold-out and what shares a sentence with it
GRAMS = {"analyzer": "char_wb", "ngram_range": (2, 3), "min_df": 5, "sublinear_tf": True}
WORDS = [(f"text {place}", TfidfVectorizer(**GRAMS), place) for place in range(4)]
TYPES = [("types", OneHotEncoder(handle_unknown="ignore"), [4])]
FEATURES = {"words": WORDS, "types": TYPES, "words and types": [*WORDS, *TYPES]}


def columns(rows: Sequence[Relation]) -> np.ndarray:
    """(rows, 5) strings: the sentence without its entities, what stands between them, subject, object, types and order."""
    found = []
    for row in rows:
        first, last = sorted((row.subject, row.object), key=lambda entity: entity.start)
        between = row.sentence[first.end + 1 : last.start]
        around = f"{row.sentence[: first.start]} {between} {row.sentence[last.end + 1 :]}"
        order = "subject first" if first is row.subject else "object first"
        found.append((around, between, row.subject.word, row.object.word, f"{row.subject.type} {row.object.type} {order}"))
    return np.array(found, dtype=object)


def labels(rows: Sequence[Relation]) -> np.ndarray:
    return np.array([row.label for row in rows])


def fit(rows: Sequence[Relation], features: str, c: float) -> Pipeline:
    parts = [("features", ColumnTransformer(FEATURES[features])), ("classifier", LinearSVC(C=c, max_iter=5000, random_state=0))]
    return Pipeline(parts).fit(columns(rows), labels(rows))


def scores(pipeline: Pipeline, rows: Sequence[Relation]) -> dict[str, Any]:
    """Distances from the classes' planes rank rows and classes as probabilities would; classes without a training row come last."""
    distances = pipeline.decision_function(columns(rows))
    of_all = np.full((len(rows), NUM_LABELS), distances.min() - 1.0)
    of_all[:, pipeline.classes_] = distances
    report = score_relations(labels(rows), of_all)
    return {name: value for name, value in report.items() if name != "per_label"}


def main() -> None:
    train, evaluation = paths(__doc__, "TRAIN", "EVAL")
    rows, scored = read_relations(train), read_relations(evaluation)
    with tempfile.TemporaryDirectory() as folder:
        split(train, Path(folder), REST)
        part, holdout = (read_relations(Path(folder) / f"{name}.json") for name in ("part", "holdout"))
    found = {}
    for features in FEATURES:
        tried = {c: micro_f1(labels(holdout), fit(part, features, c).predict(columns(holdout))) for c in CHOICES}
        c = max(tried, key=lambda choice: tried[choice])
        found[features] = {"C": c, "on the hold-out": tried, **scores(fit(rows, features, c), scored)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
