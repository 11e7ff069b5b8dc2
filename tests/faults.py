"""Break real runs on two ranks, start them again, and compare with a run that nothing happened to.   make test-faults [TRIALS=10]

    python -m tests.faults --trials 50 [--seed 0] [--record FILE]

After each trial the next start must have gone on without help, and ended with the undisturbed run's final weights, bit for bit, and its
losses, each step once. A line per trial; exit status 1 when any failed.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.damage import DAMAGES
from tests.test_xpt import ROOT, command, environment
from tests.tiny import exact_rows, final_weights, make_corpus, make_seed, write_recipe
from trainer.checkpoint import checkpoint_paths, newest
from trainer.metrics_log import read_rows

LAST, STAGE_CHANGE, EVALUATE, SAVE = 80, 30, 20, 8
HANG_SECONDS = 20


class Failed(Exception):
    """What a trial found."""


@dataclass
class Started:
    """A launched run."""

    process: subprocess.Popen[bytes]
    run: Path
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def last_step(self) -> int:
        rows = read_rows(self.run / "metrics.jsonl") if (self.run / "metrics.jsonl").exists() else []
        return rows[-1]["step"] if rows else -1

    def processes(self) -> dict[str, list[int]]:
        """Process numbers of the ranks, in their order, and of the launcher's processes."""
        found: dict[str, list[int]] = {"ranks": [], "launcher": []}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_bytes().decode().split("\0")
                except OSError:
                    continue
                if str(self.run) in words:
                    is_rank = not any("deepspeed" in word and "zero2" not in word for word in words[:6])
                    found["ranks" if is_rank else "launcher"].append(int(folder.name))
        found["ranks"].sort()
        return found

    def everyone(self) -> list[int]:
        return [number for numbers in self.processes().values() for number in numbers]

    def wait(self, seconds: float) -> int:
        """Exit status; every process of the run must be gone by then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.process.poll()
            if status is not None and not any(self.processes().values()):
                return status
            time.sleep(0.05)
        raise Failed(f"after {seconds:g} s these still run: {self.processes()}")


def start(root: Path, run: Path, *settings: str, limit: Callable[[], None] | None = None) -> Started:
    run.mkdir(exist_ok=True)
    log = run / "log"
    with open(log, "ab") as file:
        words = command(root, "--output-dir", str(run), *(("--set", *settings) if settings else ()))
        process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True, preexec_fn=limit)
    return Started(process, run, log)


def kill(numbers: list[int], number: signal.Signals) -> None:
    for process in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def wait_for(started: Started, moment: str, rng: random.Random) -> str:
    """Sleep until the run is at that moment; says where it is."""

    def until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            if started.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the run ended or stood still before {moment}: {started.said()[-2000:]}")
            time.sleep(0.0005)

    if moment == "random":
        step = rng.randrange(-1, LAST - 2)
        until(lambda: started.last_step() >= step)
        time.sleep(rng.random() * 0.1)
    elif moment == "checkpoint write":
        step = rng.choice([8, 16, 24, 40, 48, 56, 64, 72])
        until((started.run / "checkpoints" / f"step-{step}.partial").exists)
        time.sleep(rng.random() * 0.01)
    elif moment == "stage change":
        until(lambda: started.last_step() >= STAGE_CHANGE)
        time.sleep(rng.random() * 0.3)
    else:
        step = EVALUATE * rng.randrange(1, 4)
        until(lambda: started.last_step() >= step - 1)
        time.sleep(rng.random() * 0.02)
    return f"{moment}, step {started.last_step()}"


def killed(root: Path, run: Path, rng: random.Random, victim: str, moment: str) -> str:
    """SIGKILL of one rank, all ranks, or the launcher."""
    started = start(root, run)
    where = wait_for(started, moment, rng)
    found = started.processes()
    if victim == "rank":
        kill([rng.choice(found["ranks"])], signal.SIGKILL)
    elif victim == "all":
        kill(found["ranks"], signal.SIGKILL)
    else:
        kill(found["launcher"], signal.SIGKILL)
    started.wait(60)
    return where


def asked(root: Path, run: Path, rng: random.Random, number: signal.Signals) -> str:
    """SIGTERM to the launcher, or Ctrl-C: the terminal sends SIGINT to the whole foreground group."""
    started = start(root, run)
    where = wait_for(started, "random", rng)
    step = started.last_step()
    kill(started.processes()["launcher"][:1] if number == signal.SIGTERM else started.everyone(), number)
    started.wait(60)
    saved = re.findall(r"asked to stop: step (\d+) is saved", started.said())
    if step >= 0 and (not saved or not step <= int(saved[-1]) <= step + 30):
        raise Failed(f"no checkpoint near step {step}: {started.said()[-2000:]}")
    if f'File "{ROOT}/trainer/' in started.said() and step >= 0:  # at Ctrl-C DeepSpeed's launcher prints a traceback of its own
        raise Failed(started.said()[-2000:])
    return where


def hung(root: Path, run: Path, rng: random.Random) -> str:
    """One rank stopped: the others end in time, and say which."""
    started = start(root, run, f"hang_seconds={HANG_SECONDS}")
    where = wait_for(started, "random", rng)
    while started.last_step() < 0:
        time.sleep(0.05)
    victim = rng.randrange(2)
    process = started.processes()["ranks"][victim]
    kill([process], signal.SIGSTOP)
    try:
        deadline = time.monotonic() + HANG_SECONDS + 60
        while started.process.poll() is None and "error: no progress" not in started.said():
            if time.monotonic() > deadline:
                raise Failed(f"rank {victim} hangs and nobody says so: {started.said()[-2000:]}")
            time.sleep(0.05)
        message = next(line for line in started.said().splitlines() if "error: no progress" in line)
        if not re.search(rf"rank {victim}\b.*does not answer", message):
            raise Failed(f"rank {victim} hangs, blamed is: {message}")
        started.wait(60)
    finally:
        kill([process], signal.SIGKILL)
    return f"{where}, rank {victim}"


def damaged(root: Path, run: Path, rng: random.Random) -> str:
    """The newest checkpoint damaged while nothing runs: passed over, loudly, and never with --resume must."""
    started = start(root, run)
    wait_for(started, "random", rng)
    while started.last_step() < 2 * SAVE + 2:
        time.sleep(0.01)
    kill(started.everyone(), signal.SIGKILL)
    started.wait(60)
    last = checkpoint_paths(run)[0]
    victim = rng.choice(sorted(last.iterdir()))
    copy = victim.read_bytes()
    victim.unlink()  # frozen files are links
    victim.write_bytes(copy)
    damage = rng.choice(DAMAGES)
    damage(victim, rng)
    refused = subprocess.run(
        command(root, "--output-dir", str(run), "--resume", "must", ranks=1), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if refused.returncode != 2 or str(last) not in refused.stderr or "Traceback" in refused.stderr:
        raise Failed(f"--resume must took {victim} after {damage.__name__}: {refused.stdout[-500:]} {refused.stderr[-1500:]}")
    again = start(root, run)
    again.wait(200)
    if "WARNING: passed over: " not in again.said() or str(last) not in again.said().split("WARNING: passed over: ")[1].splitlines()[0]:
        raise Failed(f"{victim} after {damage.__name__} was passed over in silence: {again.said()[-2000:]}")
    return f"{last.name}/{victim.name}, {damage.__name__}"


def full_disk(root: Path, run: Path, rng: random.Random) -> str:
    """The run folder on a small file system that fills up; then room is made."""
    size = (root / "undisturbed" / "checkpoints" / "step-0" / "weights-seed.safetensors").stat().st_size
    run.mkdir()
    room = int(size * rng.uniform(2.5, 6)) + 200_000
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(run)], check=True)
    try:
        log = root / f"{run.name}.log"
        setting = rng.choice(["stop", "warn"])
        with open(log, "wb") as file:
            words = command(root, "--output-dir", str(run), "--set", f"on_save_failure={setting}")
            status = subprocess.run(words, cwd=ROOT, env=environment(), stdout=file, stderr=file).returncode
        said = log.read_text()
        if status == 0 or said.count("error: ") != 1 or "No space left on device" not in said or "Traceback" in said:
            raise Failed(f"on_save_failure={setting}, {room} bytes: {said[-2000:]}")
        found, problems = newest(run)
        if found is None or problems:
            raise Failed(f"the last good checkpoint is not good: {problems}")
        where = f"{room:,} bytes, on_save_failure={setting}, step {found.state['step']} stays"
        subprocess.run(["mount", "-o", "remount,size=100M", str(run)], check=True)
        shutil.copytree(run, root / "room")
    finally:
        subprocess.run(["umount", str(run)], check=True)
    run.rmdir()
    (root / "room").rename(run)
    return where


def compare(root: Path, run: Path) -> None:
    """The final weights and the losses are the undisturbed run's."""
    weights, rows = [], []
    for folder in (root / "undisturbed", run):
        try:
            weights.append(final_weights(folder, LAST))
        except AssertionError as error:
            raise Failed(str(error)) from None
        rows.append(exact_rows(folder))
    odd = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    if odd:
        raise Failed(f"{len(odd)} parameters are not the undisturbed run's, e.g. {odd[0]}")
    if rows[0] != rows[1]:
        raise Failed("metrics.jsonl is not the undisturbed run's")


