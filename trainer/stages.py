"""What trains in a stage, and how the optimizer sees it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_tools.errors import UserError
from trainer.architecture import Architecture
from trainer.recipe import Optimizer, Stage, num_itl

_SLICE = re.compile(r"encoder\[((?:-?\d+)?):((?:-?\d+)?)\]")
PARTS = "embeddings, itl, encoder, encoder[a:b], head, all"


@dataclass(frozen=True)
class Parts:
    """The parameters of an XPT model by part: each name stands in exactly one of embeddings, itl, layers[i], head."""

    embeddings: tuple[str, ...]
    itl: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    """One entry per layer of the seed's encoder."""
    head: tuple[str, ...]

    def named(self, part: str, stage: str) -> list[str]:
        """Parameter names of one entry of a stage's `train`. Raises UserError when it names nothing."""
        match = _SLICE.fullmatch(part)
        if match:
            low, high = (int(text) if text else None for text in match.groups())
            found = [name for layer in self.layers[low:high] for name in layer]
        else:
            encoder = [name for layer in self.layers for name in layer]
            choices = {"embeddings": self.embeddings, "itl": self.itl, "encoder": encoder, "head": self.head}
            if part != "all" and part not in choices:
                raise UserError(f"stage {stage!r}: train names {part!r}; expected one of {PARTS}; name one")
            found = [name for names in choices.values() for name in names] if part == "all" else list(choices[part])
        if not found:
            raise UserError(
                f"stage {stage!r}: train names {part!r}, of which this model has nothing ({len(self.layers)} encoder layers); leave it out"
            )
        return found


def split_parts(names: Iterable[str], architecture: Architecture, num_layers: int, itl: str) -> Parts:
    """Sort parameter names (as `named_parameters` gives them) into parts. num_layers counts the ITLs too (see Surgery.itl)."""
    first, after = num_itl(itl)
    last = num_layers - after
    embeddings: list[str] = []
    adaptation: list[str] = []
    head: list[str] = []
    layers: list[list[str]] = [[] for _ in range(last - first)]
    for name in names:
        layer = architecture.layer_of(name)
        if name.startswith(architecture.embeddings):
            embeddings.append(name)
        elif name.startswith(architecture.head):
            head.append(name)
        elif layer is not None:
            (layers[layer - first] if first <= layer < last else adaptation).append(name)
        else:
            raise AssertionError(f"parameter {name} belongs to no part")
    return Parts(tuple(embeddings), tuple(adaptation), tuple(map(tuple, layers)), tuple(head))


def trainable(stage: Stage, parts: Parts) -> set[str]:
    """Names of the parameters that `stage` trains."""
    return {name for part in stage.train for name in parts.named(part, stage.name)}


def check_stages(stages: Sequence[Stage], parts: Parts) -> None:
    """Raise UserError for a stage that names something the model does not have."""
    for stage in stages:
        trainable(stage, parts)


@dataclass(frozen=True)
class Group:
    """A parameter group: same weight decay, same number of Adam steps behind it."""

    names: tuple[str, ...]
    weight_decay: float
    adam_step: int


def parameter_groups(
    shapes: Mapping[str, tuple[int, ...]], train: set[str], adam_steps: Mapping[str, int], settings: Optimizer
) -> list[Group]:
    """A checked partition of exactly the trainable parameters, in model order within each group.

    Matrices decay; vectors (biases, LayerNorms) do not. Parameters with different Adam step counts must not share a group:
    ZeRO keeps one step count per flat group, and with another parameter's count the bias correction of fresh moments is lost.
    """
    groups: dict[tuple[float, int], list[str]] = {}
    for name, shape in shapes.items():
        if name in train:
            decay = settings.weight_decay if len(shape) > 1 else 0.0
            groups.setdefault((decay, adam_steps.get(name, 0)), []).append(name)
    result = [Group(tuple(names), decay, step) for (decay, step), names in groups.items()]
    listed = [name for group in result for name in group.names]
    assert len(listed) == len(set(listed)) and set(listed) == train, "parameter groups are not a partition of what trains"
    return result
