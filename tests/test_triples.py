"""Reading triples, and the page of an evaluation, against plain recounting."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from data_tools.errors import UserError
from trainer.relation_page import calibration_error, render
from trainer.relations import LABELS, Entity, Relation
from trainer.scores import score_relations
from trainer.triples import one_row

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
