"""Kernels that add in the same order every time, so that a run which goes on is to the bit the one that was not interrupted."""

import os

import torch


def repeat_exactly() -> None:
    """On a GPU, before its first kernel; on CPU the kernels in use are such anyway. Not run on a GPU.

    The backward passes of torch's and flash-attn's fused attention add with atomic operations unless they are told not to: torch's by
    `use_deterministic_algorithms` (without warn_only), flash-attn's by the variable that transformers hands on. torch then asks for the
    variable of cuBLAS, too. An operation that has no such kernel ends the run with its name.
    """
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
