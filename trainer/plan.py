"""What a run will do, before it does it: the model's shapes and parts, and what they take of memory, disk, tokens and time."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from trainer import surgery
from trainer.architecture import architecture_of
from trainer.checkpoint import checkpoint_paths
from trainer.flops import Shape, stage_flops_per_token
from trainer.mlm import build_model
from trainer.recipe import Recipe
from trainer.stages import Parts, check_stages, split_parts, trainable

ASSUMED_MFU = 0.4  # of the matrix-multiplication peak (trainer/flops.py); only the time estimate uses it


def memory_per_rank(
    num_trainable: int, num_frozen: int, world_size: int, dtype: torch.dtype, whole_gradient: bool, device: torch.device
) -> float:
    """Bytes of model state on one rank under ZeRO-2: weights in the compute precision; for what trains fp32 master and two Adam moments,
    divided by the ranks; and its gradient in fp32, whole (trainer/gradients.py) or DeepSpeed's, divided likewise. With a whole one on CPU
    a place for this rank's new weights as well, in memory that ranks of one host share. Activations come on top."""
    weight = torch.empty(0, dtype=dtype).element_size()
    own = num_trainable / world_size
    gradient = 4 * (num_trainable if whole_gradient else own)
    if whole_gradient and device.type == "cpu" and world_size > 1:
        gradient += weight * own
    return weight * (num_trainable + num_frozen) + gradient + 12 * own


def begun_config(recipe: Recipe) -> dict[str, Any] | None:
    """The model's configuration where the run folder holds a checkpoint of this recipe; from then on nobody needs the seed."""
    for path in checkpoint_paths(recipe.output_dir):
        with suppress(OSError, ValueError, LookupError, TypeError):  # a damaged one; `trainer.checkpoint.newest` says so in its time
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if Recipe.model_validate(state["recipe"]).identity() == recipe.identity():
                found: dict[str, Any] = state["model_config"]
                return found
    return None


@dataclass(frozen=True)
class Plan:
    """An XPT model as recipe and tokenizer determine it, without weights."""

    recipe: Recipe
    model_config: PretrainedConfig
    shapes: dict[str, tuple[int, ...]]
    parts: Parts

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, begun: dict[str, Any] | None) -> "Plan":
        """begun: what `begun_config` found; without it the seed's configuration is read. Raises UserError as `surgery.load_seed_config`,
        `surgery.xpt_config` and `of_config` do."""
        if begun:
            return cls.of_config(recipe, AutoConfig.for_model(**begun))
        return cls.of_config(recipe, surgery.xpt_config(surgery.load_seed_config(recipe.seed_model), recipe, tokenizer))

    @classmethod
    def of_config(cls, recipe: Recipe, config: PretrainedConfig) -> "Plan":
        """config: of the XPT model, ITLs counted as layers. Raises UserError for stages that this model cannot have."""
        model = build_model(config.to_dict(), 0.0, torch.device("meta"), torch.float32)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        parts = split_parts(shapes, architecture_of(config), config.num_hidden_layers, recipe.surgery.itl)
        check_stages(recipe.stages, parts)
        return cls(recipe, config, shapes, parts)

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    def num_trainable(self, stage: int) -> int:
        return sum(math.prod(self.shapes[name]) for name in trainable(self.recipe.stages[stage], self.parts))

    def flops_per_token(self, stage: int) -> float:
        """Model FLOPs of a token of training."""
        recipe, config = self.recipe, self.model_config
        shape = Shape.of(config.to_dict(), recipe.sequence_length, recipe.masking.rate)
        train = trainable(recipe.stages[stage], self.parts)
        return stage_flops_per_token(shape, self.parts, train, config.num_hidden_layers, recipe.surgery.itl, recipe.surgery.tie_output)

    def state_bytes(self, stage: int, world_size: int, dtype: torch.dtype, whole_gradient: bool, device: torch.device) -> float:
        """Of model state on one rank."""
        trains = self.num_trainable(stage)
        return memory_per_rank(trains, self.num_parameters - trains, world_size, dtype, whole_gradient, device)

    def checkpoint_bytes(self) -> int:
        """All checkpoints that the run folder holds at a time, at most: fp32 weights and two Adam moments, in those that are kept, in one
        at the end of each stage, and in one that is being written."""
        recipe = self.recipe
        kept = recipe.keep_last + len(recipe.stages) + (recipe.total_steps // recipe.keep_every if recipe.keep_every else 0)
        return (kept + 1) * 12 * self.num_parameters

    def activation_bytes(self, micro_batch: int) -> float:
        """Of one micro-batch in 16 bits, about: 34 bytes for each hidden unit, layer and token (Korthikanti et al. 2022, where attention
        keeps no matrix of sequence_length squared), and 10 for each logit of a masked position. Not measured on a GPU."""
        tokens, config = micro_batch * self.recipe.sequence_length, self.model_config
        return tokens * (34 * config.hidden_size * config.num_hidden_layers + 10 * self.recipe.masking.rate * config.vocab_size)

    def describe(
        self, *, num_blocks: int, world_size: int, device: torch.device, dtype: torch.dtype, accumulation: int, micro_batch: int,
        whole_gradient: bool, peak: float,
    ) -> str:  # fmt: skip
        """For people. num_blocks: of the training split; peak: FLOP/s of all ranks together."""
        recipe = self.recipe
        step_tokens = recipe.global_batch_size * recipe.sequence_length
        epochs = recipe.total_steps * recipe.global_batch_size / num_blocks
        lines = [
            f"{recipe.name}: {self.num_parameters:,} parameters, seed model {recipe.seed_model}, corpus {recipe.corpus}",
            f"{recipe.total_steps:,} steps of {recipe.global_batch_size} blocks x {recipe.sequence_length} = {step_tokens:,} tokens: "
            f"{recipe.total_steps * step_tokens:,} tokens, {epochs:.2f} epochs of {num_blocks:,} blocks",
            f"{world_size} rank(s) on {device.type}, {accumulation} micro-batch(es) of {micro_batch} a step, "
            f"{str(dtype).removeprefix('torch.')}",
            "",
            f"{'stage':<14}{'trains':>14}{'frozen':>14}{'steps':>9}{'lr':>10}{'GFLOP/token':>13}{'state/rank':>12}{'time':>10}",
        ]
        total = 0.0
        for number, stage in enumerate(recipe.stages):
            trains, flops = self.num_trainable(number), self.flops_per_token(number)
            memory = self.state_bytes(number, world_size, dtype, whole_gradient, device)
            seconds = stage.steps * step_tokens * flops / (peak * ASSUMED_MFU)
            total += seconds
            lines.append(
                f"{stage.name:<14}{trains:>14,}{self.num_parameters - trains:>14,}{stage.steps:>9,}{stage.learning_rate:>10.1e}"
                f"{flops / 1e9:>13.3f}{memory / 2**20:>8,.0f} MiB{_duration(seconds):>10}"
            )
        lines.append(
            f"about {_duration(total)} at {ASSUMED_MFU:.0%} of {peak / 1e12:.2f} TFLOP/s, without the network between hosts "
            f"(docs/scaling.md); on top of the state come activations, about {self.activation_bytes(micro_batch) / 2**20:,.0f} MiB in 16 "
            f"bits; checkpoints up to {self.checkpoint_bytes() / 1e9:.1f} GB"
        )
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{int(seconds % 60):02}s"
