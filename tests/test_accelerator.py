"""A host whose GPUs torch does not see, or that has fewer than ranks."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import glob
import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: {seen}, lambda: 1
from trainer import accelerator
glob.glob = lambda pattern: {devices}
accelerator.refuse_unseen_gpus()
"""


@pytest.mark.parametrize(
    ("devices", "seen", "given", "refused"),
    [
        (["/dev/nvidia0"], False, {}, True),
        (["/dev/nvidia0"], False, {"CUDA_VISIBLE_DEVICES": "0,1"}, True),  # as DeepSpeed's launcher gives it to every rank
        (["/dev/nvidia0"], False, {"DS_ACCELERATOR": "cpu"}, False),
        (["/dev/nvidia0"], False, {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["/dev/nvidia0"], True, {}, False),
        (["/dev/nvidia0"], True, {"LOCAL_RANK": "1"}, True),
        ([], False, {}, False),
    ],
)
def test_gpus_that_torch_does_not_see_are_not_passed_over(devices: list[str], seen: bool, given: dict[str, str], refused: bool) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES")}
    words = [sys.executable, "-c", PROGRAM.format(devices=devices, seen=seen)]
    done = subprocess.run(words, env=kept | given, capture_output=True, text=True, check=False)
    said = "rank 1 of this host has no GPU, torch sees 1" if seen else "sees no GPU, but this host has /dev/nvidia0"
    assert (said in done.stderr) == refused == (done.returncode != 0), done.stderr
