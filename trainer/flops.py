"""Floating-point operations of a training step, counted only where they are needed, and the machine's peak.

Per token, forward (a multiply-add is 2): a layer 2 (4 H^2 + 2 H I) in matrices and 4 L H in attention (all L keys); of the last layer
keys and values, 4 H^2, and the rest on the masked share of tokens, as the head, 2 (H^2 + H V). Backward: the same again for the
gradient of the activations wherever something below or in the layer trains, and once more for the weights' gradients of what trains.
Attention has no weights: twice its forward. Embedding look-ups count nothing. MFU = these / (seconds x peak).
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from trainer.recipe import num_itl
from trainer.stages import Parts

# Dense bf16 tensor-core peaks from the makers' data sheets, FLOP/s.
GPU_PEAKS = {"H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "A10": 125e12,
             "A10G": 70e12, "A40": 150e12, "A6000": 155e12, "L4": 121e12, "L40": 181e12, "L40S": 362e12, "V100": 125e12, "T4": 65e12,
             "4090": 165e12, "3090": 71e12, "B200": 2250e12}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the count depends on."""

    hidden: int
    intermediate: int
    vocab: int
    length: int
    masking_rate: float

    @classmethod
    def of(cls, config: dict[str, Any], length: int, masking_rate: float) -> "Shape":
        return cls(config["hidden_size"], config["intermediate_size"], config["vocab_size"], length, masking_rate)


def flops_per_token(shape: Shape, layers_train: list[bool], embeddings_train: bool, head_trains: bool, output_trains: bool) -> float:
    """Operations per token of one forward and backward pass.

    layers_train: bottom to top. output_trains: the output matrix (the word embeddings when tied).
    """
    h = shape.hidden
    matrices, attention = 2.0 * (4 * h * h + 2 * h * shape.intermediate), 4.0 * shape.length * h
    total, needs_gradient = 0.0, embeddings_train
    for number, trains in enumerate(layers_train):
        needs_gradient = needs_gradient or trains
        if number == len(layers_train) - 1:
            keys_and_values = 2 * 2 * h * h
            matrices = keys_and_values + shape.masking_rate * (matrices - keys_and_values)
            attention *= shape.masking_rate
        total += matrices * (1 + needs_gradient + trains) + attention * (1 + 2 * needs_gradient)
    dense, output = 2 * h * h, 2 * h * shape.vocab
    needs_gradient = needs_gradient or head_trains
    total += shape.masking_rate * (dense * (1 + needs_gradient + head_trains) + output * (1 + needs_gradient + output_trains))
    return total


def stage_flops_per_token(shape: Shape, parts: Parts, train: set[str], num_layers: int, itl: str, tied: bool) -> float:
    """`flops_per_token` for the parameters that a stage trains."""
    adapts = bool(train & set(parts.itl))
    layers = [adapts] * num_itl(itl)[0] + [bool(train & set(layer)) for layer in parts.layers]
    layers += [adapts] * (num_layers - len(layers))
    embeddings, head = bool(train & set(parts.embeddings)), bool(train & set(parts.head))
    return flops_per_token(shape, layers, embeddings, head, embeddings if tied else head)


def peak_flops(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, intermediate: int) -> float:
    """FLOP/s that one rank can reach: the data sheet's figure on a known GPU in 16 bits, else the best of a short measured
    (tokens, hidden) x (hidden, intermediate) multiplication with the rank's own threads."""
    if device.type == "cuda" and dtype != torch.float32:
        name = f" {torch.cuda.get_device_name(device).replace('-', ' ')} "  # NVIDIA A100-SXM4-80GB
        known = [words for words in GPU_PEAKS if f" {words} " in name]
        if known:
            return GPU_PEAKS[max(known, key=len)]
    a, b = torch.randn(tokens, hidden, device=device).to(dtype), torch.randn(intermediate, hidden, device=device).to(dtype)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * tokens * hidden * intermediate / best
