"""GPU or CPU, and kernels that add in the same order every time. Imported before DeepSpeed, which reads DS_ACCELERATOR then."""

import glob
import os
import socket

import torch

from data_tools.errors import UserError

_asked = "DS_ACCELERATOR" in os.environ or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def is_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def gpu_devices() -> list[str]:
    """Device files of NVIDIA GPUs, whether torch can use them or not."""
    return sorted(glob.glob("/dev/nvidia[0-9]*"))


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware; elsewhere it is emulated, and slower than fp32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def refuse_unseen_gpus() -> None:
    """Raise UserError on a host with GPUs that torch does not see, for it would train on the CPU, unless someone asked for that; and where
    this rank has no GPU of its own."""
    rank, seen = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if is_gpu() and rank >= seen:
        raise UserError(f"{socket.gethostname()}: rank {rank} of this host has no GPU, torch sees {seen}; lower its slots in the hostfile")
    if not _asked and not torch.cuda.is_available() and (devices := gpu_devices()):
        raise UserError(
            f"torch {torch.__version__} sees no GPU, but this host has {devices[0]}: install torch's CUDA build, or a newer driver; "
            "or export DS_ACCELERATOR=cpu to compute on the CPU"
        )


def let_us_speak() -> None:
    """So that a lost rank ends a collective with an exception, which says who it was, and not with torch's watchdog aborting the process
    (ProcessGroupNCCL.hpp: 2 is CleanUpOnly). On a GPU, before NCCL's first communicator. Not run on a GPU."""
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    os.environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")


def repeat_exactly() -> None:
    """So that a run which goes on is to the bit the one that was not interrupted: on a GPU, before NCCL's first communicator and the first
    kernel; on CPU the kernels in use are such anyway. Not run on a GPU.

    The backward passes of torch's and flash-attn's fused attention add with atomic operations unless they are told not to: torch's by
    `use_deterministic_algorithms` (without warn_only), flash-attn's by the variable that transformers hands on. torch then asks for the
    variable of cuBLAS, too. Sums that NVLink's switches compute (NVLS) differ from call to call (NVIDIA/nccl issue 1497); in deterministic
    mode torch excludes NVLS, but not NVLSTree. An operation that has no such kernel ends the run with its name.
    """
    if not is_gpu():
        return
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
