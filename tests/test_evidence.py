"""The table of experiments: every cell is a recipe that loads, and the runner does each once, whatever happens to it."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from scipy.stats import ttest_rel

from benchmarks import evidence, evidence_report, variants
from trainer import engine
from trainer.recipe import Optimizer, load_recipe


def test_every_cell_is_a_recipe_with_its_number_of_tokens() -> None:
    given, cells = evidence.read_cells()
    path = given["recipe"]
    assert len({cell.label for cell in cells}) == len(cells) > 20
    for cell in cells:
        recipe = load_recipe(Path(path), cell.overrides(yaml.safe_load(Path(path).read_text(encoding="utf-8"))))
        assert recipe.total_steps * recipe.global_batch_size * recipe.sequence_length == cell.tokens and recipe.seed == cell.seed
        assert [stage.train for stage in recipe.stages] == [tuple(stage["train"]) for stage in cell.stages]


@pytest.mark.parametrize(
    "change, rates",
    [("encoder=0.5", {0: 1.0, 1: 0.5, 2: 0.5, 3: 0.5, 4: 1.0}), ("layerwise=0.5", {0: 1.0, 1: 0.125, 2: 0.25, 3: 0.5, 4: 1.0})],
)
def test_discriminative_rates_are_those_of_the_seeds_layers(change, rates, monkeypatch) -> None:
    monkeypatch.setattr(engine, "parameter_groups", engine.parameter_groups)
    monkeypatch.setattr(engine.StageEngine, "set_learning_rate", engine.StageEngine.set_learning_rate)
    variants.apply(change)
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (9, 4), "head.bias": (9,)}
    for layer in rates:
        shapes |= {f"encoder.layer.{layer}.dense.weight": (4, 4), f"encoder.layer.{layer}.dense.bias": (4,)}
    groups = engine.parameter_groups(shapes, set(shapes), {}, Optimizer())
    assert sorted(name for group in groups for name in group.names) == sorted(shapes)
    inner = [{"weight_decay": group.weight_decay} for group in groups]
    stage = SimpleNamespace(_groups=groups, _zero=SimpleNamespace(optimizer=SimpleNamespace(param_groups=inner)))
    engine.StageEngine.set_learning_rate(stage, 2.0)
    for group, own in zip(groups, inner, strict=True):
        for name in group.names:
            layer = int(name.split(".")[2]) if "layer" in name else 0
            assert own["lr"] == 2 * rates[layer] and own["weight_decay"] == (0.01 if len(shapes[name]) > 1 else 0)


class Stub:
    """A process that has ended, or goes on until it is asked to stop."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.returncode = 143


