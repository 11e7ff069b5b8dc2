"""The loop of a stage in trainer/xpt.py, with a stand-in for the engine: what it is given, and what skipped steps do to the counts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_tools.errors import RunError
from trainer import xpt
from trainer.recipe import Intervals, Optimizer, Recipe, Stage, Surgery
from trainer.schedule import learning_rate
from trainer.state import TrainState

SCALER = {"cur_scale": 8.0}


class Loop:
    """One stage of `steps` steps, second of two, as `xpt.train_stage` runs it; skips: the batches whose gradient is not finite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, skips: set[int], moments: str = "carry", at: int = 0, steps: int = 6) -> None:
        self.given: dict[str, Any] = {}
        self.saved: list[TrainState] = []
        self.frozen_moved = False
        self.rates: list[float] = []
        self.drawn: list[int] = []
        self.trained: list[int] = []
        self.state = TrainState(step=2 + at, batch=2 + at)
        loop = self

        class Engine:
            skipped, gradient_norm, traffic, loss_scaler = False, 1.0, SimpleNamespace(take=lambda: 0.0), SCALER
            device = torch.device("cpu")

            def __init__(self, checkpoint: Any, train: Any, config: Any, optimizer: Any, dropout: float, *_: Any, **named: Any) -> None:
                loop.given |= {"dropout": dropout, **named}

            def load_loss_scaler(self, state: dict[str, float]) -> None:
                loop.given["scaler"] = state

            def check_frozen(self) -> None:
                if loop.frozen_moved:
                    raise RuntimeError("frozen parameters changed")

            def set_learning_rate(self, rate: float) -> None:
                loop.rates.append(rate)

            evaluate = describe = close = lambda *_: ""

        def train_step(run: Any, ranks: Any, engine: Any, batch_number: int, *_: Any) -> torch.Tensor:
            loop.trained.append(batch_number)
            engine.skipped = batch_number in skips
            return torch.ones(())

        def draw(run: Any, ranks: Any, batch_number: int, *_: Any) -> tuple[list[Any], float, int, bool]:
            loop.drawn.append(batch_number)
            return [], 1.0, 0, False

        recipe = Recipe(
            name="t", seed_model="x", corpus="x", output_dir=Path("x"), global_batch_size=8, sequence_length=16, max_skipped=2,
            optimizer=Optimizer(moments=moments), surgery=Surgery(dropout=0.3), every=Intervals(log=1, evaluate=0, checkpoint=3),
            stages=tuple(Stage(name=n, train=("all",), steps=s, learning_rate=1.0) for n, s in (("one", 2), ("two", steps))),
        )  # fmt: skip
        for name, stand_in in {
            "StageEngine": Engine, "trainable": lambda *_: set(), "check_forward": lambda *_: None, "forward_check": lambda *_: {},
            "validate": lambda *_: {}, "draw": draw, "train_step": train_step,
            "Speed": lambda *_: SimpleNamespace(count=lambda _: None, figures=dict, restart=lambda: None),
        }.items():  # fmt: skip
            monkeypatch.setattr(xpt, name, stand_in)
        plan, config = SimpleNamespace(parts=None, shapes={}), SimpleNamespace(dtype=torch.float32)
        self.run = SimpleNamespace(recipe=recipe, plan=plan, config=config, tokens_per_step=128)
        self.ranks = SimpleNamespace(beat=lambda _: None, sum=lambda *values: list(values), device=torch.device("cpu"))
        self.journal = SimpleNamespace(say=lambda _: None, advance=lambda *_: None, record=lambda _: None)
        last = SimpleNamespace(state={"loss_scaler": SCALER, "step": self.state.step}, path="step-2")
        self.saver = SimpleNamespace(last=last, good=last, save=lambda state, *_, **__: self.saved.append(TrainState(**vars(state))))

    def train(self) -> None:
        xpt.train_stage(self.run, self.ranks, self.journal, self.state, self.saver, 1, SimpleNamespace())  # type: ignore[arg-type]


def test_a_skipped_step_is_drawn_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, skips={3, 5, 7})  # each alone: never two in a row
    loop.train()
    assert (loop.state.step, loop.state.batch, loop.state.tokens) == (8, 11, 9 * 128)
    assert [(state.step, state.batch) for state in loop.saved] == [(3, 3), (6, 9), (8, 11)]
    assert loop.drawn == loop.trained == list(range(2, 11))
    steps = [0, 1, 1, 2, 2, 3, 3, 4, 5]  # within the stage; one that was skipped has its rate again
    assert loop.rates == [learning_rate(loop.run.recipe.stages[1], step) for step in steps]
    loop = Loop(monkeypatch, skips={4, 5})
    with pytest.raises(RunError, match="2 steps in a row had a gradient that was not finite; step-2 is the last good"):
        loop.train()


@pytest.mark.parametrize(("moments", "at", "fresh"), [("fresh", 0, True), ("fresh", 3, False), ("carry", 0, False)])
def test_the_engine_gets_what_the_recipe_and_the_checkpoint_say(
    monkeypatch: pytest.MonkeyPatch, moments: str, at: int, fresh: bool
) -> None:
    loop = Loop(monkeypatch, set(), moments, at)
    loop.train()
    assert loop.given == {"dropout": 0.3, "fresh_moments": fresh, "scaler": SCALER} and loop.state.step == 8


def test_a_frozen_parameter_that_moved_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, set())
    loop.frozen_moved = True
    with pytest.raises(RuntimeError, match="frozen parameters changed"):
        loop.train()
