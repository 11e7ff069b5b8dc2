"""Run folders of several hosts: each gets what it lacks, and no rank is left alone in a collective."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.damage import make_checkpoint, truncate
from tests.distributed import run_on_ranks
from trainer import storage as storage_module
from trainer.checkpoint import newest
from trainer.ranks import Ranks
from trainer.storage import Storage


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
