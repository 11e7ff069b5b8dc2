"""Peak memory of a step at RoBERTa-base shape against the formula, and the most that 10 GB hold.   python -m benchmarks.memory_limit

One rank, bf16, stage 2 of 12 + 2 layers x 768 with 32,000 pieces; each size in a process of its own. Writes
benchmarks/results/memory_limit.json. The formula: the model's state (trainer/plan.py), what trainer/forward.py keeps of a token (12 hidden
widths a layer), and the logits of 15 %.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.command import paths

LIMIT = 10e9
HIDDEN, LAYERS, VOCABULARY = 768, 14, 32000
SIZES = [(8, 512), (32, 512), (48, 512), (56, 512), (40, 512), (8, 2048), (2, 8192)]
RECORD = Path("benchmarks/results/memory_limit.json")


def inside(blocks: int, length: int) -> None:
    """One step; prints the peak."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    from trainer import engine as engines
    from trainer.architecture import architecture_of
    from trainer.blocks import MaskedBatch
    from trainer.checkpoint import Checkpoint
    from trainer.plan import memory_per_rank
    from trainer.ranks import set_environment
    from trainer.recipe import Optimizer, Recipe, Stage
    from trainer.stages import split_parts, trainable
    from trainer.state import save_seed

    os.environ["DS_ACCELERATOR"] = "cpu"
    set_environment()
    engines.start()
    config = RobertaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=LAYERS, max_position_embeddings=length + 2, pad_token_id=1, type_vocab_size=1
    )
    stage = Stage(name="s", train=("all",), steps=9, learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            name="s", seed_model="-", corpus="-", output_dir=Path(folder), global_batch_size=blocks, sequence_length=length, stages=(stage,)
        )
        save_seed(Path(folder), recipe, {"corpus_fingerprint": "", "tokenizer_sha256": ""}, RobertaForMaskedLM(config), {}, {})
        checkpoint = Checkpoint.open(Path(folder) / "checkpoints" / "step-0", verify=False)
        parts = split_parts(checkpoint.shapes, architecture_of(config), LAYERS, "both")
        ds_config = engines.DeepSpeedConfig.load(Path("ds_configs/zero2_cpu.json"))
        ds_config = engines.DeepSpeedConfig(ds_config.settings | {"train_micro_batch_size_per_gpu": blocks}, blocks, ds_config.dtype)
        train = trainable(stage, parts)
        engine = engines.StageEngine(checkpoint, train, ds_config, Optimizer(), 0.1, blocks, torch.device("cpu"))
    tokens = blocks * length
    selected = torch.arange(0, tokens, 7)
    for _ in range(2):
        batch = MaskedBatch(torch.randint(5, VOCABULARY, (blocks, length)), selected, torch.randint(5, VOCABULARY, selected.shape))
        engine.backward(batch, len(selected))
    elements = sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values())
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
