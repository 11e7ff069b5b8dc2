"""Who we are among the ranks, and the few collectives that the scripts need."""

import argparse
import errno
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from data_tools.errors import RunError, UserError, first_line, wrong_path
from trainer import accelerator, lifeline
from trainer.launcher import launched, launcher_processes, rank_in_environment

T = TypeVar("T")


def set_environment() -> None:
    """What a process started without a launcher lacks to be rank 0 of 1; does nothing under a launcher or MPI."""
    if not launched():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


class RankParser(argparse.ArgumentParser):
    """One that several ranks can use: help is printed once, and a mistake ends as others do."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError; ends the other ranks without a word, for they were given what rank 0 was, and it says so."""
        if rank_in_environment():
            time.sleep(5)  # the launcher ends everyone once rank 0 has ended, after it has spoken
            _leave(2)
        raise UserError(f"{message}; --help lists what there is")

    def print_help(self, file: Any = None) -> None:
        if rank_in_environment() == 0:
            super().print_help(file)


class Stopped(Exception):
    """The run was asked to end, has saved, and ends on all ranks. The exit status is the shell's for that signal."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number


class StopRequest:
    """SIGTERM, Ctrl-C and a lost terminal are noted, not obeyed at once: the loop ends between two steps, all ranks together, with a
    checkpoint.

    A lost terminal counts as SIGTERM, unless it is ignored (nohup); from then on nothing can be written to it. The end of DeepSpeed's
    launcher counts as SIGTERM, too. On one host `deepspeed` passes no signal on, and killed it can pass none: its ranks would train on
    unseen, while the next start wants the same folder.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._launchers = launcher_processes()
        self._on_terminal = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._signal = number
        if number == signal.SIGHUP:
            self._signal = signal.SIGTERM
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in self._on_terminal:
                os.dup2(nowhere, stream)

    @property
    def signal(self) -> int:
        """The signal to end by; 0 for none."""
        if not self._signal and self._launchers != launcher_processes():
            return signal.SIGTERM
        return self._signal


@dataclass
class Pulse:
    """How far a rank is, for the watchdog of the others."""

    count: int = 0
    """Grows alike on all ranks: with what they begin and with the collectives that they enter."""
    doing: str = "starting"
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ranks:
    """The process group as seen by one rank."""

    rank: int
    world_size: int
    device: torch.device
    pulse: Pulse = field(default_factory=Pulse)

    @classmethod
    def current(cls) -> "Ranks":
        """After the process group was made."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cpu")
        if accelerator.is_gpu():
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)  # collectives on objects use the current device
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} on {socket.gethostname()}"

    def beat(self, doing: str) -> None:
        """A sign of progress. doing: what begins now or still goes on, e.g. `reading batch 7`; the same words in the same order on all."""
        self.pulse.count += doing != self.pulse.doing
        self.pulse.doing, self.pulse.since = doing, time.monotonic()

    def _enter(self) -> None:
        self.pulse.count += 1
        self.pulse.since = time.monotonic()

    def barrier(self) -> None:
        self._enter()
        dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Sums over ranks, in float64."""
        self._enter()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, item: Any) -> list[Any]:
        """The small object of every rank, on every rank."""
        self._enter()
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def bandwidth(self, megabytes: int) -> float:
        """Bytes that each rank sends a second while all add tensors of this size (a ring: 2 (N - 1) / N of the tensor)."""
        tensor = torch.ones(megabytes * 2**18, device=self.device)
        dist.all_reduce(tensor)
        tensor[0].item()  # on a GPU, the end of it
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        tensor[0].item()
        return 2 * (self.world_size - 1) / self.world_size * 4 * tensor.numel() / (time.perf_counter() - begin)

    def broadcast(self, data: bytes, source: int) -> bytes:
        """The bytes of rank `source`, on every rank. data: as many on all ranks."""
        self._enter()
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        dist.broadcast(tensor, source)
        return tensor.cpu().numpy().tobytes()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raises UserError on all ranks when a fact is not the same on all hosts."""
        everyone = self.gather((socket.gethostname(), dict(facts)))
        lines = []
        for key in facts:
            hosts: dict[str, list[str]] = {}
            for host, theirs in everyone:
                hosts.setdefault(str(theirs[key]), []).append(host)
            if len(hosts) > 1:
                lines.append(f"  {key}: " + "; ".join(f"{value} on {', '.join(sorted(set(names)))}" for value, names in hosts.items()))
        if lines:
            raise UserError("the hosts differ; give all of them the same:\n" + "\n".join(lines))

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Run `work` on rank 0 while the others wait; all end together, with rank 0's message, when it fails there."""
        result, failure = None, None
        if self.is_main:
            try:
                result = work()
            except UserError as error:
                failure = (2, str(error))
            except Exception as error:
                said = wrong_path(error) if isinstance(error, OSError) else None
                if said is None:
                    self.gather((1, ""))  # lets the others go before the traceback ends this rank
                    raise
                failure = (2, said)
        failures = [item for item in self.gather(failure) if item is not None]
        if failures:
            status, message = failures[0]
            if status == 2:
                raise UserError(message)
            sys.exit(status)
        return result


