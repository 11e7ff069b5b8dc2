"""The product as it is used: `deepspeed --hostfile` and mpirun over several hosts, a doctor for them, and cables that are pulled."""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import faults
from tests.cluster.lab import ROOT, Lab, missing
from tests.cluster.tiny_run import arguments, launch, make_inputs, messages
from tests.tiny import exact_rows
from trainer.checkpoint import newest
from trainer.metrics_log import read_rows

LACKING = missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(LACKING), reason=f"no lab on this machine: it lacks {LACKING}")]
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Path:
    """Inputs, and a run on three hosts that nothing happens to."""
    root = tmp_path_factory.mktemp("cluster")
    make_inputs(root, faults.FIRST, faults.SECOND)
    process = launch(lab.hosts[0], lab.hostfile(), arguments(root, root / "undisturbed"), root / "log")
    assert faults.wait(lab, process, 300)[1] == 0, (root / "log").read_text()
    return root


@pytest.mark.parametrize("way", ["openmpi", "mpich", "plain mpirun", "plain mpirun of MPICH", "no_ssh"])
def test_every_launcher_gives_the_same_losses(lab: Lab, root: Path, tmp_path: Path, way: str) -> None:
    """Against pdsh. no_ssh is how hostfiles/slurm.sbatch starts."""
    first, hostfile = lab.hosts[0], str(lab.hostfile())
    (first.home / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\nMPI4PY_MPIABI=openmpi\n")
    mpi = shutil.which("mpirun.mpich" if "mpich" in way.lower() else "mpirun.openmpi", path="/usr/bin")
    if mpi is None and way != "no_ssh":
        pytest.skip(f"{way} is not installed")
    (tmp_path / "mpirun").write_text(f'#!/bin/sh\nexec {mpi} "$@"\n')
    (tmp_path / "mpirun").chmod(0o755)
    words = ["trainer/xpt.py", *arguments(root, tmp_path / "run")]
    variables = ["DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1", "MPI4PY_MPIABI=openmpi"]
    mca = "--mca btl_tcp_if_include eth0"
    (tmp_path / "libmpi.so.12").symlink_to("/usr/lib/x86_64-linux-gnu/libmpich.so.12")  # mpi4py wants MPICH's own name, not Debian's
    debian = ["-genv", "MPI4PY_MPIABI", "mpich", "-genv", "LD_LIBRARY_PATH", str(tmp_path), "-genv", "UCX_TLS", "tcp"]
    start = {
        "openmpi": [DEEPSPEED, "--hostfile", hostfile, "--launcher", "openmpi", "--launcher_args", mca, *words],
        "mpich": [DEEPSPEED, "--hostfile", hostfile, "--launcher", "mpich", *words],
        "plain mpirun": ["mpirun", "-n", "3", "-hostfile", hostfile, *mca.split(), *(w for v in variables for w in ("-x", v)),
                         sys.executable, *words],
        "plain mpirun of MPICH": ["mpirun", "-n", "3", "-hosts", ",".join(host.name for host in lab.hosts),
                                  *(w for v in variables[:2] for w in ("-genv", *v.split("="))), *debian, sys.executable, *words],
    }  # fmt: skip
    if way == "no_ssh":
        each = [
            [DEEPSPEED, "--hostfile", hostfile, "--no_ssh", "--node_rank", str(n), "--master_addr", first.address, *words] for n in range(3)
        ]
    else:
        each = [start[way]]
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    path = f"PATH={tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"
    started = [host.start(["env", path, *variables, *line], stdout=log, stderr=log) for host, line in zip(lab.hosts, each, strict=False)]
    assert [process.wait(300) for process in started] == [0] * len(started), (tmp_path / "log").read_text()
    assert exact_rows(tmp_path / "run") == exact_rows(root / "undisturbed")


def test_mpi_that_starts_runs_of_one_rank_each_is_refused(lab: Lab, root: Path, tmp_path: Path) -> None:
    lie = ["env", "DS_ACCELERATOR=cpu", "OMPI_COMM_WORLD_SIZE=2", "RANK=0", "WORLD_SIZE=1", "LOCAL_RANK=0", "MASTER_ADDR=127.0.0.1"]
    done = lab.hosts[0].run([*lie, "MASTER_PORT=29501", sys.executable, "trainer/xpt.py", *arguments(root, tmp_path / "run")])
    assert done.returncode == 2 and "mpirun started 2 rank(s)" in done.stderr and "Traceback" not in done.stderr


def test_expected_world_size_holds_over_hosts_with_one_message(lab: Lab, root: Path, tmp_path: Path) -> None:
    words = arguments(root, tmp_path / "run", "--set", "expect_world_size=3")
    assert launch(lab.hosts[0], lab.hostfile(hosts=2), words, tmp_path / "log").wait(200) != 0
    told = messages((tmp_path / "log").read_text())
    assert len(told) == 1 and "expect_world_size is 3, but 2 rank(s)" in told[0], told
    assert not (tmp_path / "run").exists()


def test_a_host_with_another_corpus_is_named(lab: Lab, root: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(root / "corpus", corpus)
    lab.hosts[1].disk(corpus)
    words = arguments(root, tmp_path / "run", "--corpus", str(corpus))
    assert launch(lab.hosts[0], lab.hostfile(), words, tmp_path / "log").wait(200) != 0
    told = messages((tmp_path / "log").read_text())
    assert len(told) == 1 and "rank 1 on node2" in told[0] and "manifest.json" in told[0], (tmp_path / "log").read_text()
    lab.hosts[1].run(["umount", str(corpus)])


@pytest.mark.parametrize(("fault", "seed"), [("link cut", 0), ("disk full", 2)])
def test_a_broken_host_ends_all_and_the_next_start_goes_on(lab: Lab, root: Path, fault: str, seed: int) -> None:
    """On disks of their own when one is full. More of it: make test-cluster-faults."""
    faults.trial(lab, root, root / fault.replace(" ", "-"), fault, random.Random(seed))


def test_sigterm_saves_on_all_hosts_and_the_next_start_goes_on(lab: Lab, root: Path, tmp_path: Path) -> None:
    """Sent to the `deepspeed` command alone, as a scheduler does: pdsh ends the launchers on all hosts, their ranks save."""
    run = tmp_path / "run"
    process = launch(lab.hosts[0], lab.hostfile(), arguments(root, run, "--set", "every.checkpoint=0"), tmp_path / "log")
    while faults.last_step(run) < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()
    lab.hosts[0].kill(r"\S*python\S* \S*deepspeed --hostfile", signal.SIGTERM)
    assert faults.wait(lab, process, faults.LIMIT)[1] != 0
    step = faults.last_step(run)
    found, _ = newest(run)
    assert found and 0 < found.state["step"] == step < faults.FIRST, (step, (tmp_path / "log").read_text())
    assert launch(lab.hosts[0], lab.hostfile(), arguments(root, run), tmp_path / "again").wait(200) == 0
    assert [row["loss"] for row in exact_rows(run) if "loss" in row] == [
        row["loss"] for row in exact_rows(root / "undisturbed") if "loss" in row
    ]


def test_bytes_sent_are_those_on_the_wire(lab: Lab, root: Path, tmp_path: Path) -> None:
    """Two ranks with a larger model: what the log says against the interface's counter, for the difference of two lengths of run."""
    measured, said = [], []
    for steps in (4, 24):
        run = tmp_path / f"run-{steps}"
        change = [f"stages.0.steps={steps}", "stages.0.warmup_steps=0", "stages.1.steps=1", "stages.1.warmup_steps=0", "every.checkpoint=0"]
        before = lab.hosts[1].sent()
        process = launch(lab.hosts[0], lab.hostfile(hosts=2), arguments(root, run, "--set", *change), tmp_path / f"log-{steps}")
        assert process.wait(300) == 0, (tmp_path / f"log-{steps}").read_text()
        measured.append(lab.hosts[1].sent() - before)
        said.append(sum(row["bytes_sent_per_step"] for row in read_rows(run / "metrics.jsonl") if row.get("loss") is not None))
    per_step, logged = (measured[1] - measured[0]) / 20, (said[1] - said[0]) / 20
    # Besides: TCP's headers and answers, the sums of the loop, ssh: some kilobytes a step.
    assert logged < per_step < 1.15 * logged + 6000, (per_step, logged)


class TestDoctor:
    """Every failure has a host and a remedy."""

    def ask(self, lab: Lab, root: Path, tmp_path: Path, *more: str, hosts: int = 2) -> subprocess.CompletedProcess[str]:
        words = ["-m", "trainer.doctor", "--hostfile", str(lab.hostfile(hosts=hosts)), *arguments(root, tmp_path / "run")]
        environment = ["env", f"PYTHONPATH={ROOT}"]
        return lab.hosts[0].run([*environment, sys.executable, *words, *more], cwd=tmp_path)

    @pytest.fixture(autouse=True)
    def project(self, tmp_path: Path) -> None:
        for package in ("trainer", "data_tools"):
            (tmp_path / package).symlink_to(ROOT / package)

    def test_all_is_well(self, lab: Lab, root: Path, tmp_path: Path) -> None:
        done = self.ask(lab, root, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "eth0 10.77.0.2" in done.stdout and "Gbit/s" in done.stdout and "one folder for all ranks" in done.stdout
        variables = dict(line.split("=", 1) for line in (tmp_path / ".deepspeed_env").read_text().splitlines())
        assert variables["DS_ACCELERATOR"] == "cpu" and variables["GLOO_SOCKET_IFNAME"] == "eth0" and int(variables["OMP_NUM_THREADS"]) >= 1

    def test_folders_of_their_own_are_told(self, lab: Lab, root: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        lab.hosts[1].disk(tmp_path / "run")
        done = self.ask(lab, root, tmp_path)
        lab.hosts[1].run(["umount", str(tmp_path / "run")])
        assert done.returncode == 0 and "is 2 folders" in done.stdout, done.stdout + done.stderr

    def test_too_small_a_disk_and_a_missing_seed(self, lab: Lab, root: Path, tmp_path: Path) -> None:
        seed = tmp_path / "seed"
        shutil.copytree(root / "seed", seed)
        (tmp_path / "run").mkdir()
        recipe = (root / "recipe.yaml").read_text().replace(f"{root}/seed", str(seed))
        (tmp_path / "recipe.yaml").write_text(recipe)
        lab.hosts[1].disk(tmp_path / "run", "64k")
        done = self.ask(lab, root, tmp_path, "--recipe", str(tmp_path / "recipe.yaml"))
        assert done.returncode == 1 and "FAILED  node2: 0 MiB of disk free" in done.stdout, done.stdout + done.stderr
        lab.hosts[1].disk(seed)
        done = self.ask(lab, root, tmp_path, "--recipe", str(tmp_path / "recipe.yaml"))
        for folder in (seed, tmp_path / "run"):
            lab.hosts[1].run(["umount", str(folder)])
        assert done.returncode == 1 and f"FAILED  node2: seed_model {seed}" in done.stdout, done.stdout + done.stderr

    def test_what_is_wrong_is_named_with_its_remedy(self, lab: Lab, root: Path, tmp_path: Path) -> None:
        holder = lab.hosts[0].start([sys.executable, "-c", "import socket, time; s = socket.create_server(('', 29500)); time.sleep(600)"])
        corpus = tmp_path / "corpus"
        shutil.copytree(root / "corpus", corpus)
        lab.hosts[1].disk(corpus)
        lab.hosts[2].cut()
        try:
            done = self.ask(lab, root, tmp_path, "--corpus", str(corpus), hosts=3)
        finally:
            lab.hosts[2].join()
            lab.hosts[1].run(["umount", str(corpus)])
            holder.kill()
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        for wrong in ("node1: the port for rank 0 is taken", "node2: corpus: ", "node3: ssh does not reach it without a password"):
            assert f"FAILED  {wrong}" in done.stdout, done.stdout

    def test_a_batch_that_does_not_divide(self, lab: Lab, root: Path, tmp_path: Path) -> None:
        recipe = (root / "recipe.yaml").read_text().replace("global_batch_size: 24", "global_batch_size: 22\nexpect_world_size: 4")
        (tmp_path / "recipe.yaml").write_text(recipe)
        done = self.ask(lab, root, tmp_path, "--recipe", str(tmp_path / "recipe.yaml"))
        assert done.returncode == 1 and "does not divide" in done.stdout and "expect_world_size is 4" in done.stdout, (
            done.stdout + done.stderr
        )
