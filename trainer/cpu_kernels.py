"""What trainer/cpp/ computes, over tensors: contiguous, on CPU, float32 or bfloat16, all of one type.

The library is built when the package is installed (setup.py). Where there was no compiler, where sources changed since, or on a processor
that lacks what it was built for, `available` says no, and trainer/mlm.py computes with transformers' own forward pass instead.
"""

import ctypes
import hashlib
from functools import cache
from pathlib import Path

import torch

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_KEY, _WORD, _FLOAT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_float
_SIGNATURES = {
    "xpt_norm_forward": [
        _INT, _LONG, _LONG, *[_POINTER] * 5, _FLOAT, _KEY, _WORD, _WORD, _POINTER, _POINTER, _INT,
    ],
    "xpt_norm_backward": [
        _INT, _LONG, _LONG, *[_POINTER] * 5, _KEY, _WORD, _WORD, *[_POINTER] * 4, _INT,
    ],
    "xpt_gelu_forward": [_INT, _LONG, _LONG, *[_POINTER] * 3, _INT],
    "xpt_gelu_backward": [_INT, _LONG, _LONG, *[_POINTER] * 5, _INT],
    "xpt_cross_entropy": [_INT, _LONG, _LONG, *[_POINTER] * 4, _INT, _POINTER, _INT],
    "xpt_column_sums": [_INT, _LONG, _LONG, _POINTER, _POINTER, _INT],
    "xpt_attention": [
        _INT, *[_LONG] * 4, _POINTER, _POINTER, _KEY, _WORD, *[_POINTER] * 4, _INT,
    ],
    "xpt_transpose": [_LONG, _LONG, _POINTER, _POINTER, _LONG, _INT],
}  # fmt: skip


@cache
def _library() -> ctypes.CDLL | None:
    for path in Path(__file__).parent.glob("cpu_library*.so"):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # no OpenMP or C++ runtime here, or another architecture
            continue
        if _is_of_these_sources(library) and library.xpt_runs_here():
            for name, arguments in _SIGNATURES.items():
                getattr(library, name).argtypes, getattr(library, name).restype = arguments, None
            return library
    return None


def _is_of_these_sources(library: ctypes.CDLL) -> bool:
    """An older library would be called with other arguments than it takes."""
    if not hasattr(library, "xpt_sources"):
        return False
    library.xpt_sources.restype = ctypes.c_char_p
    folder = Path(__file__).parent / "cpp"
    sources = sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])  # as setup.py has them
    return library.xpt_sources().decode() == hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def available() -> bool:
    """Whether the library was built from these sources and runs on this processor."""
    return _library() is not None


def threshold(rate: float) -> int:
    """A dropout rate as the kernels take it: an element is kept when 16 random bits are below this. The rate is rounded to 2^-16, and what
    is kept is divided by the rounded probability, so that expectations are exact. 65536: no dropout."""
    return 65536 - round(rate * 65536)


def _call(name: str, *arguments: object) -> None:
    assert all(argument.device.type == "cpu" for argument in arguments if isinstance(argument, torch.Tensor)), name
    values = (argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments)
    getattr(_library(), name)(*values, torch.get_num_threads())


