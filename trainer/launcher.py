"""How this process was launched, as far as the processes above it tell."""

import os
import re
from itertools import pairwise
from pathlib import Path

from data_tools.errors import UserError

_CHOOSING = ("--include", "-i", "--exclude", "-e", "--num_gpus", "--num_accelerators", "--num_nodes")  # fewer slots are meant


def launcher_processes() -> tuple[int, ...]:
    """Process numbers of DeepSpeed's launcher (launch.py, our parent) and of what started that; none without a launcher."""
    try:
        parent = os.getppid()
        if not any(word.endswith(b"deepspeed.launcher.launch") for word in _command_line(parent)):
            return ()
        status = Path(f"/proc/{parent}/stat").read_text()
        return parent, int(status.rpartition(")")[2].split()[1])
    except OSError:  # not Linux, or the parent ended just now
        return ()


def check_hostfile(world_size: int) -> None:
    """Raises UserError when the hostfile that the `deepspeed` command names is missing, or its slots are not the world size.

    DeepSpeed's launcher only warns about a missing hostfile, and trains on this machine alone. Where the command runs on another host,
    the hostfile was there.
    """
    try:
        runner = launcher_processes()[1]
        words = [word.decode(errors="replace") for word in _command_line(runner)]
        folder = Path(f"/proc/{runner}/cwd").resolve()
    except (IndexError, OSError):
        return
    options = words[: next((place for place, word in enumerate(words) if word.endswith("xpt.py")), len(words))]
    named = [value for option, value in pairwise(options) if option in ("--hostfile", "-H")]
    named += [option.partition("=")[2] for option in options if option.startswith("--hostfile=")]
    if not named:
        return
    path = folder / named[-1]
    if not path.is_file():
        raise UserError(
            f"--hostfile {named[-1]}: no such file, and DeepSpeed's launcher went on with {world_size} rank(s) on this machine alone; "
            "name a hostfile that is there (hostfiles/localhost is for one machine)"
        )
    slots = sum(int(count) for count in re.findall(r"^[^#\s]\S*\s+slots=(\d+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    chosen = any(option.partition("=")[0] in _CHOOSING for option in options)
    if slots != world_size and not chosen:
        raise UserError(f"--hostfile {named[-1]} has {slots} slots, but {world_size} rank(s) were started; look at the launcher's output")


def _command_line(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
