"""A damaged checkpoint is never opened, and the message names the file."""

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from data_tools.errors import UserError
from tests.distributed import run_on_ranks
from trainer import storage as storage_module
from trainer.checkpoint import Checkpoint, link_files, newest, prune, seal, settle, write_alone, write_entries
from trainer.ranks import Ranks
from trainer.storage import Storage

SHAPES = {"a.weight": (40, 30), "a.bias": (40,), "b.weight": (30, 40)}


def make_checkpoint(run: Path, step: int, seed: int = 0) -> Path:
    """A whole checkpoint of two ranks and a frozen parameter."""
    generator = torch.Generator().manual_seed(seed * 1000 + step)
    partial = run / "checkpoints" / f"step-{step}.partial"
    partial.mkdir(parents=True)
    files, records = {}, {}
    for stem, names, trained in (("0", ["a.weight"], True), ("1", ["a.bias"], True), ("frozen", ["b.weight"], False)):
        values = {name: torch.randn(SHAPES[name], generator=generator) for name in names}
        entries = [(name, value, (value * 2, value * value) if trained else None) for name, value in values.items()]
        found, written = write_entries(partial, stem, {name: SHAPES[name] for name in names}, set(names) if trained else set(), entries)
        settle(written)
        files |= found
        records |= {name: {"shape": SHAPES[name], "file": stem, "adam_step": step if trained else 0} for name in names}
    return seal(partial, {"step": step, "seed": seed, "parameters": records}, files)


def truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def grow(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(rng.randrange(1, 9)))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def zero_the_end(path: Path, rng: random.Random) -> None:
    """What a power cut leaves of a file whose size was written before its data."""
    data = path.read_bytes()
    keep = rng.randrange(len(data) - 8)
    path.write_bytes(data[:keep] + bytes(len(data) - keep))


def edit_json(path: Path, rng: random.Random) -> None:
    """Valid JSON with an entry changed, taken out, or another thing altogether."""
    if path.suffix != ".json":
        flip_a_bit(path, rng)
        return
    content = json.loads(path.read_text())
    key = rng.choice(sorted(content))
    choice = rng.randrange(4)
    if choice == 0:
        del content[key]
    elif choice == 1:
        content[key] = rng.choice([None, [], 7, {}])
    elif choice == 2:
        content["new-" + key] = content.pop(key)
    path.write_text(json.dumps(content if choice < 3 else rng.choice([[], {}, None, "x"])))


DAMAGES: list[Callable[[Path, random.Random], None]] = [truncate, flip_a_bit, grow, remove, zero_the_end, edit_json]


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


def send_an_unreadable_file(folder: Path) -> None:
    """Rank 0's second file of three is shorter than it says; the ranks stay together, and rank 0 alone hears of it."""
    ranks = Ranks.current()
    storage = Storage(folder, ranks)
    storage._first = ranks.gather(ranks.rank)
    target = folder / "there"
    exactly = storage_module._exactly

    def shorter(file: BinaryIO, length: int) -> bytes:
        return exactly(file, length + (Path(file.name).name == "b"))

    storage_module._exactly = shorter
    with pytest.raises(OSError, match="shorter") if ranks.is_main else nullcontext():
        storage._send(0, folder / "here", ["a", "b", "c"], None if ranks.is_main else target)
    assert ranks.gather("together") == ["together"] * 2
    assert (target / "c").read_text() == "c" * 10


def test_a_file_that_cannot_be_read_leaves_the_ranks_together(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name in "abc":
        (tmp_path / "here" / name).write_text(name * 10)
    run_on_ranks(send_an_unreadable_file, 2, tmp_path, tmp_path)


def level_two_folders(folder: Path) -> None:
    """Each rank has a folder of its own, as on hosts without a common file system; that of rank 0 has a damaged newest checkpoint."""
    ranks = Ranks.current()
    run = folder / f"host-{ranks.rank}"
    storage = Storage(run, ranks)
    storage._first = ranks.gather(ranks.rank)  # they do share one here
    storage.level(lambda found: None)
    found, problems = newest(run)
    assert found is not None and found.state["step"] == 9 and not problems


@pytest.mark.parametrize("case", ["damaged", "of another history"])
def test_of_hosts_whose_newest_checkpoints_differ_one_gets_the_others(tmp_path: Path, case: str) -> None:
    for host in (0, 1):
        for step in (5, 9):
            make_checkpoint(tmp_path / f"host-{host}", step, seed=host if case != "damaged" else 0)
    if case == "damaged":
        truncate(tmp_path / "host-0" / "checkpoints" / "step-9" / "weights-1.safetensors", random.Random(0))
    run_on_ranks(level_two_folders, 2, tmp_path, tmp_path)
    ours, theirs = (tmp_path / f"host-{host}" / "checkpoints" / "step-9" for host in (0, 1))
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {path.name: path.read_bytes() for path in theirs.iterdir()}
