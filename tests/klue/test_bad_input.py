"""What trainer/klue_re.py says to input that it cannot use: one message with what was expected, what was found and what to do."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.klue.invented import REPOSITORY, copied, invented_rows

Making = Callable[[Path, Path], object]
"""Makes what is bad, given the place it belongs at and the model folder to start from."""


def nothing(at: Path, model: Path) -> None:
    """What the flag names is not there."""


def folder(at: Path, model: Path) -> None:
    at.mkdir()


def content(data: bytes) -> Making:
    return lambda at, model: at.write_bytes(data)


def row(field: str, value: object) -> Making:
    """Three rows, the second with another value."""

    def make(at: Path, model: Path) -> None:
        rows = invented_rows(3, 0)
        *parent, key = field.split(".")
        (rows[1][parent[0]] if parent else rows[1])[key] = value
        at.write_text(json.dumps(rows), encoding="utf-8")

    return make


def marker(at: Path, model: Path) -> None:
    row("sentence", invented_rows(3, 0)[1]["sentence"] + " </obj>")(at, model)


def model_with(name: str, data: bytes) -> Making:
    return lambda at, model: (copied(model, at) / name).write_bytes(data)


def model_without(pattern: str) -> Making:
    return lambda at, model: copied(model, at, pattern)


def configured(**fields: object) -> Making:
    def make(at: Path, model: Path) -> None:
        path = copied(model, at) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return make


def unpadded(at: Path, model: Path) -> None:
    configured(pad_token_id=None)(at, model)
    path = at / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in fields.items() if key != "pad_token"}), encoding="utf-8")


def unmarked(at: Path, model: Path) -> None:
    AutoTokenizer.from_pretrained(model.parent / "seed").save_pretrained(copied(model, at))


def headless(at: Path, model: Path) -> None:
    tensors = load_file(copied(model, at) / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(kept, at / "model.safetensors", {"format": "pt"})


def renamed(at: Path, model: Path) -> None:
    """As a wrapper around the model would save it."""
    tensors = load_file(copied(model, at) / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, at / "model.safetensors", {"format": "pt"})


def pipe(at: Path, model: Path) -> None:
    os.mkfifo(at)


def not_finite(at: Path, model: Path) -> None:
    tensors = load_file(copied(model, at) / "model.safetensors")
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] * float("nan")}, at / "model.safetensors", {"format": "pt"})


# (command, flag and value, how the bad thing is made, what the message says); {bad} is the place of the bad thing.
BAD_INPUT: list[tuple[str, Making, tuple[str, ...]]] = [
    ("train --train-file {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("train --train-file {bad}", row("label", "x"), ("{bad}", "row 2 (guid g1), label: expected one of", 'found "x"', "Correct")),
    ("train --train-file {bad}", marker, ("row 2 (guid g1), sentence: expected no entity marker", "found '</obj>'", "take it out")),
    ("train --eval-file {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("train --epochs 0", nothing, ("--epochs: expected at least 1, found 0; give",)),
    ("train --batch-size -1", nothing, ("--batch-size: expected at least 1, found -1; give",)),
    ("train --learning-rate nan", nothing, ("--learning-rate: expected a number above 0, found nan; give",)),
    ("train --seed -1", nothing, ("--seed: expected 0 to", "found -1; give")),
    ("train --max-length 7", nothing, ("--max-length: expected at least 8, found 7", "two marked entities")),
    ("train --hold-out 1.5", nothing, ("--hold-out: expected a share", "found 1.5; give one such as 0.1")),
    ("train --hold-out 0.0001", nothing, ("--hold-out 0.0001: expected", "found 0 of the training file's", "give another share")),
    ("train --warmup 1", nothing, ("--warmup: expected a share of the steps", "found 1.0; give one such as 0.1")),
    ("train --recipe {bad}", nothing, ("--recipe {bad}: no such file", "give one such as recipes/klue_re_official.yaml")),
    ("train --recipe {bad}", content(b"- 3"), ("--recipe {bad}: expected `key: value` lines, found list", "see recipes/")),
    ("train --recipe {bad}", content(b"epochs: many\nlr: 3"), ("epochs: Input should be", "(found 'many')", "lr: unknown key", "fix")),
    ("train --output-dir {bad}", model_without("D"), ("--output-dir {bad}: expected a new or empty", "found other files", "give another")),
    ("train --output-dir {bad}", content(b""), ("--output-dir {bad}: expected a new or empty folder", "found other files", "give another")),
    ("train --output-dir {bad}/x", content(b""), ("--output-dir {bad}/x: cannot be written", "give another")),
    ("train --output-dir {bad}", model_with("settings.json", b"{}"), ("expected a run of the same settings, found others", "give another")),
    ("train --output-dir {bad}", model_with("settings.json", b"[1]"), ("{bad}/settings.json: expected", "found something else", "give")),
    ("train --model {bad}", nothing, ("--model {bad}: no such folder", "give a Hugging Face model folder")),
    ("train --model {bad}", content(b""), ("--model {bad}: expected a model folder", "found a file", "give the folder")),
    ("train --model {bad}", model_without("config.json"), ("expected a model folder with config.json, found none", "give")),
    ("train --model {bad}", model_with("config.json", b"{"), ("--model {bad}: expected a model folder", "found none that loads", "give")),
    ("train --model {bad}", configured(model_type="none"), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("train --model {bad}", model_without("tokenizer*"), ("expected a tokenizer beside the model", "found none", "save the tokenizer")),
    ("train --model {bad}", model_with("tokenizer.json", b"{"), ("--model {bad}: expected a tokenizer that", "found: ", "save it anew")),
    (
        "train --model {bad}",
        unpadded,
        ("--model {bad}: expected a tokenizer with a padding or an end token", "found neither", "set pad_token"),
    ),
    ("train --model {bad}", model_with("model.safetensors", b"short"), ("expected a model", "safetensors, found: ", "save it anew")),
    ("train --model {bad}", model_without("model.safetensors"), ("--model {bad}: expected a model", "found: ", "save it anew")),
    ("train --model {bad}", renamed, ("--model {bad}: expected the encoder's weights", "found none of that name and shape for", "save it")),
    ("train --train-file {bad}", pipe, ("{bad}: expected a file, found a pipe", "write its rows to a file first")),
    ("train --recipe {bad}", content(b"epochs: yes"), ("--recipe {bad}:", "epochs: expected no true or false", "fix")),
    ("train --recipe {bad}", content(b"epochs: 1\nepochs: 2"), ("--recipe {bad}: expected YAML", "epochs appears twice", "repair")),
    ("eval --data {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("eval --data {bad}", row("label", None), ("{bad}: 1 problem", "label: expected text, found null", "Correct")),
    ("eval --report {bad}", folder, ("--report {bad}: expected a file to write, found a folder", "name a file")),
    ("eval --predictions {bad}", folder, ("--predictions {bad}: expected a file to write, found a folder", "name a file")),
    (
        "eval --predictions {bad}",
        lambda at, model: at.symlink_to(model.parent / "dev.jsonl"),
        ("--predictions {bad}: expected a file of its own", "found that of --data", "name another"),
    ),
    ("eval --report {bad}/R", content(b""), ("{bad}/R: cannot be written", "name another place")),
    ("eval --model {bad}", nothing, ("--model {bad}: no such folder", "give a Hugging Face model folder")),
    (
        "eval --model {bad}",
        configured(id2label=dict.fromkeys("01", "x")),
        ("--model {bad}: expected a head with", "found 2 labels", "fine-tune"),
    ),
    ("eval --model {bad}", configured(id2label={n: f"R{n}" for n in range(30)}), ("found 30 labels, among them R0", "fine-tune")),
    ("eval --model {bad}", unmarked, ("markers of the format 'untyped', found none of <subj>", "give a model")),
    ("eval --model {bad}", configured(klue_re=7), ("config.json, klue_re: expected input_format", "found 7", "fine-tune it anew")),
    (
        "eval --model {bad}",
        configured(klue_re={"input_format": "untyped", "max_length": 20, "head": "entities"}),
        ("{bad}: expected entity_head.safetensors beside the model", "found: ", "copy it there, or fine-tune anew"),
    ),
    ("eval --model {bad}", configured(hidden_size="x"), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("eval --model {bad}", configured(id2label=[1]), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("eval --model {bad}", not_finite, ("41 of 41 rows have no finite probabilities", "damaged", "give a lower rate")),
    ("eval --model {bad}", headless, ("--model {bad}: expected a fine-tuned classifier, found none of the weights cla", "fine-tune")),
]


@pytest.mark.parametrize("number", range(len(BAD_INPUT)))
def test_bad_input_is_told_in_one_message(number, work, trained, tmp_path, monkeypatch, capsys):
    given_badly, make, words = BAD_INPUT[number]
    command, flag, value = given_badly.split()
    bad = tmp_path / "bad"
    make(bad, work / "seed" if command == "train" else trained)
    before = sorted(tmp_path.rglob("*"))
    given: dict[str, object] = {"--model": trained, "--data": work / "dev.jsonl", "--report": tmp_path / "R.json"}
    if command == "train":
        given = {"--model": work / "seed", "--train-file": work / "train.json", "--output-dir": tmp_path / "D", "--epochs": 1}
    given[flag] = value.replace("{bad}", str(bad))
    monkeypatch.setattr(sys, "argv", ["klue_re.py", command, *(str(part) for pair in given.items() for part in pair)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("error: ") == 1 and "Traceback" not in error, error
    assert all(word.replace("{bad}", str(bad)) in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind, so that the corrected command may use the folder
