"""Worker processes: how many tasks they take, and how they end with the command."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from data_tools.workers import ordered_map

INTERRUPTED = """
from data_tools.errors import run_command
from data_tools.workers import ordered_map
def main():
    for number, _ in enumerate(ordered_map(bytes, (3_000_000 for _ in range(100_000)), 2)):
        if number == 20:
            print("now", flush=True)
if __name__ == "__main__":
    run_command(main)
"""


def test_ctrl_c_ends_it_with_one_word_and_at_once(tmp_path: Path) -> None:
    """Sent to all processes, as a terminal does, while they send large results; half a one would leave the parent waiting for the rest."""
    (tmp_path / "script.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for pause in (0.0, 0.11, 0.23):
        with subprocess.Popen(
            [sys.executable, tmp_path / "script.py"], stdout=-1, stderr=-1, text=True, start_new_session=True, env=environment
        ) as process:
            assert process.stdout and process.stdout.readline() == "now\n"
            time.sleep(pause)
            os.killpg(process.pid, signal.SIGINT)
            try:
                _, said = process.communicate(timeout=60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert (process.returncode, said) == (130, "interrupted\n"), said


def test_a_worker_that_is_ended_from_outside_is_told(tmp_path: Path) -> None:
    calls = "ordered_map(bytes, (3_000_000 for _ in range(100_000)), 2)"
    (tmp_path / "script.py").write_text("import os" + INTERRUPTED.replace(calls, "ordered_map(os._exit, iter([1] * 9), 2)"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("error: a worker process was ended from outside"), done.stderr


def test_a_killed_run_takes_its_workers_along(tmp_path: Path) -> None:
    command = (
        "import os, signal, sys, time; from data_tools.workers import ordered_map\n"
        "if __name__ == '__main__':\n"
        "    results = ordered_map(os.path.getsize, iter(['/'] * 9), 2); next(results)\n"
        "    import multiprocessing; print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "script.py").write_text(command)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 100
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)


def test_no_more_tasks_are_under_way_than_workers_need() -> None:
    begun = []
    results = ordered_map(bytes, (begun.append(number) or number for number in range(99)), 2)
    assert next(results) == b"" and len(begun) <= 8
    assert len(list(results)) == 98
