"""The table of experiments: every cell is a recipe that loads, and the runner does each once, whatever happens to it."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from benchmarks import evidence
from trainer.recipe import load_recipe


def test_every_cell_is_a_recipe_with_its_number_of_tokens() -> None:
    given, cells = evidence.read_cells()
    path = given["recipe"]
    assert len({cell.label for cell in cells}) == len(cells) > 20
    for cell in cells:
        recipe = load_recipe(Path(path), cell.overrides(yaml.safe_load(Path(path).read_text(encoding="utf-8"))))
        assert recipe.total_steps * recipe.global_batch_size * recipe.sequence_length == cell.tokens and recipe.seed == cell.seed
        assert [stage.train for stage in recipe.stages] == [tuple(stage["train"]) for stage in cell.stages]


class Stub:
    """A process that has ended, or goes on until it is asked to stop."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.returncode = 143


def test_cells_are_done_once_a_failure_does_not_stop_the_others_and_time_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence.time, "sleep", lambda seconds: None)
    cells = [evidence.Cell("t", name, 0, 4096, [0.5, 1.0] if name == "klue" else [], "", [], {}, []) for name in ("good", "bad", "klue")]
    monkeypatch.setattr(evidence, "read_cells", lambda: ({}, cells))
    started = []

    def start(cell, given, arguments):
        started.append(cell.name)
        (cell.run / "model").mkdir(parents=True, exist_ok=True)
        if cell.name == "bad":
            return Stub(1)
        if (cell.run / "model" / "config.json").is_file():  # post-trained: now KLUE-RE
            share = next(share for share in cell.klue if not evidence.fine_tuned(cell, share).is_file())
            evidence.fine_tuned(cell, share).parent.mkdir()
            scores = dict.fromkeys(("micro_f1", "auprc", "accuracy", "num_examples", "training_seconds"), 1)
            evidence.fine_tuned(cell, share).write_text(json.dumps(scores))
        (cell.run / "model" / "config.json").write_text("{}")
        row = {"step": 1, "stage": "all", "valid_loss": 7.5, "tokens_per_second": 3.0}
        (cell.run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return Stub(0)

    monkeypatch.setattr(evidence, "start", start)
    monkeypatch.setattr(evidence, "probe", lambda run, lexicon: {})
    arguments = argparse.Namespace(only="", minutes=1, jobs=2, lexicon=None, commit=False)
    assert evidence.run(arguments) == 1 and sorted(started) == ["bad", "good", "klue", "klue", "klue"]
    record = json.loads(cells[2].record.read_text())
    assert (
        record["curve"] == [[1, "all", 7.5]]
        and [row["tokens"] for row in record["klue_re"]] == [2048, 4096]
        and record["klue_re"][0]["micro_f1"] == 1
        and not cells[1].record.exists()
    )
    started.clear()
    assert evidence.run(arguments) == 1 and started == ["bad"]
    monkeypatch.setattr(evidence, "start", lambda cell, given, arguments: started.append(cell.name) or Stub(None))
    assert evidence.run(argparse.Namespace(only="", minutes=0, jobs=2, lexicon=None, commit=False)) == 0 and started == ["bad"]


@pytest.mark.parametrize("only", ["itl", "main.xpt"])
def test_a_part_of_the_table_can_be_run(only, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path)
    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    started = []
    monkeypatch.setattr(evidence, "start", lambda cell, given, arguments: started.append(cell.label) or Stub(1))
    monkeypatch.setattr(evidence.time, "sleep", lambda seconds: None)
    evidence.run(argparse.Namespace(only=only, minutes=1, jobs=2, lexicon=None, commit=False))
    assert started and all(label.startswith(only) for label in started)
