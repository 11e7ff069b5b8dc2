"""The catalogue's file, its short names, its renderings, and the page and pictures made from it."""

import csv
import io
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import pytest

from benchmarks import survey_figures
from data_tools.errors import UserError
from trainer.catalogue import (
    MODELS,
    as_csv,
    as_markdown,
    as_text,
    read_models,
    read_objectives,
    resolve_model,
    resolve_named,
    select,
)

ROOT = Path(__file__).parent.parent
IDS = {
    "klue-bert": "klue/bert-base",
    "mbert": "bert-base-multilingual-cased",
    "koelectra": "monologg/koelectra-base-v3-discriminator",
    "kobigbird": "monologg/kobigbird-bert-base",
    "kogpt2": "skt/kogpt2-base-v2",
    "kobart": "gogamza/kobart-base-v2",
    "ke-t5": "KETI-AIR/ke-t5-base",
    "mt5": "google/mt5-base",
    "xlm-r": "xlm-roberta-base",
}


def test_the_file_holds_the_survey() -> None:
    models = read_models()
    assert [len(select(models, scope)) for scope in ("korean", "multilingual", "english", "architecture")] == [21, 9, 2, 8]
    assert len(read_objectives()) == 28
    assert [model.short for model in models if "not in the survey" in model.source] == ["xlm-r"]
    facts = {model.short: (model.structure, model.objectives, model.vocabulary, model.parameters, model.date) for model in models}
    assert facts["hanbert"] == ("encoder", "MLM; NSP", "54000", "128M", "2020-01")
    assert facts["kobart"] == ("encoder-decoder", "DAE", "30000", "124M", "2020-12")
    assert facts["koelectra"] == ("encoder", "RTD", "", "", "2020-04")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (",skt/kogpt2-base-v2,", ",,", "kogpt2: evidence"),
        (",skt/kobert-base-v1,used in public code,", ",skt/kobert-base-v1,,", "kobert: evidence"),
        ("kogpt2,KoGPT2,", "kobert,KoGPT2,", "short 'kobert' appears twice"),
        (",no Hub id is known,structure,", ",,structure,", "korealbert: not_runnable"),
        (",decoder,NTP,", ",decoder,NPT,", "kogpt2: objectives: 'NPT'"),
        (",decoder,NTP,", ",decodes,NTP,", "kogpt2: structure"),
        (",2020-02,", ",2020-13,", "kogpt2: date"),
        ("short,name,", "name,short,", "expected the columns"),
        (",54000,", ",54,000,", "cells"),
    ],
)
def test_a_file_that_breaks_its_rules_is_refused(tmp_path: Path, before: str, after: str, told: str) -> None:
    text = MODELS.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "models.csv").write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(told)):
        read_models(tmp_path / "models.csv")


def test_short_names_become_hub_ids_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {short: resolve_model(short) for short in IDS} == IDS
    assert resolve_model("KLUE-BERT") == "klue/bert-base"
    for given in ("klue/bert-base", "skt/kobert-base-v1", "run/model", "bert-base", "", "klue-bert/"):
        assert resolve_model(given) == given
    assert resolve_named("mine=klue-bert") == "mine=klue/bert-base"
    assert resolve_named("klue-bert") == "klue-bert=klue/bert-base"
    for given in ("mine=run/model", "run/model", "klue-bert=", "=klue/bert-base"):
        assert resolve_named(given) == given
    (tmp_path / "mbert").mkdir()
    assert resolve_model("mbert") == "mbert"


def test_what_cannot_run_is_refused_with_its_reason() -> None:
    reasons = {"distilkobert": "remote code", "hyperclova": "public", "kogpt": "branch", "exaone": "not released", "t5": "architecture"}
    for short, reason in reasons.items():
        for resolve, given in ((resolve_model, short), (resolve_named, f"x={short}"), (resolve_named, short)):
            with pytest.raises(UserError, match=f"--model {short}: .*{reason}.*; take one that"):
                resolve(given)
    for model in read_models():
        if not model.not_runnable:
            assert resolve_model(model.short) == model.hub_id


