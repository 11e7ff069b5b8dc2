"""Run a function on several ranks: fresh processes, a file store (no ports)."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def _worker(
    rank: int, world_size: int, store: str, backend: str, function: Callable[..., None], arguments: tuple[Any, ...], log: str
) -> None:
    accelerator = {"gloo": "cpu", "nccl": "cuda"}[backend]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), DS_ACCELERATOR=accelerator)
    if backend == "gloo":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(f"{log}.{rank}").write_text(traceback.format_exc())
        os._exit(1)
    # DeepSpeed, imported after the group was made, keeps it in default arguments: the group's threads outlive it, and the end of the
    # interpreter under them aborts one process in ten
    sys.stdout.flush()
    os._exit(0)


def run_on_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any, backend: str = "gloo") -> None:
    """Call a module-level `function(*arguments)` on each rank; its failure on any rank is an AssertionError with the traceback."""
    store, log = folder / f"store-{world_size}-{function.__name__}", folder / "failure"
    store.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_worker, args=(rank, world_size, str(store), backend, function, arguments, str(log)))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        if worker.is_alive():
            worker.kill()
    failures = [path.read_text() for path in sorted(folder.glob("failure.*"))]
    assert not failures, "\n".join(failures)
    assert all(worker.exitcode == 0 for worker in workers), [worker.exitcode for worker in workers]
