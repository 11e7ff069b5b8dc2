"""Work shared among processes, of this host or of several under MPI; results in the order of the tasks, memory bounded."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from data_tools.errors import RunError

Task = TypeVar("Task")
Result = TypeVar("Result")


_mpi_pool: Any = None


@contextmanager
def mpi_workers() -> Iterator[bool]:
    """Under `mpirun` the other processes serve the first as workers until the block ends. Gives whether the caller is the first.

    The hosts share the file system that the output lies on. Does nothing outside MPI.
    """
    global _mpi_pool
    if not any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")):
        yield True
        return
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.Get_size() == 1:
        yield True
        return
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as pool:
        _mpi_pool = pool
        try:
            yield pool is not None
        finally:
            _mpi_pool = None


def ordered_map(function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int) -> Iterator[Result]:
    """`map` over processes: results in task order, at most three tasks a worker under way. One worker means this process.

    num_workers: processes of this host; under `mpi_workers` those do the work, however many they are.
    """
    if _mpi_pool is not None:
        yield from _in_order(_mpi_pool, function, tasks, 3 * _mpi_pool.num_workers)
    elif num_workers == 1:
        yield from map(function, tasks)
    else:
        context = multiprocessing.get_context("spawn")  # fork is unsafe where the caller has threads
        try:
            with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin) as pool:
                yield from _in_order(pool, function, tasks, 3 * num_workers)
        except BrokenProcessPool:
            raise RunError(
                "a worker process was ended from outside, by the kernel if memory ran out; give fewer --workers, then start again"
            ) from None


def _in_order(pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], most: int) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with _interrupts_later():  # this may start a worker
                future = pool.submit(function, task)
            pending.append(future)
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; processes started in it inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Begin a new worker. A terminal's Ctrl-C reaches it as well, but ending is up to the parent: a worker that broke off while sending a
    result would leave the parent waiting for the rest. A worker whose parent was killed would wait for tasks for ever, so it exits, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
