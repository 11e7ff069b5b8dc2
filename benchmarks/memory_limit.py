"""Peak memory of a training step at the RoBERTa-base shape, beside what the formula predicts, and which sizes fit into 10 GB.

    python -m benchmarks.memory_limit

Measured: the peak resident memory in GB of a process that makes two steps, one rank, bf16, everything trained, 12 + 2 layers x 768 and
32,000 pieces; each size in a process of its own. The formula: the model's state (trainer/plan.py), what trainer/forward.py keeps of each
token (12 hidden widths a layer), and the logits of the 15 % that are masked. Prints a table and writes
benchmarks/results/memory_limit.json, in bytes.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.command import paths

LIMIT = 10e9
HIDDEN, LAYERS, VOCABULARY = 768, 14, 32000
SIZES = [(8, 512), (32, 512), (48, 512), (56, 512), (40, 512), (8, 2048), (2, 8192)]
RECORD = Path("benchmarks/results/memory_limit.json")


def inside(blocks: int, length: int) -> None:
    """One step; prints the peak."""
    import torch
    from transformers import RobertaConfig

    os.environ["DS_ACCELERATOR"] = "cpu"
    from benchmarks.random_run import random_run, with_micro_batch
    from trainer.blocks import MaskedBatch
    from trainer.ds_config import DeepSpeedConfig
    from trainer.engine import start
    from trainer.plan import memory_per_rank
    from trainer.ranks import Ranks, set_environment
    from trainer.recipe import Stage

    set_environment()
    start()
    ranks = Ranks.current()
    config = RobertaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=LAYERS, max_position_embeddings=length + 2, pad_token_id=1, type_vocab_size=1
    )
    ds_config = with_micro_batch(DeepSpeedConfig.load(Path("ds_configs/zero2_cpu.json")), blocks)
    stage = Stage(name="s", train=("all",), steps=9, learning_rate=1e-4)
    with random_run(config, (stage,), blocks, length, ranks) as run:
        engine = run.engine(stage, ds_config, 0.1, ranks.device)
    tokens = blocks * length
    selected = torch.arange(0, tokens, 7)
    for _ in range(2):
        batch = MaskedBatch(torch.randint(5, VOCABULARY, (blocks, length)), selected, torch.randint(5, VOCABULARY, selected.shape))
        engine.backward(batch, len(selected))
    elements = sum(torch.Size(shape).numel() for shape in run.first.shapes.values())
    state = memory_per_rank(elements, 0, 1, torch.bfloat16, True, torch.device("cpu"))
    activations = 2 * (12 * HIDDEN * LAYERS * tokens + VOCABULARY * len(selected))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("peak " + json.dumps({"blocks": blocks, "length": length, "peak": peak, "state": state, "activations": activations}), flush=True)
    os._exit(0)


def main() -> None:
    rows = []
    print("| blocks x length | state, formula | activations, formula | peak of the process | in 10 GB |\n|---|---|---|---|---|")
    for size in SIZES:
        words = [sys.executable, "-m", "benchmarks.memory_limit", *map(str, size)]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
        line = next((line for line in done.stdout.splitlines() if line.startswith("peak ")), None)
        if line is None:
            sys.exit(done.stderr)
        row = json.loads(line.removeprefix("peak "))
        rows.append(row)
        RECORD.write_text(json.dumps(rows) + "\n")
        figures = " | ".join(f"{row[key] / 1e9:.2f} GB" for key in ("state", "activations", "peak"))
        print(f"| {size[0]} x {size[1]} | {figures} | {'yes' if row['peak'] <= LIMIT else 'no'} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:  # as `main` calls it
        inside(int(sys.argv[1]), int(sys.argv[2]))
    paths(__doc__)
    main()
