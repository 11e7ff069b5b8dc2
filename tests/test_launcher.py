"""How a process was launched: told from the command above it, here a stand-in for `deepspeed` that starts two ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.errors import UserError
from trainer import launcher
from trainer.launcher import check_mpi, read_hostfile

DEEPSPEED = """
import os, subprocess, sys
check = "from data_tools.errors import run_command; from trainer.launcher import check_launch; run_command(lambda: check_launch(2))"
if "CUDA_VISIBLE_DEVICES" in os.environ:  # on a host with GPUs it is written over
    check = "import torch; torch.cuda.is_available = lambda: True; " + check
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
sys.exit(subprocess.run([sys.executable, "-c", check]).returncode)
"""


def start(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "deepspeed").write_text(DEEPSPEED)
    words = [sys.executable, str(folder / "deepspeed"), *options, "trainer/xpt.py", "--hostfile", "of the script"]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hostfile", "two"], ""),
        (["--hostfile", "missing"], "error: --hostfile missing: no such file"),
        (["--hostfile=missing"], "error: --hostfile missing: no such file"),
        (["-H", "four"], "error: --hostfile four has 4 slots, but 2 rank(s) were started"),
        (["--hostfile", "four", "--include", "a"], ""),
        (["--hostfile", "broken"], "error: hostfile broken, line 1: expected `NAME slots=NUMBER`, found 'a 2'"),
        ([], ""),
    ],
)
def test_fewer_ranks_than_asked_for_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "two").write_text("# a lab\na slots=1\n\nb slots=1\n")
    (tmp_path / "four").write_text("a slots=2\nb slots=2\n")
    (tmp_path / "broken").write_text("a 2\n")
    done = start(tmp_path, *options)
    told = done.stderr.replace(f"{tmp_path}/", "")
    assert done.returncode == (2 if message else 0) and message in told and "Traceback" not in told, done.stderr


def test_gpus_that_were_chosen_by_a_variable_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("localhost slots=2\n")
    for chosen, refused in (("4,5", True), ("0,1", False)):
        done = start(tmp_path, "--hostfile", "two", CUDA_VISIBLE_DEVICES=chosen)
        assert ("CUDA_VISIBLE_DEVICES=4,5 was set" in done.stderr) == refused == (done.returncode == 2), done.stderr


def test_hostfiles_with_a_host_twice_or_none_are_refused(tmp_path: Path) -> None:
    for text, wrong in (("a slots=1\na slots=2\n", "line 2: a appears twice"), ("# nothing\n", "no host in it")):
        (tmp_path / "hosts").write_text(text)
        with pytest.raises(UserError, match=wrong):
            read_hostfile(tmp_path / "hosts")


def test_beside_deepspeeds_launcher_a_batch_systems_count_is_not_mpis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")  # Slurm's pmi2: tasks, one a node
    with pytest.raises(UserError, match="mpirun started 2 rank"):
        launcher.check_launch(16)
    monkeypatch.setattr(launcher, "launcher_processes", lambda: (1,))
    launcher.check_launch(16)


def test_mpi_of_another_size_is_refused() -> None:
    check_mpi({"OMPI_COMM_WORLD_SIZE": "2"}, 2)
    check_mpi({}, 1)
    with pytest.raises(UserError, match="mpirun started 4 rank"):
        check_mpi({"PMI_SIZE": "4"}, 1)
    check_mpi({"SLURM_STEP_NUM_TASKS": "1"}, 1)
    check_mpi({"SLURM_STEP_NUM_TASKS": "4"}, 4)
    with pytest.raises(UserError, match="srun started 16 tasks, and each is a run of one rank"):
        check_mpi({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "3"}, 1)
