"""How commands end: what is the user's to mend has status 2, what broke has 1, and several ranks say it once."""

import os
import subprocess
import sys

import pytest

FULL = "from pathlib import Path; from data_tools import aside; from data_tools.errors import run_command\n"
FULL += "run_command(lambda: aside.write_text(Path({path!r}), 'x' * 9999))"
MISTYPED = "from trainer.ranks import RankParser, run_on_ranks; run_on_ranks(lambda: RankParser().parse_args(['--nothing']))"


def end_of(program: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "path, status, message",
    [("/dev/full", 1, "No space left on device"), ("README.md/x", 2, "README.md/x: cannot be written"), ("/dev/null", 0, "")],
)
def test_a_full_disk_is_no_mistake_of_the_users_and_a_wrong_place_is(path: str, status: int, message: str) -> None:
    found, said = end_of(FULL.format(path=path))
    assert (found, "Traceback" in said) == (status, False) and message in said, said
    assert said.count("error:") == (status > 0)


def test_a_mistyped_flag_is_told_by_one_rank() -> None:
    status, said = end_of(MISTYPED, RANK="0", WORLD_SIZE="2")
    assert status == 2 and "error: unrecognized arguments: --nothing" in said
    assert end_of(MISTYPED, RANK="1", WORLD_SIZE="2") == (2, "")
