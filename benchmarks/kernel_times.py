"""How long each CPU kernel takes, and a weight gradient beside oneDNN's.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.kernel_times

Measured: milliseconds of one call in bf16, on one thread, for 2,048 tokens at the MiniLM shape; the shortest of the calls made within half
a second. Prints a table; below it the rate of two matrix multiplications in TFLOP/s and that of a copy in GB/s, to compare with.
"""

import time
from collections.abc import Callable

import torch

from trainer import cpu_kernels as kernels
from trainer.memory import keep_freed_memory

TOKENS, HIDDEN, INNER, VOCAB, SELECTED = 2048, 384, 1536, 32000, 307
HEADS = (16, 128, 12)


def best(work: Callable[[], object]) -> float:
    """Milliseconds."""
    found, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - start)
    return 1000 * found


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    kept = kernels.threshold(0.1)
    y, other, vector, inner, bias = half(TOKENS, HIDDEN), half(TOKENS, HIDDEN), half(HIDDEN), half(TOKENS, INNER), half(INNER)
    qkv, logits, output_bias = half(TOKENS, 3 * HIDDEN), half(SELECTED, VOCAB), half(VOCAB)
    labels = torch.randint(VOCAB, (SELECTED,))
    _, statistics = kernels.norm_forward(y, vector, other, vector, vector, 1e-5, 1, kept)
    mixed, logsums = kernels.attention_forward(qkv, None, HEADS, 1, kept)
    rows: dict[str, Callable[[], object]] = {
        "residual, dropout and LayerNorm": lambda: kernels.norm_forward(y, vector, other, vector, vector, 1e-5, 1, kept),
        "its backward pass": lambda: kernels.norm_backward(other, other, y, vector, vector, statistics, True, 1, kept),
        "bias and GELU": lambda: kernels.gelu_forward(inner, bias),
        "its backward pass ": lambda: kernels.gelu_backward(inner, inner, bias, True, True),
        "attention": lambda: kernels.attention_forward(qkv, None, HEADS, 1, kept),
        "its backward pass  ": lambda: kernels.attention_backward(other, qkv, None, HEADS, 1, kept, mixed, logsums),
        "cross-entropy and its gradient": lambda: kernels.cross_entropy(logits, output_bias, labels, True, True),
        f"weight gradient {HIDDEN} x {INNER}": lambda: kernels.weight_gradient(y, inner),
        "the same by oneDNN alone": lambda: y.t() @ inner,
        f"weight gradient {INNER} x {HIDDEN}": lambda: kernels.weight_gradient(inner, y),
        "the same by oneDNN alone ": lambda: inner.t() @ y,
    }
    for name, work in rows.items():
        print(f"| {name.strip()} | {best(work):.2f} |", flush=True)
    wide, narrow, large = half(HIDDEN, INNER), half(INNER, HIDDEN), torch.randn(50_000_000)
    target = torch.empty_like(large)
    for name, work in {f"{HIDDEN} x {INNER}": lambda: y @ wide, f"{INNER} x {HIDDEN}": lambda: inner @ narrow}.items():
        print(f"multiplication {TOKENS} x {name}: {2e-9 * TOKENS * HIDDEN * INNER / best(work):.2f} TFLOP/s")
    print(f"copy of 200 MB: {8e-6 * len(large) / best(lambda: target.copy_(large)):.1f} GB/s, read and written")


if __name__ == "__main__":
    main()
