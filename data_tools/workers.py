"""Work shared out over processes, of this host or of several under MPI; results in the order of the tasks, memory bounded."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


_mpi_pool: Any = None


@contextmanager
def mpi_workers() -> Iterator[bool]:
    """Under `mpirun` the processes beside the first serve as its workers until the block ends. Gives whether the caller is the first.

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
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
            yield from _in_order(pool, function, tasks, 3 * num_workers)


def _in_order(pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], most: int) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _end_with_parent() -> None:
    """A worker whose parent was killed outright would wait for tasks for ever: watch the parent and leave with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
