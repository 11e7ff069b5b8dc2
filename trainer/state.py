"""What the training loop changes, and how it is saved. Everything else of a run follows from the recipe."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_tools.errors import RunError
from trainer.checkpoint import Checkpoint, link_frozen, prune, seal, write_entries
from trainer.engine import StageEngine
from trainer.ranks import Ranks
from trainer.recipe import Recipe

T = TypeVar("T")
CORPUS_KEYS = ("corpus_fingerprint", "tokenizer_sha256")


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


def save_seed(run: Path, recipe: Recipe, corpus: dict[str, str], model: Any, report: dict[str, Any]) -> Path:
    """The checkpoint of step 0: the model as surgery left it. corpus: values of CORPUS_KEYS. Rank 0 only."""
    partial = run / "checkpoints" / "step-0.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    files = write_entries(partial, "seed", shapes, set(), ((name, p.detach(), None) for name, p in parameters.items()))
    records = {name: {"shape": shape, "file": "seed", "adam_step": 0} for name, shape in shapes.items()}
    return seal(partial, {**_header(TrainState(), recipe, corpus, model.config.to_dict()), "surgery": report, "parameters": records}, files)


def save_weights(run: Path, recipe: Recipe, corpus: dict[str, str], source: Checkpoint) -> Path:
    """The checkpoint of step 0: the weights of another run's checkpoint, and nothing else of it. Rank 0 only."""
    partial = run / "checkpoints" / "step-0.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries = ((name, value, None) for name, value, _ in source.entries(source.shapes))
    files = write_entries(partial, "seed", source.shapes, set(), entries)
    records = {name: {"shape": shape, "file": "seed", "adam_step": 0} for name, shape in source.shapes.items()}
    header = _header(TrainState(), recipe, corpus, source.state["model_config"])
    surgery = {**source.state["surgery"], "initialised_from": f"{source.path}, step {source.state['step']}"}
    return seal(partial, {**header, "surgery": surgery, "parameters": records}, files)


def save(run: Path, recipe: Recipe, state: TrainState, engine: StageEngine, previous: Checkpoint, ranks: Ranks) -> Checkpoint:
    """Write the checkpoint of `state.step`; collective, every rank writes the parameters it owns. `previous` is the last one saved.

    The checkpoints at the ends of stages and at multiples of `recipe.keep_every` are kept; of the others the last `recipe.keep_last`.
    Raises RunError on all ranks when any of them cannot write; what was written is removed, and earlier checkpoints are as they were.
    """
    partial = run / "checkpoints" / f"step-{state.step}.partial"

    def all_well(problem: OSError | None) -> None:
        problems = [text for text in ranks.gather(problem and f"rank {ranks.rank}: {problem}") if text]
        if problems:
            if ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise RunError(f"{partial.with_suffix('')} could not be written ({problems[0]}); {previous.path} is the last good checkpoint")

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except OSError as error:
            failure.append(error)
            return None

    failure: list[OSError] = []
    if ranks.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        attempt(lambda: partial.mkdir(parents=True))
    all_well(failure[0] if failure else None)
    stem, owned, shapes, adam_steps = str(ranks.rank), engine.owned(), previous.shapes, engine.adam_steps
    entries = engine.owned_entries()
    share = attempt(lambda: write_entries(partial, stem, {name: shapes[name] for name in owned}, set(owned), entries))
    all_well(failure[0] if failure else None)
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
        header = _header(state, recipe, {key: previous.state[key] for key in CORPUS_KEYS}, previous.state["model_config"])
        content = {**header, "loss_scaler": engine.loss_scaler, "surgery": previous.state["surgery"], "world_size": ranks.world_size}
        return seal(partial, {**content, "parameters": {name: records[name] for name in shapes}}, files)

    ranks.on_main(lambda: attempt(finish))
    all_well(failure[0] if failure else None)
    checkpoint = Checkpoint.open(run / "checkpoints" / f"step-{state.step}", verify=False)
    if ranks.is_main:
        ends, total = {0}, 0
        for stage in recipe.stages:
            total += stage.steps
            ends.add(total)
        if recipe.keep_every:
            ends |= set(range(0, total, recipe.keep_every))
        prune(run, recipe.keep_last, ends)
    return checkpoint


def _header(state: TrainState, recipe: Recipe, corpus: dict[str, str], model_config: dict[str, Any]) -> dict[str, Any]:
    stage, _ = recipe.stage_at(state.step)
    name = recipe.stages[stage].name if stage < len(recipe.stages) else None
    return {
        "step": state.step, "batch": state.batch, "tokens": state.tokens, "stage": name, "recipe": recipe.as_dict(),
        **corpus, "model_config": model_config,
    }  # fmt: skip
