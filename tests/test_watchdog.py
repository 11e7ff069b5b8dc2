"""A rank that hangs is named, and every other rank ends within the limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import datetime, sys, time, torch, torch.distributed as dist
from trainer import lifeline
from trainer.ranks import Ranks, run_on_ranks
from trainer.watchdog import Watchdog
rank, size, store, fault, hung = int(sys.argv[1]), 3, sys.argv[2], sys.argv[3], int(sys.argv[4])
def main():
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=datetime.timedelta(minutes=5))
    ranks = Ranks.current()
    lifeline.tie(ranks.rank, ranks.world_size, ranks.gather)
    watchdog = Watchdog(ranks, 6.0 if fault == "in training, rank 0 judges late" and rank == 0 else 3.0)
    for step in range(10**6):
        ranks.beat(f"reading batch {step}")
        if step == 3 and rank == hung and fault == "in reading":
            print("here", flush=True)
            time.sleep(600)
        ranks.beat(f"training on batch {step}")
        if step == 3 and rank == hung:  # the words are the others'; only the collective that follows tells who is behind
            print("here", flush=True)
            time.sleep(600)
        ranks.sum(1.0)
        time.sleep(0.05)
run_on_ranks(main)
"""


@pytest.mark.parametrize(
    ("fault", "hung"),
    [
        ("in reading", 1),
        ("in training", 0),
        ("in training, rank 0 judges late", 2),
        ("stopped", 2),
        ("stopped", 0),
    ],
)
def test_the_hung_rank_is_named(tmp_path: Path, fault: str, hung: int) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "store"), fault, str(hung)], env=environment, text=True, stdout=-1, stderr=-1)
        for rank in range(3)
    ]
    try:
        stdout = ranks[hung].stdout
        assert stdout is not None and stdout.readline() == "here\n"
        if fault == "stopped":
            ranks[hung].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        told = "".join(rank.communicate(timeout=60)[1] for number, rank in enumerate(ranks) if number != hung)
        assert time.monotonic() - begin < 30
        assert all(rank.returncode == 1 for number, rank in enumerate(ranks) if number != hung), told
        why = "does not answer" if fault == "stopped" else f"hangs {fault.partition(',')[0]}"
        assert told.count("error: ") == told.count("error: no progress for ") == 1 and f"rank {hung}" in told and why in told, told
        assert "Traceback" not in told
    finally:
        for rank in ranks:
            rank.kill()
