"""Evaluation of a fine-tuned model on a KLUE-RE file: report, predictions, a summary to read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools import aside
from data_tools.digest import sha256_of
from data_tools.errors import UserError
from trainer.accelerator import has_bf16
from trainer.classifier import Classifier, encode_rows, load_classifier, pick_device, predict_probabilities
from trainer.relation_page import render
from trainer.relations import LABELS, Relation, read_relations
from trainer.scores import label_shift, score_relations


def evaluate(
    model: str, data: Path, report: Path | None = None, predictions: Path | None = None, page: Path | None = None
) -> dict[str, Any]:
    """Score the model on every row of `data` and write what was asked for; returns the report.

    report: see `report_on`.
    predictions: one JSON object a row, in the data's order: guid, label, prediction, probabilities (30, official order).
    page: HTML, see `trainer.relation_page`.
    Raises UserError for what the user must fix; files that cannot be written are found at the end.
    """
    taken = {data.resolve(): "--data"}
    for flag, path in (("--report", report), ("--predictions", predictions), ("--html", page)):
        if path and path.is_dir():
            raise UserError(f"{flag} {path}: expected a file to write, found a folder; name a file in it")
        if path and path.resolve() in taken and (path.is_file() or not path.exists()):  # /dev/stdout may have several
            raise UserError(f"{flag} {path}: expected a file of its own, found that of {taken[path.resolve()]}; name another")
        if path:
            taken[path.resolve()] = flag
    rows, probabilities, scores = score(model, data)
    if predictions:
        scores["predictions_sha256"] = write_predictions(predictions, rows, probabilities)
    if page:
        aside.write_text(page, render(rows, probabilities, scores))
    if report:
        write_report(report, scores)
    return scores


def score(model: str, data: Path) -> tuple[list[Relation], np.ndarray, dict[str, Any]]:
    """(rows, their (rows, 30) probabilities, `report_on` them) of a fine-tuned model on a file. Raises UserError."""
    rows, sha256 = read_relations(data), sha256_of(data)
    classifier = load_classifier(model)
    classifier.model.to(pick_device())  # type: ignore[arg-type]
    encoded = encode_rows(classifier, rows, str(data))
    probabilities = predict_probabilities(classifier, encoded, progress=True)
    labels = np.array([row.label for row in rows])
    return rows, probabilities, report_on(classifier, model, (data, sha256), labels, probabilities, encoded.num_cut)


def report_on(
    classifier: Classifier, model: str, data: tuple[Path, str], labels: np.ndarray, probabilities: np.ndarray, num_cut: int
) -> dict[str, Any]:
    """The report of an evaluation: on what, the scores (see `trainer.scores.score_relations`), how rows are read, how it was trained.

    precision: bf16 where the processor has it, else fp32; about one row in a few hundred gets a different label.
    data: the file, and the SHA-256 it had when it was read. labels: (rows,); probabilities: (rows, 30). selection, epoch, training_rows
    (number, labels, conflicting: those that contradict another, conflicts: what was done with them), training_seconds and label_shift are
    missing for a model that says nothing about its training.
    """
    parameters = sum(p.numel() for p in classifier.model.parameters())
    reading = {
        "parameters": parameters,
        "head": classifier.head,
        "input_format": classifier.input_format,
        "max_length": classifier.max_length,
        "num_cut": num_cut,
        "precision": "bf16" if has_bf16(next(classifier.model.parameters()).device) else "fp32",
    }
    report = {
        "model": model,
        "data": str(data[0]),
        "data_sha256": data[1],
        **score_relations(labels, probabilities),
        **reading,
        **classifier.training,
    }
    if "training_rows" in report:
        report["label_shift"] = label_shift(report["training_rows"]["labels"], labels, probabilities)
    return report


def is_scored_on(folder: Path, data: Path) -> bool:
    """Whether the fine-tuned model in the folder has scores of this very content beside it, and the predictions they are of."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    predictions = folder / "predictions.jsonl"
    return (
        report.get("data_sha256") == sha256_of(data)
        and predictions.is_file()
        and report.get("predictions_sha256") == sha256_of(predictions)
    )


def write_report(path: Path, report: dict[str, Any]) -> None:
    aside.write_text(path, json.dumps(report, ensure_ascii=False, indent=1) + "\n")


def write_predictions(path: Path, rows: Sequence[Relation], probabilities: np.ndarray) -> str:
    """One JSON object a row; probabilities: (rows, 30), official order. Returns the file's SHA-256, by which a report knows its own."""
    text = "".join(_prediction_line(row, p) for row, p in zip(rows, probabilities, strict=True))
    aside.write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def summary(report: dict[str, Any]) -> str:
    """A report in a dozen lines: the scores, and the labels with the most rows."""
    frequent = sorted(report["per_label"].items(), key=lambda item: -item[1]["support"])[:8]
    lines = [
        f"{report['model']} on {report['data']}: {report['num_examples']:,} rows, {report['precision']}, "
        f"format {report['input_format']}, head {report['head']}, {report['num_cut']:,} cut to {report['max_length']} tokens",
        f"micro-F1 {report['micro_f1']:.2f}   AUPRC {report['auprc']:.2f}   accuracy {report['accuracy']:.2f}",
        *_training_lines(report),
        f"{'most frequent labels':<38}{'rows':>6}{'precision':>11}{'recall':>8}{'F1':>8}",
        *(f"{name:<38}{s['support']:>6}{s['precision']:>11.1f}{s['recall']:>8.1f}{s['f1']:>8.1f}" for name, s in frequent if s["support"]),
    ]
    return "\n".join(lines)


def _training_lines(report: dict[str, Any]) -> list[str]:
    if "label_shift" not in report:
        return []
    rows, shift = report["training_rows"], report["label_shift"]
    done = {"keep": "kept", "drop": "left out"}[rows["conflicts"]]
    return [
        f"{report['selection']}; {rows['number']:,} training rows, {rows['conflicting']:,} that contradict another {done}; label shares "
        f"differ by {shift['total_variation']:.3f} from training (micro-F1 at these shares: {shift['micro_f1_at_these_shares']:.2f})"
    ]


def _prediction_line(row: Relation, probabilities: np.ndarray) -> str:
    prediction = {
        "guid": row.guid,
        "label": LABELS[row.label],
        "prediction": LABELS[int(probabilities.argmax())],
        "probabilities": probabilities.tolist(),
    }
    return json.dumps(prediction, ensure_ascii=False) + "\n"
