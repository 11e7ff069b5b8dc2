"""What other people's scripts rely on without saying it: the defaults of the commands."""

import sys
from pathlib import Path

import pytest

from data_tools.prepare import parse_arguments as prepare_arguments
from data_tools.splits import held_out_sizes
from trainer import comparison, finetune, klue_re, memory
from trainer.settings import Settings
from trainer.xpt import parse_arguments as xpt_arguments


def test_the_bare_command_is_the_papers_recipe_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["xpt.py"])
    given = xpt_arguments()
    assert (given.recipe, given.ds_config) == (Path("recipes/paper.yaml"), Path("ds_configs/zero2_bf16.json"))
    assert (given.resume, given.set, given.dry_run) == ("auto", [], False)


def test_a_corpus_has_32000_pieces_and_held_out_sentences() -> None:
    given = prepare_arguments(["--input", "text", "--output-dir", "corpus"])
    assert (given.vocab_size, given.seed, given.max_train_sentences, given.model_type) == (32_000, 0, None, "unigram")
    assert (given.min_characters, given.max_characters, given.keep_duplicates, given.script) == (2, 4000, False, None)
    assert held_out_sizes(10_000_000, given.valid_sentences, given.test_sentences) == (100_000, 88_000, [])


def test_fine_tuning_is_the_papers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(finetune, "train", seen.append)
    files = ["--model", str(tmp_path), "--train-file", "train.json", "--output-dir", "D"]
    monkeypatch.setattr(sys, "argv", ["klue_re.py", "train", *files])
    klue_re.main()
    (found,) = seen
    assert (found.epochs, found.batch_size, found.learning_rate, found.max_length) == (15, 32, 1e-5, 256)
    assert (found.input_format, found.seed, found.head, found.conflicts) == ("untyped", 0, "cls", "keep")


def test_compare_passes_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(comparison, "compare", lambda *given: seen.append(given) or "the table")
    words = ["--model", f"a={tmp_path}", f"b={tmp_path}", "--train-file", "T", "--eval-file", "E", "--output-dir", "D", "--epochs", "2"]
    for flags, seeds, both in (([], [0, 1, 2], False), (["--seeds", "7", "8", "--both-conflicts"], [7, 8], True)):
        monkeypatch.setattr(sys, "argv", ["klue_re.py", "compare", *words, *flags])
        klue_re.main()
        models, given_seeds, output, recipe, conflicts = seen.pop()
        assert (models, given_seeds, output, conflicts) == ({"a": str(tmp_path), "b": str(tmp_path)}, seeds, Path("D"), both)
        assert recipe == {"train_file": Path("T"), "eval_file": Path("E"), "epochs": 2}
    assert capsys.readouterr().out == "the table\n" * 2
