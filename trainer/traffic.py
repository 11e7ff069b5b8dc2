"""What a rank sends over the network."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist


class Traffic:
    """Bytes that this rank sends: in DeepSpeed's collectives, and what is added.

    Counted as rings send them: each of a ring's rounds over n bytes sends n (N - 1) / N, an all-reduce has two.
    """

    def __init__(self) -> None:
        self._backend, self._bytes = deepspeed.comm.comm.cdb, 0.0
        all_reduce, all_gather, into_tensor = (getattr(self._backend, name) for name in self._NAMES)

        def counted_all_reduce(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            self._count(2, tensor)
            return all_reduce(tensor, *arguments, **named)

        def counted_all_gather(tensor_list: list[torch.Tensor], tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            self._count(1, *tensor_list)
            return all_gather(tensor_list, tensor, *arguments, **named)

        def counted_into_tensor(output_tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            self._count(1, output_tensor)
            return into_tensor(output_tensor, *arguments, **named)

        for name, counted in zip(self._NAMES, (counted_all_reduce, counted_all_gather, counted_into_tensor), strict=True):
            setattr(self._backend, name, counted)

    _NAMES = ("all_reduce", "all_gather", "all_gather_into_tensor")

    def _count(self, rounds: int, *tensors: torch.Tensor) -> None:
        size = dist.get_world_size()
        self._bytes += rounds * (size - 1) / size * sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def add(self, sent: float) -> None:
        """Bytes that were sent without DeepSpeed."""
        self._bytes += sent

    def take(self) -> float:
        """Bytes since the last call."""
        taken, self._bytes = self._bytes, 0.0
        return taken

    def close(self) -> None:
        """Count no more."""
        for name in self._NAMES:
            delattr(self._backend, name)
