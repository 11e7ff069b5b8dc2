"""Reading triples, and the page of an evaluation, against plain recounting."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support

from data_tools.errors import UserError
from trainer import relation_board
from trainer.relation_page import _curves, calibration_error, render
from trainer.relations import LABELS, Entity, Relation
from trainer.scores import calibration_bins, score_relations
from trainer.triples import one_row, read_triples

SENTENCE = "서울 사람 <김> & 김서울은 서울에서 산다."


def test_a_row_from_words() -> None:
    row = one_row(SENTENCE, "김서울", "서울", ("PER", "LOC"))
    assert (row.subject.start, row.subject.end, row.object.start) == (12, 14, 0) and row.object.type == "LOC"
    inside = one_row("김서울은 서울에 산다", "김서울", "서울", ("PER", "LOC"))
    assert inside.object.start == 5  # the first place that the subject leaves free
    for words, message in (
        ((SENTENCE, "부산", "서울"), "--subject '부산': expected a word"),
        (("김서울은", "김서울", "서울"), "expected two places"),
        (("", "가", "나"), "--sentence: expected text"),
    ):
        with pytest.raises(UserError, match=message):
            one_row(*words, ("PER", "LOC"))
    with pytest.raises(UserError, match="--types"):
        one_row(SENTENCE, "김서울", "서울", ("PER", "CITY"))


def test_the_likeliest_triples_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    row = one_row(SENTENCE, "김서울", "서울", ("PER", "LOC"))
    assert (row.subject.type, row.object.type) == ("PER", "LOC")
    monkeypatch.setattr("trainer.triples.encode_rows", lambda classifier, rows, source: rows)
    probabilities = np.zeros((1, len(LABELS)))
    probabilities[0, [7, 9, 3]] = 0.2, 0.4, 0.4  # of equal ones the first, as argmax has it
    monkeypatch.setattr("trainer.triples.predict_probabilities", lambda classifier, encoded: probabilities)
    (found,) = read_triples(None, [row], "", top=3)  # type: ignore[arg-type]
    assert [(t.subject, t.relation, t.object, t.probability) for t in found] == [
        ("김서울", LABELS[number], "서울", share) for number, share in ((3, 0.4), (9, 0.4), (7, 0.2))
    ]


def test_the_curves_of_few_rows_are_the_library_s() -> None:
    """30 rows of a relation among 1,800: nearly all thresholds lie where every one of them is found."""
    rng = np.random.default_rng(0)
    labels = np.zeros(1800, int)
    labels[:30] = 5
    odds = rng.normal(size=1800) + 2 * (labels == 5)
    probabilities = np.zeros((1800, len(LABELS)))
    probabilities[:, 5] = 1 / (1 + np.exp(-odds))
    probabilities[:, 0] = 1 - probabilities[:, 5]
    precision, recall, _ = precision_recall_curve(labels == 5, probabilities[:, 5])
    drawn = re.findall(r'<polyline points="([^"]*)"', _curves(labels, probabilities))[1]  # the relation with the second most rows
    points = np.array([[float(number) for number in point.split(",")] for point in drawn.split()])
    x, y = (points[:, 0] - 30) / 210, 1 - (points[:, 1] - 20) / 210
    for level in np.unique(recall):  # at every recall the curve has a point of the library's, on its line
        near = np.abs(x - level) < 1e-3
        assert near.any() and np.abs(y[near][:, None] - precision[recall == level]).min() < 1e-3


def test_the_board_shows_what_is_counted() -> None:
    labels, predictions = np.array([3, 3, 3, 7]), np.array([7, 7, 3, 7])
    axes = relation_board._confusion(labels, predictions).axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    shown = {(names[int(text.get_position()[1])], names[int(text.get_position()[0])]): int(text.get_text()) for text in axes.texts}
    assert shown == {(LABELS[3], LABELS[7]): 2, (LABELS[3], LABELS[3]): 1, (LABELS[7], LABELS[7]): 1}
    assert axes.get_ylabel().startswith("true") and axes.get_xlabel() == "predicted"
    row = one_row(SENTENCE, "김서울", "서울", ("PER", "LOC"))
    probabilities = np.zeros((1, len(LABELS)))
    probabilities[0, 4] = 1
    assert "| *서울* 사람 <김> & **김서울**은 서울에서 산다. |" in relation_board._mistakes([row], np.array([0]), probabilities)


def test_the_page_shows_what_is_counted() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(len(LABELS), 0.05), 300)
    labels = np.where(rng.random(300) < 0.6, probabilities.argmax(axis=1), rng.integers(0, 6, 300))
    rows = [
        Relation(f"row-{n}", SENTENCE, Entity("김서울", 12, 14, "PER"), Entity("서울", 0, 1, "LOC"), int(label))
        for n, label in enumerate(labels)
    ]
    reading = {"input_format": "none", "head": "cls", "num_cut": 7, "max_length": 90}
    page = render(rows, probabilities, {"model": "<m>", "data": "d", **score_relations(labels, probabilities), **reading})
    tree = ElementTree.fromstring(re.sub("<meta[^>]*>|<!doctype html>", "", page))
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    titles = [title.text or "" for title in tree.iter("title")]
    for true, predicted in ((0, 0), (3, 7), (2, 2)):
        count = int(((labels == true) & (predictions == predicted)).sum())
        assert f"{count} rows: {LABELS[true]} read as {LABELS[predicted]}" in titles
        (box,) = (
            rect for rect in tree.iter("rect") if rect.findtext("title") == f"{count} rows: {LABELS[true]} read as {LABELS[predicted]}"
        )
        names = {text.text: text for text in tree.iter("text") if text.get("text-anchor") == "end" and text.text in LABELS}
        columns = {text.text: text.get("transform") or "" for text in tree.iter("text") if "rotate" in (text.get("transform") or "")}
        assert 0 < float(names[LABELS[true]].get("y") or 0) - float(box.get("y") or 0) < 24
        assert 0 < float(columns[LABELS[predicted]].split("(")[1].split(",")[0]) - float(box.get("x") or 0) < 24
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, labels=[2], zero_division=0)
    (line,) = (line for line in tree.iter("tr") if line.findtext("td") == LABELS[2])
    assert [cell.text for cell in line.iter("td")][1:4] == [f"{100 * value[0]:.1f}" for value in (f1, precision, recall)]
    circles = [(circle.get("cx"), circle.get("cy")) for circle in tree.iter("circle")]
    confident, right, _ = calibration_bins(labels, probabilities)[0]
    assert circles[0] == (f"{30 + 300 * confident:.1f}", f"{320 - 300 * right:.1f}")
    wrong = np.flatnonzero(labels != predictions)
    most = wrong[confidence[wrong].argmax()]
    mistakes = [element for element in tree.iter("div") if element.get("class") == "mistake"]
    assert len(mistakes) == min(40, len(wrong)) and f"row-{most}:" in "".join(mistakes[0].itertext())
    assert [span.text for span in mistakes[0].iter("span")][:2] == ["서울", "김서울"] and SENTENCE in "".join(mistakes[0].itertext())
    expected = 0.0
    for low in np.arange(10) / 10:
        chosen = (confidence >= low) & (confidence < low + 0.1)
        if chosen.any():
            expected += chosen.mean() * abs(confidence[chosen].mean() - (labels == predictions)[chosen].mean())
    assert calibration_error(labels, probabilities) == pytest.approx(expected)
    assert "src=" not in page and "href=" not in page
