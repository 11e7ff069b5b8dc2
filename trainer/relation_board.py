"""An evaluation on KLUE-RE in TensorBoard: what `trainer.relation_page` shows, beside the curves of the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from trainer.relations import LABELS, Relation
from trainer.scores import NUM_CURVES, calibration_bins, calibration_error, confident_mistakes, confusion, most_frequent

NUM_MISTAKES = 20


def draw_evaluation(folder: Path, step: int, rows: Sequence[Relation], probabilities: np.ndarray, report: dict[str, Any]) -> None:
    """Precision-recall curves, F1 per relation, confusion, calibration, mistakes. probabilities: (rows, 30), official order."""
    labels = np.array([row.label for row in rows])
    with SummaryWriter(str(folder)) as board:
        for label in most_frequent(labels, NUM_CURVES):
            board.add_pr_curve(f"precision_recall/{LABELS[label]}", labels == label, probabilities[:, label], step)
        board.add_figure("evaluation/f1_per_relation", _f1_per_relation(report["per_label"]), step)
        board.add_figure("evaluation/confusion", _confusion(labels, probabilities.argmax(axis=1)), step)
        board.add_figure("evaluation/calibration", _calibration(labels, probabilities), step)
        board.add_scalar("evaluation/calibration_error", calibration_error(labels, probabilities), step)
        if "label_shift" in report:
            board.add_scalar("evaluation/label_shift", report["label_shift"]["total_variation"], step)
        board.add_text("evaluation/confident_mistakes", _mistakes(rows, labels, probabilities), step)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.figure  # takes a second, and only the end of a run needs it

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=110)
    return figure, figure.subplots()


def _f1_per_relation(per_label: dict[str, dict[str, float]]) -> Any:
    shown = sorted((item for item in per_label.items() if item[1]["support"]), key=lambda item: item[1]["support"])
    figure, axes = _figure(8, 1 + 0.28 * len(shown))
    axes.barh([f"{name} ({scores['support']:.0f})" for name, scores in shown], [scores["f1"] for _, scores in shown], color="#5b8bd6")
    axes.set(xlabel="F1; in brackets the rows", xlim=(0, 100))
    return figure


def _confusion(labels: np.ndarray, predictions: np.ndarray) -> Any:
    used, counts = confusion(labels, predictions)
    figure, axes = _figure(10, 9)
    axes.imshow(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    names = [LABELS[number] for number in used]
    axes.set_xticks(range(len(used)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(used)), names, fontsize=7)
    axes.set(xlabel="predicted", ylabel="true; the shade is the share of the row")
    for y, x in zip(*np.nonzero(counts), strict=True):
        dark = counts[y, x] > 0.5 * counts[y].sum()
        axes.text(x, y, counts[y, x], ha="center", va="center", fontsize=6, color="white" if dark else "#1d2430")
    return figure


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Any:
    figure, axes = _figure(5, 5)
    confidence, right, share = zip(*calibration_bins(labels, probabilities), strict=True)
    axes.plot([0, 1], [0, 1], "--", color="#9aa7b8")
    axes.scatter(confidence, right, [20 + 600 * part for part in share], color="#5b8bd6", alpha=0.75)
    axes.set(xlabel="probability of the prediction", ylabel="share that is right; size: share of the rows", xlim=(0, 1), ylim=(0, 1))
    return figure


def _mistakes(rows: Sequence[Relation], labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Markdown: the subject bold, the object in italics."""
    lines = ["| row | said | is | sentence |", "|---|---|---|---|"]
    for place in confident_mistakes(labels, probabilities, NUM_MISTAKES):
        said, row = int(probabilities[place].argmax()), rows[place]
        text = row.sentence
        marks = ((row.subject, "**"), (row.object, "*"))
        for entity, mark in sorted(marks, key=lambda pair: -pair[0].start):  # from the end, so that the offsets hold
            text = f"{text[: entity.start]}{mark}{text[entity.start : entity.end + 1]}{mark}{text[entity.end + 1 :]}"
        told = f"{LABELS[said]} ({probabilities[place, said]:.2f})", f"{LABELS[row.label]} ({probabilities[place, row.label]:.2f})"
        lines.append(f"| {row.guid} | {told[0]} | {told[1]} | {text.replace('|', '&#124;')} |")
    return "\n".join(lines)
