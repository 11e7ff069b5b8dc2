"""What a run will do, before it does it: parameters, memory, tokens, epochs, time."""

import torch

from trainer.recipe import Recipe
from trainer.stages import Parts, trainable

ASSUMED_MFU = 0.4  # of the measured matrix-multiplication peak; only the time estimate uses it


def memory_per_rank(num_trainable: int, num_frozen: int, world_size: int, dtype: torch.dtype, accumulation: int) -> float:
    """Bytes of model state on one rank under ZeRO-2: weights in the compute precision; for what trains fp32 master and two Adam
    moments, divided by the ranks, and at the end of the backward pass an fp32 gradient, divided likewise. In fp32 with several
    micro-batches a whole gradient besides: it is reduced once a step. Activations come on top."""
    weight = torch.empty(0, dtype=dtype).element_size()
    gradient = 4 if accumulation > 1 or weight == 4 else weight
    local = 4 * num_trainable if accumulation > 1 and weight == 4 else 0
    return weight * (num_trainable + num_frozen) + local + (12 + gradient) * num_trainable / world_size


def describe(
    recipe: Recipe, shapes: dict[str, int], parts: Parts, num_blocks: int, world_size: int, dtype: torch.dtype, accumulation: int,
    micro_batch: int, stage_flops: list[float], peak: float,
) -> str:  # fmt: skip
    """The plan as text. shapes: elements of each parameter; stage_flops: per token; peak: FLOP/s of all ranks together."""
    step_tokens = recipe.global_batch_size * recipe.sequence_length
    epochs = recipe.total_steps * recipe.global_batch_size / num_blocks
    lines = [
        f"{recipe.name}: {sum(shapes.values()):,} parameters, seed model {recipe.seed_model}, corpus {recipe.corpus}",
        f"{recipe.total_steps:,} steps of {recipe.global_batch_size} blocks x {recipe.sequence_length} = {step_tokens:,} tokens: "
        f"{recipe.total_steps * step_tokens:,} tokens, {epochs:.2f} epochs of {num_blocks:,} blocks",
        f"{world_size} rank(s) x {accumulation} micro-batch(es) of {micro_batch} in {str(dtype).removeprefix('torch.')}",
        "",
        f"{'stage':<14}{'trains':>14}{'frozen':>14}{'steps':>9}{'lr':>10}{'GFLOP/token':>13}{'state/rank':>12}{'time':>10}",
    ]
    total = 0.0
    for stage, flops in zip(recipe.stages, stage_flops, strict=True):
        trains = sum(shapes[name] for name in trainable(stage, parts))
        frozen = sum(shapes.values()) - trains
        memory = memory_per_rank(trains, frozen, world_size, dtype, accumulation)
        seconds = stage.steps * step_tokens * flops / (peak * ASSUMED_MFU)
        total += seconds
        lines.append(
            f"{stage.name:<14}{trains:>14,}{frozen:>14,}{stage.steps:>9,}{stage.learning_rate:>10.1e}{flops / 1e9:>13.3f}"
            f"{memory / 2**20:>8,.0f} MiB{_duration(seconds):>10}"
        )
    lines.append(f"about {_duration(total)} at {ASSUMED_MFU:.0%} of {peak / 1e12:.2f} TFLOP/s; activations come on top of the memory shown")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{int(seconds % 60):02}s"
