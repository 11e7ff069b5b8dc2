"""Floating-point operations of a token, counted by hand, and of a GPU."""

import pytest
import torch

from trainer.flops import Shape, flops_per_token, peak_flops


def test_the_peak_is_that_of_the_very_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in (
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA L40S",
        "NVIDIA L40",
        "NVIDIA A10G",
        "Tesla V100-PCIE-16GB",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
    ):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
        found[name] = peak_flops(torch.device("cuda"), torch.bfloat16, 8, 8, 8) / 1e12
    assert list(found.values()) == [312, 362, 181, 70, 125, 989, 756]


def test_flops_of_a_hand_counted_model() -> None:
    shape = Shape(hidden=10, intermediate=40, vocab=100, length=8, masking_rate=0.25)
    layer, attention, dense, output = 2 * (400 + 800), 4 * 8 * 10, 200 * 0.25, 2000 * 0.25
    last, last_attention = 2 * 200 + 2 * (200 + 800) * 0.25, attention * 0.25  # keys and values of all, the rest of what the head sees
    everything = flops_per_token(shape, [True, True], True, True, True)
    assert everything == pytest.approx(3 * (layer + attention + last + last_attention) + 3 * dense + 3 * output)
    frozen = flops_per_token(shape, [True, False, True], True, True, True)
    assert frozen == pytest.approx(3 * (layer + last) + 2 * layer + 3 * (2 * attention + last_attention) + 3 * dense + 3 * output)
    top_only = flops_per_token(shape, [False, True], False, True, False)  # nothing below trains: no gradient goes there
    assert top_only == pytest.approx(layer + attention + 3 * last + 3 * last_attention + 3 * dense + 2 * output)
