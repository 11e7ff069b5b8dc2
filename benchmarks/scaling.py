"""How long a step takes on several hosts, over slower and faster networks.

    python -m benchmarks.scaling                # prints the prediction of docs/scaling.md for the paper's recipe
    python -m benchmarks.scaling --check        # compares it with a measurement; needs root

Predicted: seconds a step, and the share of them that is computing. --check measures the seconds of a step on two hosts of tests/cluster,
which are joined by cables of a limited rate, and the bytes that a rank sends. It prints them beside the prediction and writes
benchmarks/results/scaling.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from transformers import RobertaConfig

from tests import tiny
from tests.cluster.lab import Lab, missing
from tests.cluster.tiny_run import arguments, launch, make_inputs
from trainer.ds_config import DeepSpeedConfig
from trainer.metrics_log import read_rows
from trainer.plan import Plan
from trainer.recipe import load_recipe

NETWORKS = {"1 Gb/s": 1e9, "10 Gb/s": 1e10, "100 Gb/s": 1e11, "InfiniBand NDR, 400 Gb/s": 4e11}
PEAK, MFU = 312e12, 0.4  # an A100's data sheet in bf16; the share that the dry run assumes
RATES = {"25mbit": 25e6, "100mbit": 100e6, "400mbit": 400e6}
SHAPE = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512}


def bytes_per_step(trainable: int, ranks: int, element: int, once: bool) -> float:
    """What a rank sends: fp32 gradients are reduced and scattered, updated parameters gathered, each one round of a ring. Not once: by
    DeepSpeed, whose ZeRO-2 reduces by an all-reduce, two rounds."""
    return ((4 if once else 8) + element) * (ranks - 1) / ranks * trainable


def step_seconds(compute: float, sent: float, bits_per_second: float, hosts: int) -> float:
    """compute: seconds of a rank; sent: bytes of a rank. A ring crosses each host's cable once each way, whatever the number of its ranks;
    nothing overlaps; latency is left out."""
    return compute + (sent * 8 / bits_per_second if hosts > 1 else 0.0)


def paper() -> tuple[int, int, dict[str, tuple[int, float]]]:
    """Blocks and tokens of a step of recipes/paper.yaml; of each stage what trains and FLOPs per token."""
    recipe = load_recipe(Path("recipes/paper.yaml"), [])
    config = RobertaConfig(vocab_size=32000, num_hidden_layers=14, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)
    plan = Plan.of_config(recipe, config)
    stages = {stage.name: (plan.num_trainable(number), plan.flops_per_token(number)) for number, stage in enumerate(recipe.stages)}
    return recipe.global_batch_size, recipe.global_batch_size * recipe.sequence_length, stages


def predict() -> None:
    """Print the step times of the paper's model on hosts of GPUs."""
    blocks, tokens, stages = paper()
    config = DeepSpeedConfig.load(Path("ds_configs/zero2_bf16.json"))
    for stage, (elements, flops) in stages.items():
        print(f"{stage}: {elements:,} parameters train, {flops / 1e9:.3f} GFLOP a token, {tokens:,} tokens a step")
    print(f"{'stage':<8}{'hosts x GPUs':>13}" + "".join(f"{name:>28}" for name in NETWORKS))
    for stage, (elements, flops) in stages.items():
        for hosts, gpus in ((1, 8), (2, 4), (2, 8), (4, 8), (8, 8)):
            ranks = hosts * gpus
            compute = tokens * flops / (ranks * PEAK * MFU)
            accumulation = max(1, blocks // (ranks * config.micro_batch))  # of more GPUs each takes a smaller micro-batch
            once = config.sums_gradients(torch.device("cuda"), accumulation)
            sent = bytes_per_step(elements, ranks, 2, once)
            line = f"{stage:<8}{f'{hosts} x {gpus}':>13}"
            for rate in NETWORKS.values():
                seconds = step_seconds(compute, sent, rate, hosts)
                line += f"{f'{seconds:.3f} s, {compute / seconds:4.0%} computing':>28}"
            print(line)


def check() -> None:
    """Time steps over cables of known rates and print them beside what the model predicts; writes benchmarks/results/scaling.json."""
    lacking = missing()
    if lacking:
        sys.exit(f"error: a lab needs {lacking}")
    tiny.SHAPE.update(SHAPE)
    root = Path(tempfile.mkdtemp(prefix="scaling-"))
    make_inputs(root, 1, 16)
    results = {}
    with Lab(2) as lab:
        for name in ("unshaped", *RATES):
            for host in lab.hosts if name in RATES else ():
                host.shape(name)
            change = ["stages.0.warmup_steps=0", "every.checkpoint=0", "every.evaluate=0"]
            log = root / f"{name}.log"
            process = launch(lab.hosts[0], lab.hostfile(), arguments(root, root / name, "--set", *change), log)
            if process.wait(500):
                sys.exit(log.read_text())
            rows = [row for row in read_rows(root / name / "metrics.jsonl") if row["stage"] == "two" and row.get("loss") is not None][3:]
            results[name] = {
                "seconds": statistics.median(24 * 16 / row["tokens_per_second"] for row in rows), "bytes": rows[-1]["bytes_sent_per_step"]
            }  # fmt: skip
    free = results["unshaped"]
    print(f"{'cable':<10}{'bytes/step':>12}{'measured s':>12}{'predicted s':>13}")
    for name, result in results.items():
        result["predicted"] = step_seconds(free["seconds"], result["bytes"], RATES[name], 2) if name in RATES else free["seconds"]
        print(f"{name:<10}{result['bytes']:>12,.0f}{result['seconds']:>12.3f}{result['predicted']:>13.3f}", flush=True)
    Path("benchmarks/results/scaling.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check() if parser.parse_args().check else predict()