def test_cells_are_done_once_a_failure_does_not_stop_the_others_and_time_ends(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence.time, "sleep", lambda seconds: None)
    cells = [evidence.Cell("t", name, 0, 4096, [0.5, 1.0] if name == "klue" else [], "", [], {}, []) for name in ("good", "bad", "klue")]
    given = {"fine_tuning": ["--epochs", "1"]}
    monkeypatch.setattr(evidence, "read_cells", lambda: (given, cells))
    started = []

    def start(cell, given, arguments):
        started.append(cell.name)
        evidence.note_origin(cell, given)
        (cell.run / "model").mkdir(parents=True, exist_ok=True)
        if cell.name == "bad":
            return Stub(1)
        if (cell.run / "model" / "config.json").is_file():  # post-trained: now KLUE-RE
            share = next(share for share in cell.klue if not evidence.fine_tuned(cell, share).is_file())
            evidence.fine_tuned(cell, share).parent.mkdir()
            scores = dict.fromkeys(("micro_f1", "auprc", "accuracy", "num_examples", "training_seconds"), 1)
            evidence.fine_tuned(cell, share).write_text(json.dumps(scores))
            return Stub(0)
        (cell.run / "checkpoints").mkdir(exist_ok=True)
        (cell.run / "model" / "config.json").write_text("{}")
        row = {"step": 1, "stage": "all", "valid_loss": 7.5, "tokens_per_second": 3.0}
        (cell.run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return Stub(0)

    monkeypatch.setattr(evidence, "start", start)
    monkeypatch.setattr(evidence, "probe", lambda run, lexicon: {"seen": (run / "checkpoints").is_dir()})
    monkeypatch.setattr(evidence, "test_loss", lambda model, corpus: 7.25)
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"valid": {"tokens": 1, "characters": 2}}}))
    arguments = argparse.Namespace(corpus=tmp_path, only="", minutes=1, jobs=2, lexicon=None, commit=False)
    assert evidence.run(arguments) == 1 and sorted(started) == ["bad", "good", "klue", "klue", "klue"]
    record = json.loads(cells[2].record.read_text())
    assert (
        record["curve"] == [[1, "all", 7.5]]
        and [row["tokens"] for row in record["klue_re"]] == [2048, 4096]
        and record["klue_re"][0]["micro_f1"] == 1
        and record["test_loss"] == 7.25
        and len(record["commits"]) == 1
        and not cells[1].record.exists()
    )
    started.clear()
    assert evidence.run(arguments) == 1 and started == ["bad"]

    # a score that is asked for later is added to the record; what the checkpoints showed, which are gone, stays
    monkeypatch.setattr(evidence, "read_cells", lambda: (given, [replace(cells[0], klue=[1.0])]))
    started.clear()
    assert evidence.run(arguments) == 0 and evidence.run(arguments) == 0 and started == ["good"]
    record = json.loads(cells[0].record.read_text())
    assert record["klue_re"][0]["tokens"] == 4096 and record["probes"] == {"seen": True}

    # what was recorded or begun under another definition is neither taken for done nor gone on with; the others are
    changed = [replace(cells[0], variant=["unfitted"]), replace(cells[1], stages=[{"share": 1.0}]), replace(cells[2], seed=1)]
    monkeypatch.setattr(evidence, "read_cells", lambda: (given, changed))
    started.clear()
    assert evidence.run(arguments) == 2 and started == ["bad", "klue", "klue", "klue"]
    told = capsys.readouterr().out
    assert "t.good.0: OtherExperimentError" in told and "is of another variant" in told and "is of another stages" in told
    monkeypatch.setattr(evidence, "read_cells", lambda: ({"fine_tuning": ["--epochs", "3"]}, cells[2:]))
    assert evidence.run(arguments) == 1 and "is of another fine_tuning" in capsys.readouterr().out

    # a score that the checkpoints are needed for, which are gone
    monkeypatch.setattr(evidence, "read_cells", lambda: (given, [replace(cells[2], klue=[0.25, 0.5, 1.0])]))
    monkeypatch.setattr(evidence, "start", lambda cell, given, arguments: evidence.export(cell, 0.25, tmp_path))
    assert evidence.run(arguments) == 1 and "the checkpoints of" in capsys.readouterr().out

    monkeypatch.setattr(evidence, "read_cells", lambda: (given, cells))
    started.clear()
    monkeypatch.setattr(evidence, "start", lambda cell, given, arguments: started.append(cell.name) or Stub(None))
    arguments.minutes = 0
    assert evidence.run(arguments) == 0 and not started


@pytest.mark.parametrize("only", ["itl", "main.xpt"])
def test_a_part_of_the_table_can_be_run(only, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path)
    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    started = []
    monkeypatch.setattr(evidence, "start", lambda cell, given, arguments: started.append(cell.label) or Stub(1))
    monkeypatch.setattr(evidence.time, "sleep", lambda seconds: None)
    evidence.run(argparse.Namespace(only=only, minutes=1, jobs=2, lexicon=None, commit=False))
    assert started and all(label.startswith(only) for label in started)


def record(name: str, seed: int, losses: list[float], scores: list[float]) -> dict:
    """Of a run of 4M tokens, 100 steps each between validations."""
    steps = 100 * (len(losses) - 1)
    curve = [[100 * place, "all", loss] for place, loss in enumerate(losses)]
    rows = [{"tokens": 2e6 * (place + 1), "micro_f1": score, "auprc": score} for place, score in enumerate(scores)]
    table, own = name.split(".")
    given = {"table": table, "name": own, "seed": seed, "tokens": 4_000_000, "text": "", "variant": [], "set": {}, "stages": []}
    return {**given, "steps": steps, "curve": curve, "klue_re": rows}


