"""Several models and seeds in one table, which goes on where it stopped."""

import json
import shutil

import numpy as np
import pytest

from data_tools.errors import UserError
from tests.klue.invented import copied, invented_rows
from trainer.comparison import compare, named_models
from trainer.evaluation import evaluate
from trainer.metrics_log import read_rows


def test_comparison_makes_a_table_and_goes_on(work, tmp_path):
    recipe = {"train_file": work / "train.json", "eval_file": work / "dev.jsonl", "epochs": 1, "batch_size": 32, "learning_rate": 1e-2}
    models_ = named_models([f"a={work / 'seed'}", f"b={work / 'seed'}"])
    recipe["train_file"] = tmp_path / "train.json"
    rows = invented_rows(96, 0)
    rows[7] |= {"guid": "again", "label": "per:place_of_death"} | {
        key: rows[3][key] for key in ("sentence", "subject_entity", "object_entity")
    }
    recipe["train_file"].write_text(json.dumps(rows), encoding="utf-8")
    (copied(work / "seed", tmp_path / "broken") / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="broken"):  # before the first is trained
        compare({"a": str(work / "seed"), "b": str(tmp_path / "broken")}, [0], tmp_path / "B", recipe)
    assert not (tmp_path / "B").exists()
    written = compare(models_, [0, 1], tmp_path / "C", recipe, both_conflicts=True)
    table = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))
    assert list(table["models"]) == ["a", "a without conflicts", "b", "b without conflicts"]
    runs = {name: [(run["seed"], run["micro_f1"], run["auprc"]) for run in model["runs"]] for name, model in table["models"].items()}
    assert runs["a"] == runs["b"] != runs["a without conflicts"] and [run[0] for run in runs["a"]] == [0, 1]
    for folder, number in (("seed-0", 96), ("without-conflicts/seed-0", 94)):
        report = json.loads((tmp_path / "C" / "a" / folder / "report.json").read_text(encoding="utf-8"))
        assert (report["training_rows"]["number"], report["training_rows"]["conflicting"]) == (number, 2)
    values = [run[2] for run in runs["a"]]
    assert f"{np.mean(values):.2f} ± {abs(values[0] - values[1]) / 2**0.5:.2f}" in written
    by_pair = {(d["first"], d["second"]): d for d in table["differences"]}
    assert len(by_pair) == 6 and [by_pair["a", "b"][key] for key in ("micro_f1", "low", "high")] == [0, 0, 0]
    said = {name: np.mean([run[1] for run in found]) for name, found in runs.items()}
    found = by_pair["a", "a without conflicts"]
    assert (
        found["micro_f1"] == pytest.approx(said["a"] - said["a without conflicts"]) and found["low"] <= found["micro_f1"] <= found["high"]
    )
    latex = (tmp_path / "C" / "table.tex").read_text(encoding="utf-8")
    assert f"${found['micro_f1']:+.2f}$" in latex and "\\_" not in latex.replace("dev.jsonl", "") and latex.count("\\begin{table}") == 2
    assert (tmp_path / "C" / "table.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "C" / "table.json").unlink()
    shutil.rmtree(tmp_path / "C" / "b")
    compare(models_, [0, 1], tmp_path / "C", recipe, both_conflicts=True)
    again = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))
    assert again["models"]["a"] == table["models"]["a"] and again["differences"] == table["differences"]
    # the same path with other labels: finished models are scored anew, not trained
    weights = tmp_path / "C" / "a" / "seed-0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    other = read_rows(work / "dev.jsonl")
    for row in other:
        row["label"] = "no_relation"
    recipe["eval_file"] = tmp_path / "dev.jsonl"
    recipe["eval_file"].write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    anew = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))["models"]["a"]["runs"][0]
    assert anew["micro_f1"] == 0 and weights.stat().st_mtime_ns == before
    said = [row["prediction"] for row in read_rows(tmp_path / "C" / "a" / "seed-0" / "predictions.jsonl")]
    assert anew["accuracy"] == pytest.approx(100 * said.count("no_relation") / len(other))
    assert anew["training_seconds"] == table["models"]["a"]["runs"][0]["training_seconds"]
    # a report of this file beside the predictions of another
    evaluate(str(tmp_path / "C" / "a" / "seed-0"), work / "dev.jsonl", tmp_path / "C" / "a" / "seed-0" / "report.json")
    recipe["eval_file"] = work / "dev.jsonl"
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    scored = [row["label"] for row in read_rows(tmp_path / "C" / "a" / "seed-0" / "predictions.jsonl")]
    assert scored == [row["label"] for row in read_rows(work / "dev.jsonl")]
    recipe["eval_file"] = tmp_path / "dev.jsonl"
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    assert not list((tmp_path / "C").rglob("lock"))
    for given, words in (
        (["x"], "expected NAME="),
        (["x=y", "x=z"], "twice"),
        (["table.md=y"], "give the model another name"),
        (["../x=y"], "expected NAME="),
    ):
        with pytest.raises(UserError, match=words):
            named_models(given)
