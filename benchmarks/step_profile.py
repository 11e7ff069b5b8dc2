"""Where the time of the forward and backward pass of one micro-batch goes, without the engine.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.step_profile --stage all [--transformers]

Measured: milliseconds of CPU time, the median of ten; TFLOP/s, and their share of the rate of matrix multiplications; below it torch's
profile by operation. 16 x 128 tokens at the MiniLM shape, bf16, dropout 0.1, one thread. --transformers: with transformers' own forward
pass, as on a machine where the kernels were not built.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import RobertaConfig

from benchmarks.speed_sides import SHAPES, STAGES
from trainer import cpu_kernels
from trainer.architecture import architecture_of
from trainer.blocks import MaskedBatch
from trainer.flops import Shape, peak_flops, stage_flops_per_token
from trainer.memory import keep_freed_memory
from trainer.mlm import MaskedLanguageModel, build_model
from trainer.recipe import Stage
from trainer.stages import split_parts, trainable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--transformers", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.transformers:
        cpu_kernels.available = lambda: False  # type: ignore[assignment]
    cpu = torch.device("cpu")
    config = RobertaConfig(**SHAPES["minilm"], vocab_size=32000, max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
    model = build_model(config.to_dict(), 0.1, cpu, torch.bfloat16)
    parameters = dict(model.named_parameters())
    parts = split_parts(parameters, architecture_of(config), config.num_hidden_layers, "both")
    train = trainable(Stage(name="s", train=STAGES[arguments.stage], steps=1, learning_rate=1), parts)
    for name, parameter in parameters.items():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.requires_grad_(name in train)
    wrapped = MaskedLanguageModel(model).train()
    tokens = torch.randint(5, 32000, (16, 128))
    selected = torch.sort(torch.randperm(2048)[:307])[0]
    batch = MaskedBatch(tokens, selected, tokens.flatten()[selected])

    def step() -> float:
        model.zero_grad(set_to_none=True)
        begin = time.process_time()
        wrapped.loss(batch, cpu).backward()
        return time.process_time() - begin

    for _ in range(3):
        step()
    seconds = statistics.median(step() for _ in range(10))
    shape = Shape.of(config.to_dict(), 128, 0.15)
    flops = 2048 * stage_flops_per_token(shape, parts, train, config.num_hidden_layers, "both", True)
    peak = peak_flops(cpu, torch.bfloat16, 2048, config.hidden_size, config.intermediate_size)
    print(f"{1000 * seconds:.0f} ms of CPU time, {flops / seconds / 1e12:.2f} TFLOP/s: {flops / seconds / peak:.0%} of {peak / 1e12:.2f}")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
