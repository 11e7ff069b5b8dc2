"""A run whose model has random weights, for benchmarks of the engine: the checkpoint of step 0, and engines built from it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig, RobertaForMaskedLM

from trainer.architecture import architecture_of
from trainer.checkpoint import Checkpoint
from trainer.ds_config import DeepSpeedConfig
from trainer.engine import StageEngine
from trainer.ranks import Ranks
from trainer.recipe import Optimizer, Recipe, Stage
from trainer.stages import Parts, split_parts, trainable
from trainer.state import save_seed


@dataclass(frozen=True)
class RandomRun:
    """Its first and its last layer are adaptation layers."""

    recipe: Recipe
    first: Checkpoint
    parts: Parts

    def engine(
        self, stage: Stage, config: DeepSpeedConfig, dropout: float, device: torch.device, checkpoint: Checkpoint | None = None
    ) -> StageEngine:
        """Collective. checkpoint: to build from (default: the first)."""
        train = trainable(stage, self.parts)
        return StageEngine(checkpoint or self.first, train, config, Optimizer(), dropout, self.recipe.global_batch_size, device)


@contextmanager
def random_run(
    config: PretrainedConfig, stages: tuple[Stage, ...], global_batch: int, length: int, ranks: Ranks, folder: Path | None = None
) -> Iterator[RandomRun]:
    """Collective. config: of a RoBERTa. folder: emptied, and removed at the end (default: a temporary one)."""
    place = Path(ranks.gather((folder or tempfile.mkdtemp()) if ranks.is_main else None)[0])
    recipe = Recipe(
        name="s", seed_model="-", corpus="-", output_dir=place, global_batch_size=global_batch, sequence_length=length, stages=stages,
        keep_last=1,
    )  # fmt: skip
    try:
        if ranks.is_main:
            shutil.rmtree(place, ignore_errors=True)
            save_seed(place, recipe, {"corpus_fingerprint": "", "tokenizer_sha256": ""}, RobertaForMaskedLM(config), {}, {})
        ranks.barrier()
        first = Checkpoint.open(place / "checkpoints" / "step-0", verify=False)
        yield RandomRun(recipe, first, split_parts(first.shapes, architecture_of(config), config.num_hidden_layers, "both"))
        ranks.barrier()
    finally:
        if ranks.is_main:
            shutil.rmtree(place, ignore_errors=True)


def with_micro_batch(config: DeepSpeedConfig, micro_batch: int) -> DeepSpeedConfig:
    """The same with another number of blocks a rank computes at a time."""
    return replace(config, settings={**config.settings, "train_micro_batch_size_per_gpu": micro_batch}, micro_batch=micro_batch)
