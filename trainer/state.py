"""What the training loop changes, and how it is saved. Everything else of a run follows from the recipe."""

import functools
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from data_tools.aside import flush
from data_tools.errors import RunError
from trainer.checkpoint import Checkpoint, link_files, prune, seal, settle, write_alone, write_entries
from trainer.engine import StageEngine
from trainer.ranks import Ranks
from trainer.recipe import Recipe
from trainer.storage import Storage

T = TypeVar("T")
CORPUS_KEYS = ("corpus_fingerprint", "tokenizer_sha256")


class _NotSaved(Exception):
    """A checkpoint could not be written, that was told, and the run goes on without it."""


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


def save_seed(run: Path, recipe: Recipe, corpus: dict[str, str], model: Any, report: dict[str, Any], forward: dict[str, Any]) -> Path:
    """The checkpoint of step 0: the model as surgery left it. corpus: values of CORPUS_KEYS. Rank 0 only."""
    header = _header(TrainState(), recipe, corpus, model.config.to_dict())
    return write_alone(run, 0, "seed", dict(model.named_parameters()), {}, {**header, "surgery": report, "forward": forward})


def save_weights(run: Path, recipe: Recipe, corpus: dict[str, str], source: Checkpoint) -> Path:
    """The checkpoint of step 0: the weights of another run's checkpoint, and nothing else of it. Rank 0 only."""
    surgery = {**source.state["surgery"], "initialised_from": f"{source.path}, step {source.state['step']}"}
    parameters = {name: value for name, value, _ in source.entries(source.shapes)}
    header = _header(TrainState(), recipe, corpus, source.state["model_config"])
    state = {**header, "surgery": surgery, "forward": {}}  # its forward check is of another corpus
    return write_alone(run, 0, "seed", parameters, {}, state)


