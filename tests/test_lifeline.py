"""A rank that is killed, fails or cannot be reached ends all, with one message; one that is only stopped does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ALONE = "from trainer import lifeline, engine; lifeline.ARRIVAL = 2; engine.start()"
SCRIPT = """
import datetime, sys, time, torch.distributed as dist
import trainer.ranks
from data_tools.errors import UserError
from trainer import lifeline
from trainer.ranks import Ranks, run_on_ranks
rank, store, fault = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def main():
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3, timeout=datetime.timedelta(minutes=5))
    ranks = Ranks.current()
    lifeline.tie(ranks.rank, ranks.world_size, ranks.gather)
    print("here", flush=True)
    if fault == "mistake everywhere":
        raise UserError("what was given is wrong")
    if fault == "defect" and rank == 1:
        raise KeyError("lost")
    if fault == "mistake" and rank == 2:
        raise UserError("it has no corpus")
    for _ in range(200 if fault in ("stopped", "slow farewell") else 10**6):
        ranks.sum(1.0)
        time.sleep(0.01)
if fault == "slow farewell" and rank == 1:
    leave = trainer.ranks._leave
    trainer.ranks._leave = lambda status: (time.sleep(4), leave(status))
run_on_ranks(main)
"""


@pytest.mark.parametrize(
    ("fault", "victim", "status", "told"),
    [
        ("killed", 0, 1, "rank 0 on"),
        ("killed", 2, 1, "rank 2 on"),
        ("defect", 1, 1, "KeyError: 'lost'"),
        ("mistake", 2, 2, "it has no corpus"),
        ("mistake everywhere", 0, 2, "error: what was given is wrong"),
        ("stopped", 1, 0, ""),
        ("slow farewell", 1, 0, ""),
    ],
)
def test_one_message_and_all_end(tmp_path: Path, fault: str, victim: int, status: int, told: str) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store"), fault], text=True, stdout=-1, stderr=-1,
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "RANK": str(rank)},
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.stdout and rank.stdout.readline() == "here\n"
        if fault == "killed":
            ranks[victim].kill()
        if fault == "stopped":
            ranks[victim].send_signal(signal.SIGSTOP)
            time.sleep(3)
            ranks[victim].send_signal(signal.SIGCONT)
        said = "".join(rank.communicate(timeout=60)[1] for rank in ranks)
        ended = [rank.returncode for number, rank in enumerate(ranks) if fault != "killed" or number != victim]
        assert set(ended) == {status}, (ended, said)
        assert said.count("error: ") == (status > 0) and told in said, said
        assert said.count("Traceback") == (fault == "defect"), said
    finally:
        for rank in ranks:
            rank.kill()


def test_a_rank_that_never_comes_is_not_waited_for_long() -> None:
    """The process group itself would wait for half an hour."""
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29688"}
    alone = subprocess.run(
        [sys.executable, "-c", ALONE], env={**os.environ, **place, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=60
    )
    assert alone.returncode == 1, alone.stderr
    by_mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}  # before DeepSpeed has made our variables of them
    kept = {name: value for name, value in os.environ.items() if name not in place}
    waiting = "import time; from trainer import lifeline\nlifeline.ARRIVAL = 0.2\nwith lifeline.arriving(): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", waiting], env={**kept, **by_mpi}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "rank 0 on " in done.stderr and "not all 4 ranks have come to rank 0;" in done.stderr, done.stderr
    assert "rank 0 on " in alone.stderr and "not all 2 ranks have come to 127.0.0.1:29688" in alone.stderr
