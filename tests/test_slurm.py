"""The Slurm example, without Slurm: scontrol and srun are stand-ins that answer and write down."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from trainer.launcher import read_hostfile

SCRIPT = Path(__file__).parent.parent / "hostfiles" / "slurm.sbatch"
SRUN = """#!/bin/bash
for node in 0 1 2; do
  while [[ $1 == --* ]]; do echo "$1" >> srun-options; shift; done
  SLURM_NODEID=$node "$@"
done
"""
DEEPSPEED = """#!/bin/bash
printf '%s\\n' "threads=$OMP_NUM_THREADS" "$@" > "started-$SLURM_NODEID"
"""


def test_the_job_starts_every_node_with_its_number(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    for path, text in (
        (tools / "scontrol", "#!/bin/bash\n[[ $* == 'show hostnames gpu[01-03]' ]] && printf 'gpu01\\ngpu02\\ngpu03\\n'\n"),
        (tools / "srun", SRUN),
        (tmp_path / ".venv" / "bin" / "deepspeed", DEEPSPEED),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "gpu[01-03]", "SLURM_JOB_ID": "123456", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **job, "SLURM_CPUS_ON_NODE": "32"}
    subprocess.run(["bash", str(SCRIPT), "--corpus", "a corpus"], env=environment, check=True, cwd="/")
    assert read_hostfile(tmp_path / "hostfile-123456") == {"gpu01": 4, "gpu02": 4, "gpu03": 4}
    assert set((tmp_path / "srun-options").read_text().split()) == {"--kill-on-bad-exit=1", "--mpi=none", "--cpus-per-task=32"}
    asked = {line.removeprefix("#SBATCH ").strip() for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    # a task a node starts its ranks; time to save before the limit; the whole node
    assert {"--ntasks-per-node=1", "--signal=TERM@120", "--exclusive", "--mem=0"} <= asked
    for node in range(3):
        expected = ["threads=8", "--hostfile", "hostfile-123456", "--no_ssh", "--node_rank", str(node), "--master_addr", "gpu01"]
        expected += ["--master_port", "23456", "trainer/xpt.py", "--corpus", "a corpus"]
        assert (tmp_path / f"started-{node}").read_text().splitlines() == expected


def test_the_task_passes_slurms_signal_on_to_the_ranks_and_waits_for_them(tmp_path: Path) -> None:
    rank = "trap 'sleep 1; echo yes > saved; exit 143' TERM; touch ready; while :; do sleep 0.1; done"
    for path, text in (
        (tmp_path / "tools" / "scontrol", "#!/bin/bash\necho gpu01\n"),
        (tmp_path / "tools" / "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\necho $$ > task\nSLURM_NODEID=0 exec "$@"\n'),
        (tmp_path / ".venv" / "bin" / "deepspeed", "#!/bin/bash\nbash launch; exit $?\n"),
        (tmp_path / "launch", "bash rank & wait $!; exit $?\n"),
        (tmp_path / "rank", rank),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "gpu01", "SLURM_JOB_ID": "1"}
    environment = {**os.environ, "PATH": f"{tmp_path}/tools:{os.environ['PATH']}", **job}
    with subprocess.Popen(["bash", str(SCRIPT)], env=environment) as batch:
        while not (tmp_path / "ready").exists() and batch.poll() is None:
            time.sleep(0.05)
        for _ in range(2):  # preemption on top of the time limit
            os.kill(int((tmp_path / "task").read_text()), signal.SIGTERM)
            time.sleep(0.3)
        assert batch.wait(20) == 143 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("lacking", ["SLURM_SUBMIT_DIR", "SLURM_JOB_NODELIST"])
def test_outside_slurm_it_ends_at_once(tmp_path: Path, lacking: str) -> None:
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "gpu[01-03]", "SLURM_JOB_ID": "1"}
    del job[lacking]
    done = subprocess.run(["bash", str(SCRIPT)], env={**os.environ, **job}, capture_output=True, text=True)
    assert done.returncode != 0 and lacking in done.stderr
    assert not list(tmp_path.iterdir())