def norm_forward(
    y: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float,
    key: int, before: int = 65536, after: int = 65536,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """z = residual + dropout(y + bias) replaces y (M, H); returns dropout(LayerNorm(z)) and float32 statistics (M, 2).

    before, after: thresholds of the two dropouts, of which at most one may be on."""
    out, statistics = torch.empty_like(y), torch.empty(len(y), 2)
    half = y.dtype == torch.bfloat16
    _call("xpt_norm_forward", half, *y.shape, y, bias, residual, gamma, beta, epsilon, key, before, after, out, statistics)
    return out, statistics


def norm_backward(
    d_out: torch.Tensor, d_out2: torch.Tensor | None, z: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor,
    statistics: torch.Tensor, parameters: bool, key: int, before: int = 65536, after: int = 65536,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Gradients of z and of y, and float32 (3, H) of gamma, beta and bias if `parameters`; d_out2 is added to d_out."""
    d_z = torch.empty_like(z)
    d_y = torch.empty_like(z) if before < 65536 else d_z
    sums = torch.zeros(3, z.shape[1]) if parameters else None
    half, apart = z.dtype == torch.bfloat16, None if d_y is d_z else d_y
    _call("xpt_norm_backward", half, *z.shape, d_out, d_out2, z, bias, gamma, key, before, after, statistics, d_z, apart, sums)
    return d_z, d_y, sums


def gelu_forward(x: torch.Tensor, bias: torch.Tensor, keep: bool = True) -> torch.Tensor:
    """gelu(x + bias), with the exact normal distribution; in the place of x unless `keep`. x: (M, I)."""
    out = torch.empty_like(x) if keep else x
    _call("xpt_gelu_forward", x.dtype == torch.bfloat16, *x.shape, x, bias, out)
    return out


def gelu_backward(
    d_out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, again: bool, parameters: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradient of x replaces d_out; returns gelu(x + bias) once more if `again`, and bias's gradient, float32, if `parameters`."""
    out, sums = torch.empty_like(x) if again else None, torch.empty(x.shape[1]) if parameters else None
    _call("xpt_gelu_backward", x.dtype == torch.bfloat16, *x.shape, d_out, x, bias, out, sums)
    return out, sums


def cross_entropy(
    logits: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor, gradient: bool, parameters: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float32 losses (M,) of logits + bias (M, V). If `gradient`, that of their sum replaces the logits; bias's (V,), if `parameters`."""
    losses, sums = torch.empty(len(logits)), torch.empty(logits.shape[1]) if parameters else None
    _call("xpt_cross_entropy", logits.dtype == torch.bfloat16, *logits.shape, logits, bias, labels, losses, gradient, sums)
    return losses, sums


def column_sums(x: torch.Tensor) -> torch.Tensor:
    """float32 (N,) of x (M, N)."""
    sums = torch.empty(x.shape[1])
    _call("xpt_column_sums", x.dtype == torch.bfloat16, *x.shape, x, sums)
    return sums


def attention_forward(
    qkv: torch.Tensor, segments: torch.Tensor | None, shape: tuple[int, int, int], key: int, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv: (B*L, 3*H); segments: (B, L) or None; shape: (B, L, heads). Returns (B*L, H) and float32 (B*heads, L) for the backward pass."""
    batch, length, heads = shape
    hidden = qkv.shape[1] // 3
    out, logsums = torch.empty(len(qkv), hidden, dtype=qkv.dtype), torch.empty(batch * heads, length)
    half = qkv.dtype == torch.bfloat16
    _call("xpt_attention", half, *shape, hidden // heads, qkv, segments, key, kept, out, logsums, None, None)
    return out, logsums


def attention_backward(
    d_out: torch.Tensor, qkv: torch.Tensor, segments: torch.Tensor | None, shape: tuple[int, int, int], key: int, kept: int,
    out: torch.Tensor, logsums: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Gradient of qkv."""
    d_qkv = torch.empty_like(qkv)
    half, width = qkv.dtype == torch.bfloat16, out.shape[1] // shape[2]
    _call("xpt_attention", half, *shape, width, qkv, segments, key, kept, out, logsums, d_out, d_qkv)
    return d_qkv


def weight_gradient(d_out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """d_out' x: (M, N), (M, K) -> (N, K).

    oneDNN multiplies bfloat16 with a transposed left side at half its speed; a transposition of our own first costs a tenth of that.
    Rows of the transpose are not a power of two apart: such rows would share a few cache lines.
    """
    if d_out.dtype != torch.bfloat16:
        return d_out.t() @ x
    rows, columns = d_out.shape
    stride = (rows + 31) // 32 * 32 + 32
    turned = torch.empty(columns, stride, dtype=d_out.dtype)[:, :rows]
    _call("xpt_transpose", rows, columns, d_out, turned, stride)
    return turned @ x
