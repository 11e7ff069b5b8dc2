"""Stages: what trains, in which groups, and at which rate."""

import math

import pytest

from data_tools.errors import UserError
from trainer.architecture import architecture_of
from trainer.recipe import Optimizer, Stage
from trainer.schedule import learning_rate
from trainer.stages import Parts, check_stages, parameter_groups, split_parts, trainable

PARTS = Parts(("e.weight",), ("i.weight",), (("l0.weight",), ("l1.weight",), ("l2.weight", "l2.bias")), ("h.weight", "h.bias"))


def stage(*train: str) -> Stage:
    return Stage(name="s", train=train, steps=100, learning_rate=1.0, warmup_steps=10)


def test_what_a_stage_trains() -> None:
    assert trainable(stage("embeddings", "itl"), PARTS) == {"e.weight", "i.weight"}
    assert trainable(stage("encoder[1:]", "head"), PARTS) == {"l1.weight", "l2.weight", "l2.bias", "h.weight", "h.bias"}
    assert trainable(stage("encoder[:-1]"), PARTS) == {"l0.weight", "l1.weight"}
    assert len(trainable(stage("all"), PARTS)) == 8
    for bad in ("decoder", "encoder[3:5]", "encoder[2:1]", "encoder[1]", "encoder[-:1]", "encoder[:-]"):
        with pytest.raises(UserError, match="stage 's': train names"):
            check_stages([stage(bad)], PARTS)
    with pytest.raises(UserError, match="of which this model has nothing"):
        check_stages([stage("itl")], Parts(("e.weight",), (), PARTS.layers, PARTS.head))


def test_parts_hold_every_parameter_once() -> None:
    names = [f"bert.encoder.layer.{i}.output.dense.weight" for i in range(4)]
    names += ["bert.embeddings.LayerNorm.weight", "cls.predictions.bias"]
    bert = architecture_of({"model_type": "bert"})
    assert split_parts(names, bert, 4, "input").itl == (names[0],)
    assert split_parts(names, bert, 4, "output").itl == (names[3],)
    assert split_parts(names, bert, 4, "both").layers == ((names[1],), (names[2],))
    assert len(split_parts(names, bert, 4, "none").layers) == 4


def test_groups_are_a_partition_by_decay_and_adam_step() -> None:
    shapes = {"e.weight": (9, 3), "e.bias": (3,), "n.weight": (3, 3), "n.bias": (3,), "frozen.weight": (2, 2)}
    train = {"e.weight", "e.bias", "n.weight", "n.bias"}
    groups = parameter_groups(shapes, train, {"e.weight": 5, "e.bias": 5}, Optimizer(weight_decay=0.1))
    found = {(group.names, group.weight_decay, group.adam_step) for group in groups}
    assert found == {(("e.weight",), 0.1, 5), (("e.bias",), 0.0, 5), (("n.weight",), 0.1, 0), (("n.bias",), 0.0, 0)}


def test_schedules_at_hand_computed_steps() -> None:
    linear = stage("all")
    assert [learning_rate(linear, s) for s in (0, 9, 10, 55, 99)] == pytest.approx([1 / 11, 10 / 11, 1.0, 0.5, 1 / 90])
    cosine = linear.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 55) == pytest.approx(0.5) and learning_rate(cosine, 32.5) == pytest.approx(0.5 + math.sqrt(0.5) / 2)  # type: ignore[arg-type]
    assert learning_rate(linear.model_copy(update={"schedule": "constant"}), 99) == 1.0
