"""What a stage change costs: saving a checkpoint, closing the engine and building the next one.

    OMP_NUM_THREADS=1 deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 --module benchmarks.stage_change

Measured: seconds of each of the three, and of all for 100 million parameters; the model is a RoBERTa-base with 32,000 pieces and two
adaptation layers. Prints a JSON line for each change; the first ones pay for memory that the process has not touched before. Writes 4 GB
below runs/ and removes them.
"""

import json
import os
import time
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from transformers import RobertaConfig

from benchmarks.command import paths
from benchmarks.random_run import RandomRun, random_run
from trainer import engine as engines
from trainer.blocks import MaskedBatch
from trainer.ds_config import DeepSpeedConfig
from trainer.memory import keep_freed_memory
from trainer.ranks import Ranks, run_on_ranks, set_environment
from trainer.recipe import Stage
from trainer.state import Saver, TrainState

RUN = Path("runs/stage_change")
STAGES = [("embeddings", "itl", "head"), ("all",)] * 5
SHAPE = {"vocab_size": 32000, "num_hidden_layers": 14, "max_position_embeddings": 514, "pad_token_id": 1}


def main() -> None:
    paths(__doc__)
    keep_freed_memory()
    set_environment()
    engines.start()
    ranks, config = Ranks.current(), DeepSpeedConfig.load(Path("ds_configs/zero2_cpu.json"))
    stages = tuple(Stage(name=f"s{i}", train=train, steps=1, learning_rate=1e-4) for i, train in enumerate(STAGES))
    with random_run(RobertaConfig(**SHAPE), stages, config.micro_batch * ranks.world_size, 8, ranks, RUN) as run:
        measure(run, config, ranks)


def measure(run: RandomRun, config: DeepSpeedConfig, ranks: Ranks) -> None:
    """A step and a checkpoint of each stage in turn; prints a line where one follows another."""
    millions = sum(torch.Size(shape).numel() for shape in run.first.shapes.values()) / 1e6
    saver = Saver(RUN, run.recipe, ranks, run.first, print)
    state, tokens = TrainState.of(run.first), torch.arange(config.micro_batch * 8).reshape(-1, 8)
    timed: dict[str, float] = {}
    for stage in run.recipe.stages:
        begin = time.perf_counter()
        engine = run.engine(stage, config, 0.0, ranks.device, saver.last)
        ranks.barrier()
        if timed:
            timed["build"] = time.perf_counter() - begin
            total = sum(timed.values())
            row = {"ranks": ranks.world_size, "parameters_millions": round(millions, 1), "to": ",".join(stage.train)}
            row |= {f"{name}_seconds": round(seconds, 2) for name, seconds in timed.items()}
            if ranks.is_main:
                print(json.dumps(row | {"seconds_per_100M": round(100 * total / millions, 2)}), flush=True)
        engine.backward(MaskedBatch(tokens, torch.arange(8), torch.arange(8)), 8 * ranks.world_size)
        state.step += 1
        saver.finish()  # steps of a real run have long given it time
        ranks.barrier()
        begin = time.perf_counter()
        saver.save(state, engine, {}, needed=True)
        ranks.barrier()
        timed["save"] = time.perf_counter() - begin
        begin = time.perf_counter()
        engine.close()
        timed["close"] = time.perf_counter() - begin
    saver.finish()


if __name__ == "__main__":
    run_on_ranks(main)
