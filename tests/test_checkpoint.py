"""A damaged checkpoint is never opened, and the message names the file."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from data_tools.errors import UserError
from tests.damage import DAMAGES, SHAPES, flip_a_bit, make_checkpoint
from trainer.checkpoint import Checkpoint, link_files, newest, prune, write_alone


@pytest.mark.parametrize("number", range(100))
def test_damage_is_found(tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    good, newer = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 9)
    Checkpoint.open(newer)
    files = sorted(newer.iterdir())
    victim = files[number % len(files)]
    DAMAGES[number // len(files) % len(DAMAGES)](victim, rng)
    with pytest.raises(UserError, match="checkpoint") as caught:
        Checkpoint.open(newer)
    assert str(newer) in str(caught.value)
    if victim.name != "complete.json":
        assert victim.name in str(caught.value)
    found, problems = newest(tmp_path)
    assert found is not None and found.path == good and problems == [str(caught.value)]


@pytest.mark.parametrize("name", ["weights-0.safetensors", "moments-1.safetensors", "state.json"])
def test_a_file_of_another_run_is_found(tmp_path: Path, name: str) -> None:
    mine, other = make_checkpoint(tmp_path / "mine", 9), make_checkpoint(tmp_path / "other", 9, seed=1)
    shutil.copy(other / name, mine / name)
    with pytest.raises(UserError, match=name):
        Checkpoint.open(mine)


def test_everything_is_on_the_disk_before_the_marker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    values = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    path = write_alone(tmp_path, 3, "0", values, {"a.bias": (torch.zeros(40), torch.ones(40))}, {"step": 3})
    assert synced == ["weights-0.safetensors", "moments-0.safetensors", "state.json", "complete.json", "checkpoints"]
    found = {name: moments for name, _, moments in Checkpoint.open(path).entries(SHAPES)}
    assert [name for name, moments in found.items() if moments] == ["a.bias"] and Checkpoint.open(path).adam_steps == {"a.bias": 3}


def test_a_folder_that_is_none_is_not_called_unfinished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"checkpoint {tmp_path}/step-7: no such folder"):
        Checkpoint.open(tmp_path / "step-7")
    with pytest.raises(UserError, match=r"complete\.json is missing"):
        Checkpoint.open(tmp_path)


def test_a_marker_that_vouches_for_too_little_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 9)
    marker = json.loads((path / "complete.json").read_text())
    for name in ("state.json", "weights-1.safetensors", "moments-0.safetensors"):
        (path / "complete.json").write_text(json.dumps({key: value for key, value in marker.items() if key != name}))
        with pytest.raises(UserError, match=f"does not describe {name}"):
            Checkpoint.open(path)


def steps_in(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    """What was passed over is not among the last that are kept."""
    for step in (0, 300, 400, 500, 600):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step-450.partial").mkdir()
    for step in (500, 600):
        flip_a_bit(tmp_path / "checkpoints" / f"step-{step}" / "weights-0.safetensors", random.Random(0))
    assert newest(tmp_path)[0].state["step"] == 400  # type: ignore[union-attr]
    make_checkpoint(tmp_path, 437, seed=1)
    prune(tmp_path, {400, 437}, 1, {0, 600})
    assert steps_in(tmp_path) == [0, 437]
    flip_a_bit(tmp_path / "checkpoints" / "step-437" / "weights-0.safetensors", random.Random(0))
    for step in (400, 500):  # gone on from 400, past the damaged one, and saved
        make_checkpoint(tmp_path, step, seed=2)
    prune(tmp_path, {400, 500}, 2, {0})
    assert steps_in(tmp_path) == [0, 400, 500]
    prune(tmp_path, {400, 500}, 1, {0, 500})  # the end of a stage is kept besides: the one before it stays to fall back on
    assert steps_in(tmp_path) == [0, 400, 500]
    prune(tmp_path, {400, 500}, 0, {0, 500})
    assert steps_in(tmp_path) == [0, 500]


def test_a_link_never_overwrites_what_was_just_written(tmp_path: Path) -> None:
    previous = Checkpoint.open(make_checkpoint(tmp_path, 5))
    partial = tmp_path / "checkpoints" / "step-6.partial"
    partial.mkdir()
    (partial / "weights-0.safetensors").write_bytes(b"new")
    with pytest.raises(FileExistsError):
        link_files(partial, previous, {"0"})
    assert (partial / "weights-0.safetensors").read_bytes() == b"new"


def test_the_newest_is_that_of_the_most_steps_and_one_saved_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 900)
    make_checkpoint(tmp_path, 1000)
    again = make_checkpoint(tmp_path, 1000, seed=1)
    found, problems = newest(tmp_path)
    assert found is not None and found.path == again and found.state["seed"] == 1 and not problems
