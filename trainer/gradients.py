"""The sum of gradients over micro-batches and ranks, in fp32, with one reduction a step.

DeepSpeed reduces after every micro-batch in the precision of the weights: with A micro-batches A times the traffic, and in bf16 a sum over
ranks that is rounded to 8 bits. Here every micro-batch is added to an fp32 buffer, and once a step each rank gets the sum of its partition:
as many bytes as one all-reduce in bf16, and added in the same order in every run of as many ranks. It costs a whole fp32
gradient on every rank. Ranks of one host read each other's buffer in shared memory.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from trainer.shared_memory import shared_rows

_CACHED = 1 << 18
"""Elements that are added at a time: they stay in the cache meanwhile."""


def squared_norm(flat: torch.Tensor) -> torch.Tensor:
    """Of a flat fp32 tensor. On CPU in pieces: torch adds a whole one up in few fp32 sums there, and loses 1e-3 of 12 million elements."""
    pieces = flat.split(_CACHED) if flat.device.type == "cpu" else (flat,)
    return torch.stack([piece.norm() for piece in pieces]).square().sum()


class Gradients:
    """Takes the gradient of every parameter as autograd finishes it; `.grad` is empty again before the next one comes."""

    def __init__(self, groups: Sequence[Sequence[torch.nn.Parameter]], partition_sizes: Sequence[int], bucket: int) -> None:
        """groups: of the optimizer, each laid out one parameter after the other; partition_sizes: elements of a rank's part of each group,
        which may end in padding; bucket: elements that are reduced at a time."""
        self._world_size, self._bucket = dist.get_world_size(), bucket
        device = groups[0][0].device
        self._rows = None  # of each group, every rank's buffer
        if device.type == "cpu" and self._world_size > 1:
            self._rows = shared_rows([self._world_size * size for size in partition_sizes], torch.float32)
        if self._rows:
            self._flat = [rows[dist.get_rank()].view(self._world_size, -1) for rows in self._rows]
        else:
            self._flat = [torch.zeros(self._world_size, size, device=device) for size in partition_sizes]
        self._sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        for group, flat in zip(groups, self._flat, strict=True):
            offset = 0
            for parameter in group:
                self._sums[parameter] = flat.view(-1).narrow(0, offset, parameter.numel()).view_as(parameter)
                offset += parameter.numel()
        self._begun: set[torch.nn.Parameter] = set()
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in self._sums]

    @property
    def shared(self) -> bool:
        """Whether ranks read each other's buffers."""
        return self._rows is not None

    @torch.no_grad()
    def _take(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None and isinstance(parameter, torch.nn.Parameter)
        if parameter in self._begun:
            piece = _CACHED if gradient.device.type == "cpu" else gradient.numel()
            for total, more in zip(self._sums[parameter].view(-1).split(piece), gradient.reshape(-1).split(piece), strict=True):
                total += more.float()  # in two steps: faster than one of mixed types
        else:
            self._sums[parameter].copy_(gradient)
            self._begun.add(parameter)

    @torch.no_grad()
    def reduce(self) -> tuple[list[torch.Tensor], int]:
        """This rank's partition (partition_size,) of the sum over ranks, for each group; valid until the next backward pass. And the bytes
        that this rank sent. Collective; another collective must follow before the next backward pass, when buffers are written that other
        ranks read here."""
        for parameter, total in self._sums.items():
            if parameter not in self._begun:  # it took no part in this batch
                total.zero_()
        self._begun.clear()
        mine = [flat[dist.get_rank()] for flat in self._flat]
        if self._world_size == 1:
            return mine, 0
        if self._rows:
            self._add_shared(mine)
            return mine, 0
        sent, width = 0, max(1, self._bucket // self._world_size)
        for flat, part in zip(self._flat, mine, strict=True):
            for begin in range(0, len(part), width):
                piece = flat[:, begin : begin + width].contiguous()
                part[begin : begin + piece.shape[1]] = self._reduce_scatter(piece)
                sent += 4 * (piece.numel() - piece.shape[1])
        return mine, sent

    def _add_shared(self, mine: list[torch.Tensor]) -> None:
        """Each rank reads its own partition in all buffers and writes it in its own, where the others do not read."""
        dist.barrier()
        rank = dist.get_rank()
        for rows, part in zip(self._rows or [], mine, strict=True):
            theirs = [row.view(self._world_size, -1)[rank] for row in rows]
            for begin in range(0, len(part), _CACHED):
                total = theirs[0][begin : begin + _CACHED].clone()
                for other in theirs[1:]:
                    total += other[begin : begin + _CACHED]
                part[begin : begin + _CACHED] = total

    def _reduce_scatter(self, piece: torch.Tensor) -> torch.Tensor:
        """(ranks, n) of every rank -> (n,), the sum of the rows that have this rank's number."""
        if piece.device.type != "cpu":
            total = torch.empty_like(piece[0])
            dist.reduce_scatter_tensor(total, piece)
            return total
        # gloo's own takes three times as long, and its order of addition depends on the rank.
        received = torch.empty_like(piece)
        dist.all_to_all_single(received, piece)
        for row in received[1:]:
            received[0] += row
        return received[0]

    def close(self) -> None:
        """Take no more."""
        for hook in self._hooks:
            hook.remove()
