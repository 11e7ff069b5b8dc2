"""What the training loop changes, and how it is saved. Everything else of a run follows from the recipe."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import Checkpoint, link_frozen, prune, seal, write_entries
from trainer.engine import StageEngine
from trainer.ranks import Ranks
from trainer.recipe import Recipe


@dataclass
class TrainState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken, over all stages."""
    batch: int = 0
    """Global batches drawn: `step` plus the steps that were skipped because a gradient was not finite."""
    tokens: int = 0
    """Tokens seen, over all ranks."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "TrainState":
        return cls(checkpoint.state["step"], checkpoint.state["batch"], checkpoint.state["tokens"])


def save_seed(run: Path, recipe: Recipe, fingerprint: str, model: Any, report: dict[str, Any]) -> Path:
    """The checkpoint of step 0: the model as surgery left it. Rank 0 only."""
    partial = run / "checkpoints" / "step-0.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    files = write_entries(partial, "seed", shapes, set(), ((name, p.detach(), None) for name, p in parameters.items()))
    records = {name: {"shape": shape, "file": "seed", "adam_step": 0} for name, shape in shapes.items()}
    return seal(
        partial, {**_header(TrainState(), recipe, fingerprint, model.config.to_dict()), "surgery": report, "parameters": records}, files
    )


def save(run: Path, recipe: Recipe, state: TrainState, engine: StageEngine, previous: Checkpoint, ranks: Ranks) -> Checkpoint:
    """Write the checkpoint of `state.step`; collective, every rank writes the parameters it owns. `previous` is the last one saved.

    The checkpoints at the ends of stages are kept; of the others the last `recipe.keep_last`.
    """
    partial = run / "checkpoints" / f"step-{state.step}.partial"
    if ranks.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.barrier()
    stem, owned, shapes, adam_steps = str(ranks.rank), engine.owned(), previous.shapes, engine.adam_steps
    share = write_entries(partial, stem, {name: shapes[name] for name in owned}, set(owned), engine.owned_entries())
    shares = ranks.gather((stem, owned, share))

    def finish() -> Path:
        files = {name: info for _, _, files in shares for name, info in files.items()}
        records = {n: {"shape": shapes[n], "file": stem, "adam_step": adam_steps[n]} for stem, names, _ in shares for n in names}
        frozen = {name: record for name, record in previous.parameters.items() if name not in records}
        if frozen:
            linked = link_frozen(partial, previous, set(frozen))
            trained = {name for name, record in frozen.items() if record["adam_step"]}
            files |= linked or write_entries(partial, "frozen", {n: shapes[n] for n in frozen}, trained, previous.entries(frozen))
        records |= {name: {**record, "file": "frozen"} for name, record in frozen.items()}
        header = _header(state, recipe, previous.state["corpus_fingerprint"], previous.state["model_config"])
        content = {**header, "loss_scaler": engine.loss_scaler, "surgery": previous.state["surgery"], "world_size": ranks.world_size}
        return seal(partial, {**content, "parameters": {name: records[name] for name in shapes}}, files)

    ranks.on_main(finish)
    checkpoint = Checkpoint.open(run / "checkpoints" / f"step-{state.step}", verify=False)
    if ranks.is_main:
        ends, total = {0}, 0
        for stage in recipe.stages:
            total += stage.steps
            ends.add(total)
        prune(run, recipe.keep_last, ends)
    return checkpoint


def _header(state: TrainState, recipe: Recipe, fingerprint: str, model_config: dict[str, Any]) -> dict[str, Any]:
    stage, _ = recipe.stage_at(state.step)
    name = recipe.stages[stage].name if stage < len(recipe.stages) else None
    return {
        "step": state.step, "batch": state.batch, "tokens": state.tokens, "stage": name, "recipe": recipe.as_dict(),
        "corpus_fingerprint": fingerprint, "model_config": model_config,
    }  # fmt: skip
