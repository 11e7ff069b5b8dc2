"""The sum of gradients over micro-batches and ranks, against a sum by hand, in shared memory and over the network."""

from pathlib import Path

import pytest
import torch

from tests.distributed import run_on_ranks

SHAPES, MICRO_BATCHES, STEPS = [[(5, 3), (7,)], [(11,), (2, 2)]], 3, 2
SIZES = {1: [22, 15], 3: [8, 6]}  # of a rank's partition; 3 x 8 is 22 and 2 of padding


def gradient(step: int, rank: int, micro: int, group: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash((step, rank, micro, group, number)) % 2**31)
    return torch.randn(SHAPES[group][number], generator=generator).bfloat16()


def takes_part(step: int, group: int, number: int) -> bool:
    return (step, group, number) != (1, 0, 1)


def add_up(folder: Path) -> None:
    import torch.distributed as dist

    from trainer import engine as engines
    from trainer import gradients as sums
    from trainer import shared_memory
    from trainer.gradients import Gradients

    shared_memory.FOLDER = folder
    sums._CACHED = 4  # so that every sum is made of several parts
    engines.start()
    world_size, rank = dist.get_world_size(), dist.get_rank()
    groups = [[torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)) for shape in shapes] for shapes in SHAPES]
    gradients = Gradients(groups, SIZES[world_size], bucket=9)
    dist.barrier()
    assert not list(folder.glob("*"))
    for step in range(STEPS):
        for micro in range(MICRO_BATCHES):
            for index, group in enumerate(groups):
                for number, parameter in enumerate(group):
                    if takes_part(step, index, number):
                        (parameter * gradient(step, rank, micro, index, number)).sum().backward()
                    assert parameter.grad is None
        parts, sent = gradients.reduce()
        assert sent == (4 * sum(SIZES[world_size]) * (world_size - 1) if world_size > 1 and not folder.exists() else 0)
        for index, (group, part) in enumerate(zip(groups, parts, strict=True)):
            total = torch.zeros(world_size, world_size * SIZES[world_size][index])
            offset = 0
            for number, parameter in enumerate(group):
                if takes_part(step, index, number):
                    for other in range(world_size):
                        for micro in range(MICRO_BATCHES):
                            one = gradient(step, other, micro, index, number)
                            total[other, offset : offset + one.numel()] += one.float().flatten()
                offset += parameter.numel()
            expected = total[0]
            for other in total[1:]:
                expected = expected + other
            assert torch.equal(part, expected.view(world_size, -1)[rank])
        dist.barrier()


@pytest.mark.parametrize(("world_size", "shared"), [(1, True), (3, True), (3, False)])
def test_the_sum_is_exact_to_the_bit(tmp_path: Path, world_size: int, shared: bool) -> None:
    if shared:
        (tmp_path / "memory").mkdir()
    run_on_ranks(add_up, world_size, tmp_path, tmp_path / "memory")