def test_what_is_no_comparison_has_no_difference(tmp_path, monkeypatch) -> None:
    reference = record(evidence_report.REFERENCE, 0, [9, 5], [])
    own = {"better": {}, "masked": {"set": {"masking.rate": 0.3}}, "pieces": {"text": "-8k", "tokens_per_character": 0.5},
           "longer": {"tokens": 8_000_000}, "part": {"text": "-10", "test_loss": 4.5}}  # fmt: skip
    records = {f"knobs.{name}": [record(f"knobs.{name}", 0, [9, 4], []) | change] for name, change in own.items()}
    records |= {evidence_report.REFERENCE: [reference | {"tokens_per_character": 0.4}]}
    for found in records.values():
        found[0].setdefault("tokens_per_character", 0.4)
    lines = evidence_report.table("knobs", records).splitlines()[2:]
    shown = {line.split(" | ")[0].strip("| *"): [entry.strip(" |") for entry in line.split(" | ")] for line in lines}
    assert {name: row[6] for name, row in shown.items()} == {
        "better": "-1.000", "part": "-1.000", "reference": "", "masked": "", "pieces": "", "longer": ""
    }  # fmt: skip
    assert list(shown)[:3] == ["better", "part", "reference"] and shown["part"][5] == "4.500" and shown["better"][5] == ""
    (tmp_path / "a.json").write_text(json.dumps(record("t.cell", 0, [9, 4], [])))
    (tmp_path / "b.json").write_text(json.dumps(record("t.cell", 1, [9, 4], []) | {"variant": ["unfitted"]}))
    monkeypatch.setattr(evidence_report, "RECORDS", tmp_path)
    with pytest.raises(ValueError, match=r"b\.json: its variant are not those of seed 0"):
        evidence_report.read_records()


def test_a_random_encoder_is_random_in_its_layers_only() -> None:
    names = {"bert.encoder.layer.0.dense.weight": (8, 8), "bert.encoder.layer.0.dense.bias": (8,), "bert.embeddings.word.weight": (9, 8)}
    weights = {name: torch.full(shape, 7.0) for name, shape in names.items()} | {"bert.encoder.layer.0.LayerNorm.weight": torch.ones(8) * 7}
    architecture = SimpleNamespace(layer_of=lambda name: 0 if ".layer." in name else None)
    seed = SimpleNamespace(weights=weights, architecture=architecture, config=SimpleNamespace(initializer_range=0.02))
    variants.with_random_layers(lambda _: seed)("any")
    first, bias, words, norm = weights.values()
    assert 0.01 < first.std() < 0.03 and bias.eq(0).all() and norm.eq(1).all() and words.eq(7).all()


def test_the_report_says_what_the_records_say() -> None:
    xpt = [record("main.xpt", 0, [9, 6, 4, 3, 2], [30, 50]), record("main.xpt", 1, [9, 7, 5, 3, 2.2], [32, 52])]
    scratch = [record("main.scratch", 0, [9, 8, 8, 7, 5], [10, 20]), record("main.scratch", 1, [9, 8, 8, 7, 6], [10, 24])]
    records = {"main.xpt": [*xpt[::-1], record("main.xpt", 2, [9, 3, 2, 1, 0.1], [60, 70])], "main.scratch": scratch}
    # seed 0 has 5 half-way between 6 after 1M tokens and 4 after 2M; seed 1 has 6 half-way between 7 and 5
    lines = evidence_report.hypotheses(records)  # seed 2 has nothing to be compared with
    assert "seed 0: xpt has scratch's last loss, 5.000, after 1.50M tokens, 1/2.7" in lines and "seed 1" in lines
    interval = ttest_rel([50, 52], [20, 24]).confidence_interval()
    assert f"+29.00 ({interval.low:+.2f} to {interval.high:+.2f})" in lines
    records["main.xpt"].pop()
    assert evidence_report.table("main", records).splitlines()[2:] == [
        "| xpt | 2 | 4M | 2.100 ± 0.141 | 8.2 | 51.00 ± 1.41 |",
        "| scratch | 2 | 4M | 5.500 ± 0.707 | 244.7 | 22.00 ± 2.83 |",
    ]
    assert "| xpt | micro-F1 | 31.00 ± 1.41 | 51.00 ± 1.41 |" in evidence_report.scores_table(records)
    text = "Words.\n<!-- make results: hypotheses -->\nold\nolder\n<!-- end -->\nMore.\n"
    assert evidence_report.rendered(text, records) == text.replace("old\nolder", lines)


def test_the_document_is_what_the_records_make_it() -> None:
    text = (evidence_report.DOCS / "results.md").read_text(encoding="utf-8")
    assert text.count("<!-- make results") == text.count("<!-- end -->") > 2
    assert evidence_report.rendered(text, evidence_report.read_records()) == text, "run `make results`"
