"""One side of benchmarks/speed.py, which starts it under torchrun: trains some steps of 4,096 tokens.

Measured: seconds and CPU seconds of each step after two that are not counted, and tokens per second of the median. Rank 0 prints one JSON
line.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from transformers import AutoTokenizer, PretrainedConfig, RobertaConfig, RobertaForMaskedLM

from data_tools.corpus import Corpus
from trainer.memory import keep_freed_memory
from trainer.ranks import run_on_ranks

TOKENS_PER_STEP, WARM_UP = 4096, 2
SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 14, "num_attention_heads": 12, "intermediate_size": 3072},
}
STAGES = {"adapt": ("embeddings", "itl", "head"), "all": ("all",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("ours", "theirs"), required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="theirs")
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help="theirs")
    arguments = parser.parse_args()
    shape = dict(SHAPES[arguments.shape])
    if arguments.layers:
        shape["num_hidden_layers"] = arguments.layers
    config = RobertaConfig(
        **shape, vocab_size=arguments.vocab or Corpus.open(arguments.corpus).vocab_size, max_position_embeddings=514, pad_token_id=1,
        type_vocab_size=1,
    )  # fmt: skip
    side = ours if arguments.side == "ours" else theirs
    seconds, cpu_seconds, more = side(config, arguments)
    if os.environ.get("RANK", "0") == "0":
        middle = statistics.median(seconds)
        cpu = statistics.median(cpu_seconds) * int(os.environ["WORLD_SIZE"])  # rank 0's, and the others do the same work
        rates = {"tokens_per_second": TOKENS_PER_STEP / middle, "tokens_per_cpu_second": TOKENS_PER_STEP / cpu}
        print(json.dumps({**rates, "seconds": seconds, "cpu_seconds": cpu_seconds, **more}), flush=True)


def ours(config: PretrainedConfig, arguments: argparse.Namespace) -> tuple[list[float], list[float], dict[str, float]]:
    """The steps of trainer/xpt.py: its packing, masking, engine and optimizer."""
    from benchmarks.random_run import random_run, with_micro_batch
    from trainer.blocks import ContiguousBlocks, SpecialIds, samples_of
    from trainer.ds_config import DeepSpeedConfig
    from trainer.engine import start
    from trainer.flops import Shape, peak_flops, stage_flops_per_token
    from trainer.masking import dropout_seed
    from trainer.ranks import Ranks
    from trainer.recipe import Masking, Stage
    from trainer.stages import trainable

    keep_freed_memory()
    start()
    ranks = Ranks.current()
    blocks = TOKENS_PER_STEP // arguments.length
    ds_config = DeepSpeedConfig.load(Path("ds_configs/zero2_cpu.json"))
    micro = min(ds_config.micro_batch, blocks // ranks.world_size)
    stage = Stage(name="s", train=STAGES[arguments.stage], steps=10**6, learning_rate=1e-4)
    with random_run(config, (stage,), blocks, arguments.length, ranks) as run:
        engine = run.engine(stage, with_micro_batch(ds_config, micro), 0.1, ranks.device)
    corpus = Corpus.open(arguments.corpus)
    special = replace(SpecialIds.of(AutoTokenizer.from_pretrained(corpus.tokenizer_dir)), vocab_size=config.vocab_size)
    text = ContiguousBlocks(corpus.split("train"), arguments.length, special, Masking(), 0)
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    reading = 0.0
    for step in range(WARM_UP + arguments.steps):
        begin, cpu = time.perf_counter(), time.process_time()
        samples = samples_of(step, blocks, micro, engine.accumulation, ranks.rank, ranks.world_size)
        batches = [text.training(numbers) for numbers in samples]
        if arguments.vocab:  # smaller than the corpus's: its ids are folded
            batches = [
                replace(batch, input_ids=batch.input_ids % arguments.vocab, labels=batch.labels % arguments.vocab) for batch in batches
            ]
        reading += (time.perf_counter() - begin) * (step >= WARM_UP)
        num_selected = ranks.sum(sum(len(batch.labels) for batch in batches))[0]
        engine.set_learning_rate(1e-4)
        for number, batch in enumerate(batches):
            torch.manual_seed(dropout_seed(0, step, number * ranks.world_size + ranks.rank))
            engine.backward(batch, num_selected)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu)
    counted, tokens = seconds[WARM_UP:], micro * arguments.length
    shape = Shape.of(config.to_dict(), arguments.length, 0.15)
    flops = stage_flops_per_token(shape, run.parts, trainable(stage, run.parts), config.num_hidden_layers, "both", True)
    peak = sum(ranks.sum(peak_flops(ranks.device, torch.bfloat16, tokens, config.hidden_size, config.intermediate_size)))
    more = {"model_flops_per_token": flops, "peak_flops": peak, "mfu": flops * TOKENS_PER_STEP / statistics.median(counted) / peak,
            "reading_share": reading / sum(counted)}  # fmt: skip
    return counted, cpu_seconds[WARM_UP:], more


def theirs(config: PretrainedConfig, arguments: argparse.Namespace) -> tuple[list[float], list[float], dict[str, float]]:
    """Trainer and DataCollatorForLanguageModeling as the documentation has them; see benchmarks/README.md."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    corpus = Corpus.open(arguments.corpus)
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    tokens = np.asarray(corpus.split("train").tokens[: 4000 * arguments.length]).astype(np.int64)
    blocks = [
        {"input_ids": row.tolist()} for row in tokens[: len(tokens) // arguments.length * arguments.length].reshape(-1, arguments.length)
    ]
    if arguments.keep_memory:
        keep_freed_memory()
    config._attn_implementation = arguments.attention
    model = RobertaForMaskedLM(config)
    if arguments.freeze:
        for name, parameter in model.named_parameters():
            inner = any(f"layer.{number}." in name for number in range(1, config.num_hidden_layers - 1))
            parameter.requires_grad_(not inner)
    world = int(os.environ["WORLD_SIZE"])
    seconds: list[float] = []
    cpu_seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begin)
            cpu_seconds.append(time.process_time() - self.cpu)

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=TOKENS_PER_STEP // arguments.length // world,
            max_steps=WARM_UP + arguments.steps,
            learning_rate=1e-4, weight_decay=0.01, bf16=True, use_cpu=True, torch_compile=arguments.compile, report_to=[],
            save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15)
        Trainer(model=model, args=settings, train_dataset=blocks, data_collator=collator, callbacks=[Clock()]).train()
    return seconds[WARM_UP:], cpu_seconds[WARM_UP:], {}


if __name__ == "__main__":
    run_on_ranks(main)  # out without the interpreter's end, where gloo's threads can abort a rank whose figures are printed