class Saver:
    """Saves a run's checkpoints. All methods are collective; every rank writes the parameters that it owns.

    `save` returns when everything is in the operating system's hands and cannot change any more. The wait for the disk goes on in a thread,
    beside the training, and `finish` gives the checkpoint its marker and its name. So one checkpoint may be under way at a time; killed
    meanwhile, a run goes on from the one before.
    """

    def __init__(self, run: Path, recipe: Recipe, ranks: Ranks, first: Checkpoint, say: Callable[[str], None]) -> None:
        """first: the checkpoint that the run starts from. say: told of failures that the recipe says to survive."""
        self.last = first
        """The newest checkpoint: to build an engine from, also while it is under way."""
        self.good = first
        """The newest finished checkpoint."""
        self._run, self._recipe, self._ranks, self._say = run, recipe, ranks, say
        self._storage = Storage(run, ranks)
        self._saved = {first.state["step"]}
        self._needed = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    @property
    def ready(self) -> bool:
        """Whether a checkpoint is under way and this rank's disk has all of it."""
        return self._thread is not None and not self._thread.is_alive()

    def save(self, state: TrainState, engine: StageEngine, forward: dict[str, Any], needed: bool) -> None:
        """Begin the checkpoint of `state.step`. forward: for the check on loading. needed: the next stage is built from it.

        Raises RunError on all ranks when any of them cannot write, if the checkpoint is needed or the recipe wants it; otherwise says so.
        Then as later in `finish`, what was written is removed, and earlier checkpoints are as they were.
        """
        self.finish()
        self._needed = needed
        with suppress(_NotSaved):
            self._begin(state, engine, forward)

    def _begin(self, state: TrainState, engine: StageEngine, forward: dict[str, Any]) -> None:
        """All that `save` does; the rest is the thread's and `_seal`'s."""
        partial = self._run / "checkpoints" / f"step-{state.step}.partial"
        stem, shapes, adam_steps = f"{state.step}-{self._ranks.rank}", self.good.shapes, engine.adam_steps
        if self._storage.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            self._attempt(lambda: partial.mkdir(parents=True))
        self._agree(partial)
        owned, entries = engine.owned(), engine.owned_entries()
        written = self._attempt(lambda: write_entries(partial, stem, {name: shapes[name] for name in owned}, set(owned), entries))
        files, unsettled = written or (None, [])
        if self._needed:  # the next stage is built from these files on all hosts, which on NFS see them when they are closed
            self._attempt(lambda: settle(unsettled))
            unsettled = []
        shares = self._ranks.gather((stem, owned, files))
        records = {
            name: {"shape": shapes[name], "file": stem, "adam_step": adam_steps[name]} for stem, names, _ in shares for name in names
        }
        frozen = {name: record for name, record in self.good.parameters.items() if name not in records}
        stems = {record["file"] for record in frozen.values()}
        linked = self._ranks.gather(self._attempt(lambda: link_files(partial, self.good, stems)) if self._storage.is_first else None)[0]
        self._agree(partial)
        for rank, (_, _, theirs) in enumerate(shares):
            self._attempt(functools.partial(self._storage.spread, rank, partial, theirs))
        self._agree(partial)
        records |= frozen
        identity, config = {key: self.good.state[key] for key in CORPUS_KEYS}, self.good.state["model_config"]
        content = {
            **_header(state, self._recipe, identity, config), "loss_scaler": engine.loss_scaler, "surgery": self.good.state["surgery"],
            "world_size": self._ranks.world_size, "forward": forward, "parameters": {name: records[name] for name in shapes},
        }  # fmt: skip
        self.last = Checkpoint(partial, content, {name: info for _, _, files in shares for name, info in files.items()} | linked)
        self._thread = threading.Thread(target=lambda: self._attempt(lambda: self._settle(unsettled)))
        self._thread.start()

    def _settle(self, unsettled: list[BinaryIO]) -> None:
        settle(unsettled)
        metrics = self._run / "metrics.jsonl"
        if self._ranks.is_main and metrics.exists():  # its rows up to this step: a run that goes on from here does not write them again
            flush(metrics)

    def finish(self) -> None:
        """Seal the checkpoint under way, if there is one. Raises as `save` does.

        The checkpoints at the ends of stages and at multiples of `recipe.keep_every` are kept; of the others the last `recipe.keep_last`.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        with suppress(_NotSaved):
            self._seal()

    def _seal(self) -> None:
        partial, state, files = self.last.path, self.last.state, self.last.files
        self._agree(partial)
        if self._storage.is_first:
            self._attempt(lambda: seal(partial, state, files))
        self._agree(partial)
        self.last = self.good = Checkpoint.open(partial.with_suffix(""), verify=False)
        self._saved.add(state["step"])
        if self._storage.is_first:
            self._attempt(lambda: prune(self._run, self._saved, self._recipe.keep_last, self._kept()))
        self._attempt(lambda: self._storage.spread(0, self._run, ("recipe.yaml", "metrics.jsonl")))
        failure, self._failure = self._failure, None  # the checkpoint is good all the same
        for problem in self._ranks.gather(failure and f"WARNING: {self._ranks.name}: {failure}"):
            if problem:
                self._say(problem)

    def _attempt(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except OSError as error:
            self._failure = error
            return None

    def _agree(self, partial: Path) -> None:
        """Go on only if no rank failed since the last call. Otherwise what was written is removed, and on all ranks RunError or, where the
        run may go on without this checkpoint, _NotSaved is raised."""
        failure, self._failure = self._failure, None
        problems = [text for text in self._ranks.gather(failure and f"{self._ranks.name}: {failure}") if text]
        if not problems:
            return
        if self._storage.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        message = f"{partial.with_suffix('')} could not be written ({problems[0]}); {self.good.path} is the last good checkpoint"
        self.last = self.good
        if self._needed or self._recipe.on_save_failure == "stop":
            raise RunError(message)
        self._say(f"WARNING: {message}; going on")
        raise _NotSaved

    def _kept(self) -> set[int]:
        ends, total = {0}, 0
        for stage in self._recipe.stages:
            total += stage.steps
            ends.add(total)
        return ends | set(range(0, total, self._recipe.keep_every) if self._recipe.keep_every else ())


def _header(state: TrainState, recipe: Recipe, corpus: dict[str, str], model_config: dict[str, Any]) -> dict[str, Any]:
    stage, _ = recipe.stage_at(state.step)
    name = recipe.stages[stage].name if stage < len(recipe.stages) else None
    return {
        "step": state.step, "batch": state.batch, "tokens": state.tokens, "stage": name, "recipe": recipe.as_dict(),
        **corpus, "model_config": model_config,
    }  # fmt: skip