def run_on_ranks(main: Callable[[], None]) -> None:
    """Run a launched script's `main`: one message for all ranks, without a traceback for a user's mistake, and the exit status of
    data_tools.errors."""
    status = 0
    try:
        try:
            main()
        except Stopped as stopped:
            status = stopped.status
        farewell()
    except UserError as error:
        _end(2, str(error))
    except RunError as error:
        _end(1, str(error))
    except KeyboardInterrupt:
        _end(130, "interrupted")
    except SystemExit as leaving:  # rank 0 failed in `on_main`, and says so
        line = lifeline.tied()
        if line and leaving.code:
            line.wait_for_verdict()
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _end(1, f"{error.strerror}: {error.filename or 'a file of the run folder'}; make room, then start again", named=True)
        if said := wrong_path(error):
            _end(2, said)
        _break(error)
    except torch.OutOfMemoryError as error:  # of a GPU; not run on one
        _end(1, f"{first_line(error)}; lower train_micro_batch_size_per_gpu in the ds_config", named=True)
    except Exception as error:
        _break(error)
    _leave(status)


def _end(status: int, message: str, named: bool = False) -> None:
    """This rank ends for a reason that users can read; only rank 0 prints. named: say which rank, also when it is rank 0."""
    if named or rank_in_environment():
        message = f"rank {rank_in_environment()} on {socket.gethostname()}: {message}"
    line = lifeline.tied()
    if line:
        line.say(status, message)
    else:
        if rank_in_environment():
            # The launcher ends all ranks of its host once one has ended, after it has spoken: rank 0 for all of its own, and for those of
            # another host, which only that host's launcher ends, their first.
            time.sleep(5 if os.environ.get("LOCAL_RANK", "0") == "0" else 10)
        print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(status)


def _break(error: Exception) -> None:
    """This rank ends by a defect, or because a collective broke: then another rank's end is the reason, and its lifeline tells."""
    line = lifeline.tied()
    if line and _of_a_collective(error):
        status = line.wait_for_verdict()
        if status is not None:
            _leave(status)
    traceback.print_exception(error)
    _end(1, f"{type(error).__name__}: {error}", named=True)


def _of_a_collective(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in str(error) or "onnection" in str(error)))


def farewell() -> None:
    """All ranks leave together: who goes first breaks the collectives of those who still are in one."""
    if dist.is_initialized():
        line = lifeline.tied()
        if line:
            line.untie()
        dist.barrier()
        dist.destroy_process_group()


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end. Other ranks may be inside a collective; and after an orderly farewell, too, gloo's threads live as
    # long as anything holds the group (DeepSpeed's engine does), and abort the process when they free a tensor while Python shuts down.
    os._exit(status)
