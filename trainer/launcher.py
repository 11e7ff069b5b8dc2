"""How this process was launched, as far as its environment and the processes above it tell."""

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from data_tools.errors import UserError

_CHOOSING = ("--include", "-i", "--exclude", "-e", "--num_gpus", "--num_accelerators", "--num_nodes")  # fewer slots are meant
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE")


def launcher_processes() -> tuple[int, ...]:
    """Process numbers of DeepSpeed's launcher (launch.py, our parent) and of what started that: the `deepspeed` command, or on a host that
    was reached by ssh all up to the end of that connection. None without a launcher."""
    try:
        parent = os.getppid()
        if not any(word.endswith(b"deepspeed.launcher.launch") for word in _command_line(parent)):
            return ()
        above = [parent]
        while above[-1] > 1 and not _name(above[-1]).startswith("sshd"):
            above.append(_parent(above[-1]))
            if _is_deepspeed_command(above[-1]):
                break
        return tuple(above)
    except OSError:  # not Linux, or one of them ended just now
        return ()


def launched() -> bool:
    """Whether a launcher or MPI started this process as one of its ranks."""
    return any(name in os.environ for name in _RANKS)


def rank_in_environment() -> int:
    """Our rank before any process group exists."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), "0"))


def ranks_in_environment() -> int:
    """How many there will be, before any process group exists."""
    return int(next((os.environ[name] for name in ("WORLD_SIZE", *_MPI_SIZES) if name in os.environ), "1"))


def check_launch(world_size: int) -> None:
    """Raises UserError when fewer ranks run than the user's command asked for.

    DeepSpeed's launcher only warns about a missing hostfile, and trains on this machine alone; an mpirun whose library is not the one that
    mpi4py loads starts many runs of one rank each. Where the command runs on another host, this host's ranks have nothing to look at.
    """
    if not launcher_processes():  # beside DeepSpeed's launcher these variables are a batch system's: pmi2 of Slurm counts its tasks
        check_mpi(os.environ, world_size)
    _check_hostfile(world_size)


def check_mpi(environment: Mapping[str, str], world_size: int) -> None:
    """Raises UserError when MPI started another number of ranks than found each other."""
    if world_size == 1 and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            f"srun started {environment['SLURM_STEP_NUM_TASKS']} tasks, and each is a run of one rank: under Slurm start DeepSpeed's "
            "launcher, one task a node (hostfiles/slurm.sbatch), or mpirun"
        )
    sizes = {int(environment[name]) for name in _MPI_SIZES if name in environment}
    if sizes and world_size not in sizes:
        raise UserError(
            f"mpirun started {max(sizes)} rank(s), but this one is rank 0 of {world_size}: mpi4py loads another MPI library than mpirun's; "
            "set MPI4PY_LIBMPI to the libmpi.so of that mpirun, or use the mpirun beside this Python"
        )


def _check_hostfile(world_size: int) -> None:
    """Raises UserError when the hostfile that the `deepspeed` command above us names is missing, or its slots are not the world size."""
    above = os.getppid()
    try:
        while not _is_deepspeed_command(above):
            if above <= 1:
                return
            above = _parent(above)
        words = [os.fsdecode(word) for word in _command_line(above)]
        folder = Path(f"/proc/{above}/cwd").resolve()
        variables = Path(f"/proc/{above}/environ").read_bytes().split(b"\0")
    except OSError:
        return
    script = next((place for place, word in enumerate(words) if word.endswith("xpt.py")), len(words))
    options = words[:script]  # what follows is the script's
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
    _check_devices(variables)
    slots = sum(read_hostfile(path).values())
    chosen = any(option.partition("=")[0] in _CHOOSING for option in options)
    if slots != world_size and not chosen:
        raise UserError(f"--hostfile {named[-1]} has {slots} slots, but {world_size} rank(s) were started; look at the launcher's output")


def _check_devices(variables: list[bytes]) -> None:
    """Raises UserError when the user chose GPUs by a variable that the launcher, given a hostfile, writes over with the slots' numbers.
    variables: NAME=VALUE, of the `deepspeed` command."""
    chosen = next((os.fsdecode(entry).partition("=")[2] for entry in variables if entry.startswith(b"CUDA_VISIBLE_DEVICES=")), "")
    taken = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if chosen in ("", taken):
        return
    from trainer.accelerator import is_gpu  # takes seconds

    if is_gpu():
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={chosen} was set, but with a hostfile DeepSpeed's launcher takes {taken} in its place: unset it, and "
            f"give the launcher --include HOST:{chosen}"
        )


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host, in the file's order. Raises UserError for a file that is missing, empty, or has another kind of line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"hostfile {path}: {error.strerror}; hostfiles/lab is an example") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.match(r"\s*(\S+)\s+slots=(\d+)", line)
        if not found:
            raise UserError(f"hostfile {path}, line {number}: expected `NAME slots=NUMBER`, found {line.strip()!r}")
        if found[1] in hosts:
            raise UserError(f"hostfile {path}, line {number}: {found[1]} appears twice; give it all its slots in one line")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"hostfile {path}: no host in it; expected lines `NAME slots=NUMBER`")
    return hosts


def _is_deepspeed_command(process: int) -> bool:
    return any(Path(os.fsdecode(word)).name in ("deepspeed", "ds", "deepspeed.pt") for word in _command_line(process)[:2])


def _command_line(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")


def _name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
