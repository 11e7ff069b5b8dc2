"""What a stage change costs: save, close, build the next engine. RoBERTa-base with a vocabulary of 32,000 and two adaptation layers.

    OMP_NUM_THREADS=1 deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 --module benchmarks.stage_change
Prints a JSON line for each change; the first ones pay for memory that the process never touched before. Writes 4 GB below runs/ and
removes them.
"""

import json
import os
import shutil
import time
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from transformers import RobertaConfig, RobertaForMaskedLM

from benchmarks.command import paths
from trainer import engine as engines
from trainer.architecture import architecture_of
from trainer.blocks import MaskedBatch
from trainer.checkpoint import Checkpoint
from trainer.memory import keep_freed_memory
from trainer.ranks import Ranks, run_on_ranks, set_environment
from trainer.recipe import Optimizer, Recipe, Stage
from trainer.stages import split_parts, trainable
from trainer.state import Saver, TrainState, save_seed

RUN = Path("runs/stage_change")
STAGES = [("embeddings", "itl", "head"), ("all",)] * 5


def main() -> None:
    paths(__doc__)
    keep_freed_memory()
    set_environment()
    engines.start()
    ranks, config = Ranks.current(), engines.DeepSpeedConfig.load(Path("ds_configs/zero2_cpu.json"))
    stages = tuple(Stage(name=f"s{i}", train=train, steps=1, learning_rate=1e-4) for i, train in enumerate(STAGES))
    rows = config.micro_batch * ranks.world_size
    recipe = Recipe(
        name="s", seed_model="-", corpus="-", output_dir=RUN, global_batch_size=rows, sequence_length=8, stages=stages, keep_last=1
    )
    if ranks.is_main:
        shutil.rmtree(RUN, ignore_errors=True)
        shape = {"vocab_size": 32000, "num_hidden_layers": 14, "max_position_embeddings": 514, "pad_token_id": 1}
        save_seed(RUN, recipe, {"corpus_fingerprint": "", "tokenizer_sha256": ""}, RobertaForMaskedLM(RobertaConfig(**shape)), {}, {})
    ranks.barrier()
    checkpoint = Checkpoint.open(RUN / "checkpoints" / "step-0", verify=False)
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 14, "both")
    millions = sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values()) / 1e6
    saver = Saver(RUN, recipe, ranks, checkpoint, print)
    state, tokens = TrainState.of(checkpoint), torch.arange(config.micro_batch * 8).reshape(-1, 8)
    timed: dict[str, float] = {}
    for stage in stages:
        begin = time.perf_counter()
        engine = engines.StageEngine(saver.last, trainable(stage, parts), config, Optimizer(), 0.0, rows, ranks.device)
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
    if ranks.is_main:
        shutil.rmtree(RUN)


if __name__ == "__main__":
    run_on_ranks(main)
