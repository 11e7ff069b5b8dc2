"""Break runs over several hosts, start them again, and compare with a run that nothing happened to.   make test-cluster-faults

    python -m tests.cluster.faults --trials 20 [--seed 0]

Three hosts, one rank each, started with pdsh from the first. A trial passes when within 60 s of the fault every rank on every host has
ended, the launcher's exit status is not 0, one message names host and rank, and the next start, with the same hosts or with one fewer, goes
on from the newest good checkpoint to the undisturbed run's losses: the same bits with the same hosts, to a ten-thousandth with one fewer.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.lab import Host, Lab, missing
from tests.cluster.tiny_run import arguments, launch, make_inputs, messages
from tests.tiny import exact_rows
from trainer.checkpoint import newest

FIRST, SECOND = 24, 40
LIMIT = 60
RANKS = r"\S*python\S* -u trainer/xpt.py"
LAUNCH = r"\S*python\S* -u -m deepspeed.launcher.launch"
FAULTS = ("link cut", "processes killed", "disk full", "rank killed")


class Failed(Exception):
    """What a trial found."""


def wait(lab: Lab, process: "subprocess.Popen[str]", seconds: float) -> tuple[float, int]:
    """Until no rank runs on any host and the launcher has ended. Returns the seconds until the last rank had ended, and the status."""
    begin, ranks_ended = time.monotonic(), None
    while time.monotonic() - begin < seconds:
        alive = {host.name: numbers for host in lab.hosts if (numbers := host.processes(f"{RANKS}|{LAUNCH}"))}
        if not alive and ranks_ended is None:
            ranks_ended = time.monotonic() - begin
        if ranks_ended is not None and process.poll() is not None:
            return ranks_ended, process.returncode
        time.sleep(0.1)
    raise Failed(f"after {seconds:g} s still there: {alive}, launcher's status {process.poll()}")


def last_step(run: Path) -> int:
    return int(str(found[-1]["step"])) if (run / "metrics.jsonl").exists() and (found := exact_rows(run)) else -1


def trial(lab: Lab, root: Path, run: Path, fault: str, rng: random.Random) -> str:
    log = run.with_suffix(".log")
    victim, fewer = rng.choice(lab.hosts), rng.random() < 0.5
    number = lab.hosts.index(victim)
    step = rng.randrange(0, FIRST + SECOND - 6)
    run.mkdir()
    if fault == "disk full":
        size = sum(path.stat().st_size for path in (root / "undisturbed" / "checkpoints" / "step-0").iterdir())
        for host in lab.hosts:  # the victim's own is the small one
            host.disk(run, f"{int(size * rng.uniform(3, 6)) // 1024}k" if host is victim else "1G")
    process = launch(lab.hosts[0], lab.hostfile(), arguments(root, run), log)
    where = f"{fault} on {victim.name}"
    try:
        deadline = time.monotonic() + 200
        if fault == "disk full":
            while not messages(log.read_text()) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        else:
            while last_step(run) < step:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"the run did not come to step {step}: {log.read_text()[-3000:]}")
                time.sleep(0.02)
            time.sleep(rng.random() * 0.2)
            where += f" at step {last_step(run)}"
            if fault == "link cut":
                victim.cut()
            elif fault == "rank killed":
                victim.kill(RANKS)
            else:
                victim.kill(f"{RANKS}|{LAUNCH}")
        seconds, status = wait(lab, process, LIMIT)
    finally:
        victim.join()
    told = messages(log.read_text())
    if status == 0:
        raise Failed(f"{where}: the launcher's status is 0: {log.read_text()[-3000:]}")
    # Whose own cable is cut: the others' message cannot reach the launcher, who sits there; rank 0 names those whom it lost.
    name = f"rank {number} on {victim.name}"
    expected = "cut off" if fault == "link cut" and number == 0 else name
    if len(told) != 1 or expected not in told[0]:
        raise Failed(f"{where}: expected one message about {expected}, found {told}: {log.read_text()[-3000:]}")
    where += f", all ended after {seconds:.0f} s"
    for host in lab.hosts if fault == "disk full" else ():
        host.run(["mount", "-o", "remount,size=1G", str(run)])
    return where + resume(lab, root, run, victim, fewer, local=fault == "disk full")


def resume(lab: Lab, root: Path, run: Path, victim: Host, fewer: bool, local: bool) -> str:
    """Start again without help; the losses must be the undisturbed run's."""
    hosts = [host for host in lab.hosts if not fewer or host is not victim]
    hostfile = lab.folder / "again"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    log = run.with_suffix(".again.log")
    process = launch(hosts[0], hostfile, arguments(root, run), log)
    try:
        _, status = wait(lab, process, 300)
        if status:
            raise Failed(f"the next start ended with {status}: {log.read_text()[-3000:]}")
    finally:
        if local:  # from the host's own file system to one that we see
            seen = lab.folder / "seen"
            shutil.rmtree(seen, ignore_errors=True)
            seen.mkdir()
            hosts[0].run(["cp", "-r", f"{run}/.", str(seen)])
            for host in lab.hosts:
                host.run(["umount", str(run)])
            shutil.rmtree(run)
            shutil.copytree(seen, run)
    expected, found = exact_rows(root / "undisturbed"), exact_rows(run)
    if [row["step"] for row in found] != [row["step"] for row in expected]:
        raise Failed(f"{run}: steps {[row['step'] for row in found]}")
    if not fewer and found != expected:
        odd = next(b for a, b in zip(expected, found, strict=True) if a != b)
        raise Failed(f"losses are not the undisturbed run's from {odd} on")
    for a, b in zip(expected, found, strict=True):
        for key in ("loss", "valid_loss"):
            if a.get(key) is not None and abs(float(str(a[key])) - float(str(b[key]))) > 1e-4 * float(str(a[key])):
                raise Failed(f"step {a['step']}: {key} {b[key]}, undisturbed {a[key]}")
    checkpoint, problems = newest(run)
    if checkpoint is None or problems or checkpoint.state["step"] != FIRST + SECOND:
        raise Failed(f"no good last checkpoint: {problems}")
    went = "going on from" in log.read_text()
    return f"; {'resumed' if went else 'began again'} on {len(hosts)} hosts"


def main(choose: Callable[[int], str] = lambda number: FAULTS[number % len(FAULTS)]) -> None:
    parser = argparse.ArgumentParser(description="Break runs over several hosts.")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lacking = missing()
    if lacking:
        sys.exit(f"error: a lab needs {lacking}")
    root = Path(tempfile.mkdtemp(prefix="cluster-faults-"))
    make_inputs(root, FIRST, SECOND)
    failures = 0
    with Lab(3) as lab:
        process = launch(lab.hosts[0], lab.hostfile(), arguments(root, root / "undisturbed"), root / "undisturbed.log")
        if wait(lab, process, 200)[1]:
            sys.exit(f"the undisturbed run failed: {(root / 'undisturbed.log').read_text()[-3000:]}")
        for number in range(options.first, options.first + options.trials):
            run, rng = root / f"trial-{number}", random.Random(1000 * options.seed + number)
            try:
                verdict = f"ok      {trial(lab, root, run, choose(number), rng)}"
            except Failed as failed:
                failures, verdict = failures + 1, f"FAILED  {failed}"
                for host in lab.hosts:
                    host.kill(f"{RANKS}|{LAUNCH}")
            print(f"{number:3}  {verdict}", flush=True)
    print(f"{options.trials - failures} of {options.trials} trials passed")
    if failures:
        sys.exit(f"the folders are kept in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
