"""Finished steps are used again, and one command at a time works in a folder."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import lock
from data_tools import prepare as prepare_command
from data_tools.corpus import MANIFEST_NAME, SPLITS, Corpus
from data_tools.errors import UserError
from data_tools.work import Work
from tests.prepared import run


def test_finished_steps_are_reused(
    corpus_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--input", text_file, "--output-dir", tmp_path / "c", "--workers", 1)
    with pytest.raises(UserError, match="smaller --vocab-size"):
        run(*arguments, "--vocab-size", 60_000)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(prepare_command, "encode_splits", lambda *_: 1 / 0)
        run(*arguments, "--vocab-size", 200)
    assert "the sentences are already there" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(prepare_command, "train_vocabulary", None)
        patch.setattr("data_tools.collecting.read_documents", None)
        run(*arguments, "--vocab-size", 200)
    assert "the tokenizer is already there" in capsys.readouterr().out
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(corpus_dir).manifest


def test_finished_steps_of_other_settings_or_code_are_made_anew(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(prepare_command, "encode_splits", lambda *_: 1 / 0)
        run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200, "--workers", 1)
    for name in "cd":
        run("--input", text_file, "--output-dir", tmp_path / name, "--vocab-size", 180, "--min-characters", 20, "--workers", 1)
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(tmp_path / "d").manifest
    assert Corpus.open(tmp_path / "c").vocab_size == 180 and Corpus.open(tmp_path / "c").manifest["sentences"]["short"] > 0
    work = Work(tmp_path / "work")
    assert work.finished("step", {"a": 1}) is None and work.finish("step", {"a": 1}, {"b": 2}) == work.finished("step", {"a": 1})
    assert work.finished("other", {}) is None
    (work.path / "other" / "file").write_text("all of it")
    assert work.finish("other", {}, {}) == work.finished("other", {}) == {}
    (work.path / "other" / "file").write_text("all of")  # a host that failed
    assert work.finished("other", {}) is None and not list((work.path / "other").iterdir())
    monkeypatch.setattr("data_tools.work._code_sha256", lambda: "of another version")
    assert work.finished("step", {"a": 1}) is None


def test_what_another_process_made_meanwhile_stays_as_it_is(
    corpus_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = lock.hold

    def too_late(folder: Path) -> None:
        shutil.copytree(corpus_dir, tmp_path / "c", dirs_exist_ok=True)
        hold(folder)

    monkeypatch.setattr(prepare_command.lock, "hold", too_late)
    with pytest.raises(UserError, match="holds a finished corpus that differs in vocab_size"):
        run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 180)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted(path.name for path in corpus_dir.iterdir())


def test_a_second_start_waits_for_the_first(text_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools.prepare", "--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", "200",
               "--workers", "1"]  # fmt: skip
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("done; look inside" in text for text in said) == [False, True]
    Corpus.open(tmp_path / "c").verify()
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir() if not entry.name.startswith(".")) == sorted(
        [MANIFEST_NAME, "tokenizer", *(f"{split}{end}" for split in SPLITS for end in (".bin", ".idx"))]
    )


def test_a_folder_without_locks_is_used_and_one_that_is_left_can_be_held_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock.hold(tmp_path / "new")
    lock.release(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    lock.hold(tmp_path / "new")
    assert "process" in (tmp_path / "new" / "lock").read_text()

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    lock.hold(tmp_path / "other")
    assert "has no locks" in capsys.readouterr().out
