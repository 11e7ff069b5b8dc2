"""Memory that the ranks of one host share: what one writes the others read, without a network in between."""

import contextlib
import os
import uuid
from pathlib import Path

import torch
import torch.distributed as dist

FOLDER = Path("/dev/shm")


def shared_rows(sizes: list[int], dtype: torch.dtype) -> list[list[torch.Tensor]] | None:
    """For each of `sizes` every rank's row (size,) of zeros, in the order of ranks; None when they are not all on one host, or when its
    shared memory lacks room. Who writes has to see to it, by a collective, that nobody reads. Collective."""
    names: list[str] = [""] * dist.get_world_size()
    width = torch.empty(0, dtype=dtype).element_size()
    mine, total = FOLDER / f"xpt-{uuid.uuid4().hex}", max(1, sum(sizes))
    try:
        with open(mine, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, total * width)  # mapped without it, a full memory would end us by SIGBUS
        written = str(mine)
    except OSError:
        written = ""
    dist.all_gather_object(names, written)
    found = all(name and Path(name).exists() for name in names)
    everywhere = [False] * len(names)
    dist.all_gather_object(everywhere, found)
    rows = None
    if all(everywhere):
        whole = [torch.from_file(name, shared=True, size=total, dtype=dtype) for name in names]
        rows = [list(group) for group in zip(*(one[: sum(sizes)].split(sizes) for one in whole), strict=True)]
        dist.barrier()  # all have mapped them: the names can go, the memory goes with the last process
    with contextlib.suppress(OSError):
        mine.unlink()
    return rows
