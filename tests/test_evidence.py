"""The table of experiments: every cell is a recipe that loads, and the runner does each once, whatever happens to it."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ttest_ind
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig

from benchmarks import evidence, evidence_report, probes, variants
from data_tools.corpus import Corpus
from data_tools.errors import UserError
from tests.tiny import make_corpus
from trainer import engine
from trainer.blocks import ContiguousBlocks, SpecialIds
from trainer.recipe import Masking, Optimizer, load_recipe


def test_every_cell_is_a_recipe_with_its_number_of_tokens() -> None:
    given, cells = evidence.read_cells()
    path = given["recipe"]
    assert len({cell.label for cell in cells}) == len(cells) > 20
    for cell in cells:
        settings = cell.overrides(yaml.safe_load(Path(path).read_text(encoding="utf-8")), given["common"])
        recipe = load_recipe(Path(path), ["surgery.lexicon=its.tsv", *settings])
        assert recipe.total_steps * recipe.global_batch_size * recipe.sequence_length == cell.tokens and recipe.seed == cell.seed
        assert [stage.train for stage in recipe.stages] == [tuple(stage["train"]) for stage in cell.stages]


def test_discriminative_rates_are_those_of_the_seeds_layers(monkeypatch) -> None:
    monkeypatch.setattr(engine, "parameter_groups", engine.parameter_groups)
    monkeypatch.setattr(engine.StageEngine, "set_learning_rate", engine.StageEngine.set_learning_rate)
    variants.apply("layerwise=0.5")
    rates = {0: 1.0, 1: 0.125, 2: 0.25, 3: 0.5, 4: 1.0}
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


def test_what_the_table_of_experiments_changes_is_there() -> None:
    for change in sorted({change for cell in evidence.read_cells()[1] for change in cell.variant}):
        key, _, value = change.partition("=")
        assert all(hasattr(place, name) for place, name in variants.CHANGES[key](value)), change
    with pytest.raises(SystemExit, match="no such change: parts2=copies"):
        variants.apply("parts2=copies")


def test_embeddings_can_be_made_without_one_kind_of_rows() -> None:
    """A translated piece that has no neighbours then is its translations' mean, as one that the corpus lacks."""
    near, other, meant, alone, same = np.arange(10.0).reshape(5, 2)
    rows = {"neighbours": {1: near, 2: other}, "translations": {2: meant, 3: alone}, "copies": {4: same}}
    made = {
        "neighbours+translations+copies": {1: near, 2: (other + meant) / 2, 3: alone, 4: same},
        "translations+copies": {2: meant, 3: alone, 4: same},
        "neighbours+copies": {1: near, 2: other, 4: same},
        "copies": {4: same},
    }
    for kept, expected in made.items():
        found = variants.only(kept.split("+"))(**rows)
        assert found.keys() == expected.keys() and all((found[piece] == row).all() for piece, row in expected.items()), kept


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
        evidence.note_origin(cell, given, arguments)
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
    arguments = given_files(tmp_path)
    assert evidence.run(arguments) == 1 and sorted(started) == ["bad", "good", "klue", "klue", "klue"]
    record = json.loads(cells[2].record.read_text())
    assert (
        record["curve"] == [[1, "all", 7.5]]
        and [row["tokens"] for row in record["klue_re"]] == [2048, 4096]
        and record["klue_re"][0]["micro_f1"] == 1
        and (record["test_loss"], record["corpus"]) == (7.25, Corpus.open(arguments.corpus).fingerprint)
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
    evidence.run(argparse.Namespace(**{**vars(given_files(tmp_path)), "only": only}))
    assert started and all(label.startswith(only) for label in started)


def test_a_cell_starts_with_the_files_it_names_and_no_others(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    arguments, given, said = given_files(tmp_path), evidence.read_cells()[0], []
    monkeypatch.setattr(evidence.subprocess, "Popen", lambda command, **_: said.append(command))
    monkeypatch.setattr(evidence.subprocess, "run", lambda command, **_: said.append(command))
    monkeypatch.setattr(evidence, "origins", SimpleNamespace(commit=lambda: "abc", processor=lambda: "a processor"))
    stages = [{"name": "all", "train": ["all"], "share": 1.0, "learning_rate": 1e-3}]
    cell = evidence.Cell("t", "cell", 7, 4096 * 8, [0.5, 1.0], "", ["unfitted"], {}, stages)
    evidence.start(cell, given, arguments)
    words = said.pop()
    assert words[1:4] == ["-m", "benchmarks.variants", "unfitted"] and "seed=7" in words and f"surgery.lexicon={arguments.lexicon}" in words
    assert "surgery.embedding_init=dictionary" in words
    assert words[words.index("--corpus") + 1] == str(arguments.corpus)

    (cell.run / "model").mkdir(parents=True)
    (cell.run / "model" / "config.json").write_text("{}")
    for step in (0, 4, 8):
        (cell.run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    evidence.start(cell, given, arguments)
    exported, words = said
    assert exported[exported.index("--checkpoint") + 1].endswith("checkpoints/step-4")
    wanted = {
        "--model": cell.run / "model-0.5", "--train-file": arguments.klue / "a_train.json", "--eval-file": arguments.klue / "a_dev.json",
        "--epochs": 1, "--learning-rate": "2e-4", "--seed": 7,
    }  # fmt: skip
    assert {flag: words[words.index(flag) + 1] for flag in wanted} == {flag: str(value) for flag, value in wanted.items()}

    (arguments.klue / "a_dev.json").write_text("[1]")
    with pytest.raises(evidence.OtherExperimentError, match="is of another klue_dev"):
        evidence.start(cell, given, arguments)
    (arguments.klue / "b_dev_part.json").write_text("[]")  # which of two files is read must not depend on the file system
    for wrong, message in (({}, r"expected one \*dev\*"), ({"only": "typo"}, "no cell")):
        with pytest.raises(UserError, match=message):
            evidence.run(argparse.Namespace(**{**vars(arguments), **wrong}))


def test_the_test_loss_is_of_the_test_split(tmp_path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    seen = []

    def model(input_ids):
        seen.append(input_ids)
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, len(tokenizer)))

    assert probes.loss_on_test(model, tokenizer, corpus) == pytest.approx(math.log(len(tokenizer)))
    ids = torch.cat(seen)[:, 1:-1]
    of_test = ContiguousBlocks(Corpus.open(corpus).split("test"), 128, SpecialIds.of(tokenizer), Masking(), 0)
    shown = of_test.validation(np.arange(len(ids)) * of_test.num_blocks // len(ids)).input_ids[:, 1:-1]
    assert torch.equal(ids, shown)


def given_files(folder: Path) -> argparse.Namespace:
    """What `run` is given: a corpus, a folder of KLUE-RE, a lexicon."""
    klue = folder / "klue"
    klue.mkdir()
    for name in ("a_train", "a_dev"):
        (klue / f"{name}.json").write_text("[]")
    (folder / "lexicon.tsv").write_text("water\t물\n")
    corpus = make_corpus(folder / "corpus")
    return argparse.Namespace(corpus=corpus, klue=klue, lexicon=folder / "lexicon.tsv", only="", minutes=1, jobs=2, commit=False)


def record(name: str, seed: int, losses: list[float], scores: list[float]) -> dict:
    """Of a run of 4M tokens, 100 steps each between validations."""
    steps = 100 * (len(losses) - 1)
    curve = [[100 * place, "all", loss] for place, loss in enumerate(losses)]
    rows = [{"tokens": 2e6 * (place + 1), "micro_f1": score, "auprc": score} for place, score in enumerate(scores)]
    table, own = name.split(".")
    given = {"table": table, "name": own, "seed": seed, "tokens": 4_000_000, "text": "", "variant": [], "set": {}, "stages": []}
    return {**given, "steps": steps, "curve": curve, "klue_re": rows}


def test_what_is_no_comparison_has_no_difference(tmp_path, monkeypatch) -> None:
    compared = evidence_report.COMPARED_WITH["knobs"]
    reference = record(compared, 0, [9, 5], [])
    own = {"better": {}, "masked": {"set": {"masking.rate": 0.3}}, "pieces": {"text": "-8k", "tokens_per_character": 0.5},
           "longer": {"tokens": 8_000_000}, "part": {"text": "-10", "test_loss": 4.5}}  # fmt: skip
    records = {f"knobs.{name}": [record(f"knobs.{name}", 0, [9, 4], []) | change] for name, change in own.items()}
    records |= {compared: [reference | {"tokens_per_character": 0.4}]}
    for found in records.values():
        found[0].setdefault("tokens_per_character", 0.4)
    lines = evidence_report.table("knobs", records).splitlines()[2:]
    shown = {line.split(" | ")[0].strip("| *"): [entry.strip(" |") for entry in line.split(" | ")] for line in lines}
    assert {name: row[6] for name, row in shown.items()} == {
        "better": "-1.000", "part": "-1.000", compared: "", "masked": "", "pieces": "", "longer": ""
    }  # fmt: skip
    assert list(shown)[:3] == ["better", "part", compared] and shown["part"][5] == "4.500" and shown["better"][5] == ""
    (tmp_path / "a.json").write_text(json.dumps(record("t.cell", 0, [9, 4], [])))
    (tmp_path / "b.json").write_text(json.dumps(record("t.cell", 1, [9, 4], []) | {"variant": ["unfitted"]}))
    monkeypatch.setattr(evidence_report, "RECORDS", tmp_path)
    with pytest.raises(ValueError, match=r"b\.json: its variant are not those of seed 0"):
        evidence_report.read_records()
    for own in ({"corpus": "b"}, {"fine_tuning": ["--epochs", "3"]}):
        (tmp_path / "a.json").write_text(json.dumps(record("t.cell", 0, [9, 4], []) | {"corpus": "a", "fine_tuning": []}))
        (tmp_path / "b.json").write_text(json.dumps(record("t.other", 0, [9, 4], []) | own))
        with pytest.raises(ValueError, match=rf"b\.json: its {next(iter(own))} is not that of other records"):
            evidence_report.read_records()


def test_controls_change_what_they_say_and_nothing_else() -> None:
    """Of the seed: its matrices, or their order alone, and how the new embeddings lie to them. Of a random net: how wide it begins."""
    shapes = {"bert.encoder.layer.0.dense.weight": (64, 64), "bert.encoder.layer.0.dense.bias": (8,), "bert.embeddings.word.weight": (9, 8)}
    before = {name: torch.randn(shape) for name, shape in shapes.items()} | {"bert.encoder.layer.0.LayerNorm.weight": torch.randn(8)}
    architecture = SimpleNamespace(layer_of=lambda name: 0 if ".layer." in name else None)

    def after(change: Any, seed: int) -> dict[str, torch.Tensor]:
        own = SimpleNamespace(weights={name: value.clone() for name, value in before.items()}, architecture=architecture)
        return variants.with_layers(lambda given, _: given, change)(own, SimpleNamespace(seed=seed)).weights

    weights = after(variants.shuffle, 0)
    changed = [name for name, value in weights.items() if not value.equal(before[name])]
    assert changed == ["bert.encoder.layer.0.dense.weight"]
    assert weights[changed[0]].flatten().sort()[0].equal(before[changed[0]].flatten().sort()[0])
    matrix, bias, embeddings, norm = after(variants.draw_anew, 0).values()
    assert 0.019 < matrix.std() < 0.021 and not bias.any() and norm.eq(1).all() and embeddings.equal(before["bert.embeddings.word.weight"])
    assert [next(iter(after(variants.draw_anew, seed).values())).equal(matrix) for seed in (0, 1)] == [True, False]

    word = torch.randn(9, 8) + 3
    turned, details = variants.with_embeddings(lambda *_: (word, {"made": 1}), variants.rotate)("dictionary")
    centred, back = word - word.mean(0), turned - turned.mean(0)
    assert torch.allclose(turned.mean(0), word.mean(0), atol=1e-5) and details == {"made": 1}
    assert torch.allclose(back @ back.T, centred @ centred.T, atol=1e-4) and (back - centred).norm() > 0.5 * centred.norm()
    moved = variants.permute(word, torch.Generator().manual_seed(0))
    assert moved[:, 0].sort()[0].equal(word[:, 0].sort()[0]) and not moved.equal(word) and all((row == word).all(1).any() for row in moved)

    rows, turn = np.random.default_rng(0).normal(3, range(1, 9), (50, 8)), np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    wanted = rows.mean(0) + (rows - rows.mean(0)) @ turn
    assert np.allclose(variants.turned_towards(rows, list(range(20)), wanted[:20]), wanted, atol=1e-3)  # so the others come along

    config = BertConfig(vocab_size=9, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96)
    models = []
    for factory in (AutoModelForMaskedLM, variants.WiderModels(0.1)):
        torch.manual_seed(0)
        models.append(factory.from_config(config))
    for (name, narrow), wide in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        times = 5 if ".layer." in name and narrow.dim() > 1 else 1
        assert torch.allclose(times * narrow, wide), name


def test_the_report_says_what_the_records_say() -> None:
    losses = [[9, 6, 4, 3, 2], [9, 7, 5, 3, 2.2], [9, 7, 5, 3, 2.4]], [[9, 8, 8, 7, 5], [9, 8, 8, 7, 6], [9, 8, 7, 6, 5]]
    scores = [[30, 50], [32, 52], [31, 54]], [[10, 20], [10, 24], [13, 22]]
    names = ("main.xpt", "main.scratch")
    arms = [
        [record(name, n, *pair) for n, pair in enumerate(zip(*given, strict=True))]
        for name, *given in zip(names, losses, scores, strict=True)
    ]
    records = {"main.xpt": [*arms[0][::-1], record("main.xpt", 3, [9, 3, 2, 1, 0.1], [60, 70])], "main.scratch": arms[1]}
    # seed 0 has 5 half-way between 6 after 1M tokens and 4 after 2M; seed 1 has 6 half-way between 7 and 5
    lines = evidence_report.hypotheses(records)  # seed 3 has nothing to be compared with
    assert "seed 0: xpt reaches scratch's final loss, 5.000, after 1.50M tokens, 1/2.7" in lines and "seed 3" not in lines
    interval = ttest_ind([50, 52, 54, 70], [20, 24, 22], equal_var=False).confidence_interval()
    assert f"+34.50 ({interval.low:+.2f} to {interval.high:+.2f})" in lines
    # 7.0 is reached by scratch after 3M, 3M, 2M tokens; by xpt after 2/3M (between 9 and 6), 1M, 1M
    assert "| 7.0 | 2.67 ± 0.58 | 0.89 ± 0.19 | 3.2 ± 1.3 |" in evidence_report.reached_table(records)
    assert "| scratch's final | " in evidence_report.reached_table(records)
    # validated between 1M and 2M tokens, too, seed 0 has 5 half-way between 6 and 4 after 1.25M
    often = {**arms[0][0], "table": "early", "curve": [[0, "all", 9], [100, "all", 6.0], [150, "all", 4.0]]}
    assert "seed 0: xpt reaches scratch's final loss, 5.000, after 1.25M tokens, 1/3.2" in evidence_report.hypotheses(
        records | {"early.xpt": [often]}
    )
    alone = evidence_report.hypotheses(records | {"main.xpt": arms[0][1:], "early.xpt": [often]})  # the long run is still to come
    assert "seed 0: xpt reaches scratch's final loss, 5.000, after 1.25M tokens, 1/3.2" in alone
    with pytest.raises(ValueError, match=r"seed 0 at step 100: main\.xpt has 6, early\.xpt 6\.5"):
        evidence_report.hypotheses(records | {"early.xpt": [{**often, "curve": [[0, "all", 9], [100, "all", 6.5]]}]})
    records["main.xpt"].pop(0)
    del records["main.xpt"][-1]
    records["main.scratch"][0]["test_loss"] = 5.5
    assert evidence_report.table("main", records).splitlines()[2:] == [
        "| xpt | 2 | 4M | 2.200, 2.000 | 8.2 |  | 52.00, 50.00 |",
        "| scratch | 3 | 4M | 5.333 ± 0.577 | 207.1 | 5.500 (1 of 3 seeds) | 22.00 ± 2.00 |",
    ]
    assert "| xpt | micro-F1 | 32.00, 30.00 | 52.00, 50.00 |" in evidence_report.scores_table(records)
    # before the first step: of a cell that starts the same, seed and all
    begun = {**record("attribution.same", 1, [9, 8, 7, 6, 5], []), "klue_re": [{"tokens": 0.0, "micro_f1": 29.0, "auprc": 9.0}]}
    shown = evidence_report.scores_table(records | {"attribution.same": [begun]})
    assert "| xpt | micro-F1 | 29.00 | 32.00, 30.00 | 52.00, 50.00 |" in shown
    other = evidence_report.scores_table(records | {"attribution.other": [{**begun, "variant": ["rotated"]}]})
    assert other == evidence_report.scores_table(records)
    staged = record("itl.none", 0, [9, 8, 7, 6, 5], [])
    staged["curve"] = [[step, "adapt" if step < 300 else "all", loss] for step, _, loss in staged["curve"]]
    assert "| none | 1 | 4M | 7.000 | 5.000 |" in evidence_report.table("itl", {"itl.none": [staged]})
    text = "Words.\n<!-- make results: hypotheses -->\nold\nolder\n<!-- end -->\nMore.\n"
    assert evidence_report.rendered(text, records) == text.replace("old\nolder", evidence_report.hypotheses(records))


def test_the_document_is_what_the_records_make_it() -> None:
    text = (evidence_report.DOCS / "results.md").read_text(encoding="utf-8")
    assert text.count("<!-- make results") == text.count("<!-- end -->") > 2
    assert evidence_report.rendered(text, evidence_report.read_records()) == text, "run `make results`"