def test_ids_without_evidence_are_marked_wherever_they_are_shown() -> None:
    unverified = ["xlm-r", "mbart", "mt5", "bert"]
    models = read_models()
    assert [model.short for model in models if model.runs == "unverified"] == unverified
    rows = as_markdown(models).splitlines()[2:]
    assert [model.short for model, row in zip(models, rows, strict=True) if row.endswith("` (unverified) |")] == unverified
    assert [line.split()[0] for line in as_text(models, 300).splitlines() if line.endswith("  unverified")] == unverified


def test_filters_hold_together() -> None:
    models = read_models()
    assert [m.short for m in select(models, "korean", "encoder-decoder")] == ["kobart", "ke-t5", "et5"]
    assert [m.short for m in select(models, "korean", "decoder", runnable=True)] == ["kogpt2", "kogpt-trinity"]
    assert [m.short for m in select(models, "multilingual", runnable=True)] == ["mbert", "xlm-r", "mbart", "mt5"]
    assert select(models) == models


@pytest.mark.parametrize("width", [80, 100, 140, 300])
def test_the_text_table_keeps_its_width_and_every_letter(width: int) -> None:
    models = read_models()
    table = as_text(models, width).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= max(width, 10 * 8 + 18)
    rule = next(line for line in table if line.startswith("---"))
    begins = [match.start() for match in re.finditer("-+", rule)]
    letters = ["".join(line[begin:end].strip() for line in table) for begin, end in pairwise([*begins, None])]
    corpora = "".join(model.all_text or "~" for model in models)
    assert letters[5].replace(" ", "") == "corpus" + "-" * rule.split()[5].count("-") + corpora.replace(" ", "")


def test_the_command_prints_csv_that_reads_back_and_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = sys.argv[1:]; from trainer.klue_re import main; main(); assert not {'torch', 'numpy'} & set(sys.modules)"
    command = [sys.executable, "-c", code, "klue_re.py", "models", "--scope", "korean", "--format", "csv"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = select(read_models(), "korean")
    assert list(csv.DictReader(io.StringIO(printed))) == [asdict(model) for model in expected]
    assert printed == as_csv(expected)


@pytest.mark.parametrize(
    "arguments", [["train", "--model", "exaone", "--output-dir", "o"], ["compare", "--model", "a=exaone", "--eval-file", "e"]]
)
def test_train_and_compare_know_the_names(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "trainer/klue_re.py", *arguments, "--train-file", "t", "--output-dir", "o"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --model exaone: EXAONE cannot be run: not released"), ended.stderr


def test_the_page_and_the_pictures_are_up_to_date() -> None:
    again = "run `python benchmarks/survey_figures.py`"
    assert (ROOT / survey_figures.PAGE).read_text(encoding="utf-8") == survey_figures.page(read_models(), read_objectives()), again
    for picture in (survey_figures.TIMELINE, survey_figures.MATRIX):
        assert survey_figures.checksum().encode() in (ROOT / picture).read_bytes(), again


def test_no_text_of_the_pictures_covers_another_or_leaves_its_card() -> None:
    matplotlib.use("Agg")
    figures = [survey_figures.timeline(select(read_models(), "korean")), survey_figures.matrix(read_models(), read_objectives())]
    for figure in figures:
        figure.draw_without_rendering()
        edge = figure.bbox.padded(1)
        flat = [text for text in figure.axes[0].texts if not text.get_rotation()]
        boxes = {text.get_text(): text.get_window_extent().padded(-1) for text in flat}
        for (one, a), (other, b) in combinations([(text.get_text(), text.get_window_extent().padded(-1)) for text in flat], 2):
            assert not a.overlaps(b), f"{one!r} and {other!r}"
        for name, box in boxes.items():
            assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1, name
    cards = [patch.get_window_extent() for patch in figures[0].axes[0].patches if type(patch).__name__ == "FancyBboxPatch"]
    assert len(cards) == 21
    for text in figures[0].axes[0].texts:
        box = text.get_window_extent()
        for card in cards:
            if card.overlaps(box):
                assert card.x0 <= box.x0 and box.x1 <= card.x1 and card.y0 <= box.y0 and box.y1 <= card.y1, text.get_text()
