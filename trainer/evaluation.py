"""Evaluation of a fine-tuned model on a KLUE-RE file: report, predictions, a summary to read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import UserError
from trainer.classifier import Classifier, encode_rows, load_classifier, pick_device, predict_probabilities
from trainer.relation_page import render
from trainer.relations import LABELS, Relation, read_relations
from trainer.scores import score_relations


def evaluate(
    model: str, data: Path, report: Path | None = None, predictions: Path | None = None, page: Path | None = None
) -> dict[str, Any]:
    """Score the model on every row of `data` and write what was asked for; returns the report.

    report: see `report_on`.
    predictions: one JSON object a row, in the data's order: guid, label, prediction, probabilities (30, official order).
    page: HTML, see `trainer.relation_page`.
    Raises UserError for what the user must mend; then no file is written.
    """
    for flag, path in (("--report", report), ("--predictions", predictions), ("--html", page)):
        if path and path.is_dir():
            raise UserError(f"{flag} {path}: expected a file to write, found a folder; name a file in it")
    rows = read_relations(data)
    classifier = load_classifier(model)
    classifier.model.to(pick_device())  # type: ignore[arg-type]
    encoded = encode_rows(classifier, rows, str(data))
    probabilities = predict_probabilities(classifier, encoded, progress=True)
    scores = report_on(classifier, model, data, score_relations(np.array([row.label for row in rows]), probabilities), encoded.num_cut)
    if predictions:
        write_aside(predictions, "".join(_prediction_line(row, p) for row, p in zip(rows, probabilities, strict=True)))
    if page:
        write_aside(page, render(rows, probabilities, scores))
    if report:
        write_aside(report, json.dumps(scores, ensure_ascii=False, indent=1) + "\n")
    return scores


def report_on(classifier: Classifier, model: str, data: Path, scores: dict[str, Any], num_cut: int) -> dict[str, Any]:
    """The report of an evaluation: on what, the scores (see `trainer.scores.score_relations`), how rows are read, which epoch it is.

    selection and epoch are missing for a model that says nothing about them.
    """
    reading = {"head": classifier.head, "input_format": classifier.input_format, "max_length": classifier.max_length, "num_cut": num_cut}
    return {"model": model, "data": str(data), **scores, **reading, **classifier.training}


def summary(report: dict[str, Any]) -> str:
    """A report in a dozen lines: the scores, and the labels with the most rows."""
    frequent = sorted(report["per_label"].items(), key=lambda item: -item[1]["support"])[:8]
    lines = [
        f"{report['model']} on {report['data']}: {report['num_examples']:,} rows, "
        f"format {report['input_format']}, head {report['head']}, {report['num_cut']:,} cut to {report['max_length']} tokens",
        f"micro-F1 {report['micro_f1']:.2f}   AUPRC {report['auprc']:.2f}   accuracy {report['accuracy']:.2f}",
        f"{'most frequent labels':<38}{'rows':>6}{'precision':>11}{'recall':>8}{'F1':>8}",
        *(f"{name:<38}{s['support']:>6}{s['precision']:>11.1f}{s['recall']:>8.1f}{s['f1']:>8.1f}" for name, s in frequent if s["support"]),
    ]
    return "\n".join(lines)


def _prediction_line(row: Relation, probabilities: np.ndarray) -> str:
    prediction = {
        "guid": row.guid,
        "label": LABELS[row.label],
        "prediction": LABELS[int(probabilities.argmax())],
        "probabilities": probabilities.tolist(),
    }
    return json.dumps(prediction, ensure_ascii=False) + "\n"


def write_aside(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from None
