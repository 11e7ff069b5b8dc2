"""The commands of trainer/klue_re.py, and its recipes."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest

from tests.klue.invented import REPOSITORY, invented_rows
from trainer.classifier import load_classifier, new_classifier, save_classifier
from trainer.settings import load_recipe


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "trainer/klue_re.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def test_train_command(work, tmp_path):
    result = run("train", "--model", work / "seed", "--train-file", work / "train.json", "--output-dir", tmp_path / "D", "--epochs", 2,
                 "--batch-size", 8, "--learning-rate", 1e-2)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "newly initialised: bert.pooler.dense, classifier" in result.stdout
    assert "step 24/24" in result.stdout and result.stderr == ""  # not a terminal: lines, and no bars
    assert load_classifier(str(tmp_path / "D")).input_format == "untyped"


def test_eval_command(work, trained, tmp_path, monkeypatch, capsys):
    arguments = ["eval", "--model", trained, "--data", work / "dev.jsonl", "--report", tmp_path / "R.json"]
    monkeypatch.setattr(sys, "argv", ["klue_re.py", *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    report = json.loads((tmp_path / "R.json").read_text(encoding="utf-8"))
    assert f"micro-F1 {report['micro_f1']:.2f}" in capsys.readouterr().out and report["num_examples"] == 41


def test_a_file_name_that_is_not_utf8(work, trained, tmp_path, monkeypatch, capsys):
    data = tmp_path / os.fsdecode(b"dev\xff.jsonl")
    shutil.copy(work / "dev.jsonl", data)
    monkeypatch.setattr(
        sys, "argv", ["klue_re.py", *map(str, ("eval", "--model", trained, "--data", data, "--report", tmp_path / "R.json"))]
    )
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert "dev\\udcff.jsonl" in capsys.readouterr().out
    assert json.loads((tmp_path / "R.json").read_text(encoding="utf-8"))["data"] == str(data)


def test_predict_asks_for_the_types_that_the_model_reads(work, tmp_path, monkeypatch, capsys):
    save_classifier(new_classifier(str(work / "seed"), "typed", 64, 0)[0], tmp_path)
    sentence = [
        "klue_re.py",
        "predict",
        "--model",
        str(tmp_path),
        "--sentence",
        "가람 라온 태어났다",
        "--subject",
        "가람",
        "--object",
        "라온",
    ]
    monkeypatch.setattr(sys, "argv", sentence)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: --types: the model reads the entities' types")
    monkeypatch.setattr(sys, "argv", [*sentence, "--types", "PER", "LOC"])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("(가람, ")
    rows = [{**row, "label": None, "guid": None} for row in invented_rows(2, 0)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*sentence[:4], "--data", str(tmp_path / "rows.json")])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().out.count("\t") == 2
    monkeypatch.setattr(sys, "argv", [*sentence, "--data", str(tmp_path / "rows.json")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert "found both" in capsys.readouterr().err


def test_command_with_bad_rows(work, tmp_path):
    rows = invented_rows(3, 0)
    rows[1]["label"] = "per:birthplace"
    rows[2]["object_entity"]["end_idx"] += 1
    (tmp_path / "bad.json").write_text(json.dumps(rows), encoding="utf-8")
    result = run("train", "--model", work / "seed", "--train-file", tmp_path / "bad.json", "--output-dir", tmp_path / "D")
    assert result.returncode == 2 and "Traceback" not in result.stderr and not (tmp_path / "D").exists()
    assert result.stderr.startswith("error: ") and "2 problems" in result.stderr and "row 2 (guid g1), label" in result.stderr


def test_recipes_say_what_the_sources_say_and_flags_come_first(work, tmp_path):
    names = ("paper", "official", "small")
    paper, official, small = (load_recipe(REPOSITORY / "recipes" / f"klue_re_{name}.yaml") for name in names)
    assert [paper[key] for key in ("batch_size", "learning_rate", "epochs", "head")] == [32, 1e-5, 15, "cls"]
    assert [official[key] for key in ("batch_size", "learning_rate", "epochs", "warmup")] == [32, 5e-5, 3, 0.1]
    tried = json.loads((REPOSITORY / "benchmarks" / "results" / "fine_tuning_formats.json").read_text(encoding="utf-8"))["runs"]
    best = max(tried, key=lambda run: run["micro_f1"])
    assert all(small[key] == best[key] for key in ("input_format", "head", "epochs", "learning_rate"))
    (tmp_path / "r.yaml").write_text("epochs: 7\nlearning_rate: 1e-2\nwarmup: 0.5\n", encoding="utf-8")
    result = run("train", "--model", work / "seed", "--train-file", work / "train.json", "--output-dir", tmp_path / "D", "--recipe",
                 tmp_path / "r.yaml", "--epochs", 1)  # fmt: skip
    assert result.returncode == 0, result.stderr
    used = json.loads((tmp_path / "D" / "settings.json").read_text(encoding="utf-8"))
    assert [used[key] for key in ("epochs", "learning_rate", "warmup", "batch_size")] == [1, 0.01, 0.5, 32]
