"""How commands end: what is the user's to fix has status 2, what broke has 1, and several ranks say it once."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import aside
from data_tools.errors import naming
from trainer import ranks

FULL = "from pathlib import Path; from data_tools import aside; from data_tools.errors import run_command\n"
FULL += "run_command(lambda: aside.write_text(Path({path!r}), 'x' * 9999))"
UNUSABLE = "from trainer.ranks import run_on_ranks; run_on_ranks(lambda: open('README.md/x'))"
MISTYPED = "from trainer.ranks import RankParser, run_on_ranks; run_on_ranks(lambda: RankParser().parse_args(['--nothing']))"


def end_of(program: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "path, status, message",
    [
        ("/dev/full", 1, "No space left on device; make room, then give the command again"),
        ("README.md/x", 2, "README.md/x: cannot be written"),
        ("/dev/null", 0, ""),
    ],
)
def test_a_full_disk_is_no_mistake_of_the_users_and_a_wrong_place_is(path: str, status: int, message: str) -> None:
    found, said = end_of(FULL.format(path=path))
    assert (found, "Traceback" in said) == (status, False) and message in said, said
    assert said.count("error:") == (status > 0)


def test_a_full_disk_has_the_name_of_what_was_being_made() -> None:
    program = "from pathlib import Path; from data_tools.errors import naming, run_command\ndef main():\n"
    program += " with naming(Path('corpus')), open('/dev/full', 'wb') as file: file.write(bytes(99))\nrun_command(main)"
    found, said = end_of(program)
    assert found == 1 and said == "error: corpus: No space left on device; make room, then give the command again\n"
    with pytest.raises(ConnectionError) as caught, naming(Path("corpus")):  # no file's
        raise ConnectionError("refused")
    assert caught.value.filename is None


def test_of_a_link_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    aside.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text" and len(list(tmp_path.iterdir())) == 2
    program = "from pathlib import Path; from data_tools import aside; aside.write_text(Path('/dev/stdout'), 'text')"
    with open(tmp_path / "redirected", "w") as output:  # as by a shell's >
        subprocess.run([sys.executable, "-c", program], stdout=output, check=True)
    assert (tmp_path / "redirected").read_text() == "text" and Path("/dev/stdout").is_symlink()


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), aside.replacing(tmp_path / "file") as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_path_that_cannot_be_used_is_a_mistake_on_ranks_too() -> None:
    assert end_of(UNUSABLE) == (2, "error: README.md/x: Not a directory; name another path\n")


def test_before_the_ranks_are_tied_rank_0_speaks_first_then_the_first_of_each_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who speaks ends by it, and the launcher, which looks every second, then ends the other ranks of that host."""
    clock, spoke_at = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal clock
        assert not capsys.readouterr().err
        clock += seconds

    monkeypatch.setattr(ranks.time, "sleep", sleep)
    monkeypatch.setattr(ranks, "_leave", lambda status: spoke_at.append(clock))
    for rank, local_rank in (("0", "0"), ("8", "0"), ("9", "1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        clock = 0.0
        ranks._end(2, "no GPU")
        assert capsys.readouterr().err.endswith(": no GPU\n")
    assert spoke_at[0] == 0 and all(later > earlier + 1 for earlier, later in itertools.pairwise(spoke_at))


def test_a_mistyped_flag_is_told_by_one_rank() -> None:
    status, said = end_of(MISTYPED, RANK="0", WORLD_SIZE="2")
    assert status == 2 and "error: unrecognized arguments: --nothing" in said
    assert end_of(MISTYPED, RANK="1", WORLD_SIZE="2") == (2, "")