FAULTS: list[tuple[str, Callable[[Path, Path, random.Random], str]]] = [
    ("one rank killed", lambda *a: killed(*a, "rank", "random")),
    ("all ranks killed", lambda *a: killed(*a, "all", "checkpoint write")),
    ("launcher killed", lambda *a: killed(*a, "launcher", "random")),
    ("SIGTERM", lambda *a: asked(*a, signal.SIGTERM)),
    ("one rank hung", hung),
    ("checkpoint damaged", damaged),
    ("one rank killed", lambda *a: killed(*a, "rank", "stage change")),
    ("disk full", full_disk),
    ("Ctrl-C", lambda *a: asked(*a, signal.SIGINT)),
    ("all ranks killed", lambda *a: killed(*a, "all", "validation")),
    ("launcher killed", lambda *a: killed(*a, "launcher", "checkpoint write")),
    ("one rank killed", lambda *a: killed(*a, "rank", "validation")),
    ("all ranks killed", lambda *a: killed(*a, "all", "stage change")),
    ("one rank killed", lambda *a: killed(*a, "rank", "checkpoint write")),
    ("launcher killed", lambda *a: killed(*a, "launcher", "stage change")),
    ("all ranks killed", lambda *a: killed(*a, "all", "random")),
    ("launcher killed", lambda *a: killed(*a, "launcher", "validation")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with what was begun elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a JSON file for the counts")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    make_seed(root / "seed", "roberta")
    make_corpus(root / "corpus")
    write_recipe(root / "recipe.yaml", root)
    if start(root, root / "undisturbed").wait(200) != 0:
        sys.exit(f"the undisturbed run failed: {root / 'undisturbed' / 'log'}")
    counts: Counter[str] = Counter()
    failures = []
    begin = time.monotonic()
    for trial in range(arguments.first, arguments.first + arguments.trials):
        name, fault = FAULTS[trial % len(FAULTS)]
        run, rng = root / f"trial-{trial}", random.Random(1000 * arguments.seed + trial)
        where = ""
        try:
            where = fault(root, run, rng)
            status = start(root, run).wait(200)
            if status != 0:
                raise Failed(f"the next start ended with {status}: {(run / 'log').read_text()[-2000:]}")
            compare(root, run)
            shutil.rmtree(run)
        except Failed as failed:
            failures.append(f"trial {trial}, {name} ({where}): {failed}")
            subprocess.run(["pkill", "-9", "-f", f"{run}( |$)"], check=False)  # what may still run of it
        verdict = "FAILED" if failures and failures[-1].startswith(f"trial {trial},") else "ok"
        counts[f"{name} {verdict}"] += 1
        print(f"{trial - arguments.first + 1:3}/{arguments.trials}  {name:18}  {where:48}  {verdict}", flush=True)
    print(f"{arguments.trials - len(failures)} of {arguments.trials} recovered exactly, {time.monotonic() - begin:.0f} s")
    if arguments.record:
        arguments.record.write_text(
            json.dumps({"trials": arguments.trials, "seed": arguments.seed, **dict(sorted(counts.items()))}, indent=1) + "\n"
        )
    if failures:
        sys.exit("\n".join([*failures, f"the folders of failed trials are kept in {root}"]))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
