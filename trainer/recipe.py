"""The recipe: every setting of a post-training run that changes its result, checked before anything else happens.

A recipe is a YAML file; `--set key=value` changes single entries (`--set stages.0.steps=100`). What only says how the
work is spread over a machine (micro-batch, precision, ZeRO, buckets) is not here but in the ds_config.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from data_tools.errors import UserError


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:  # `yes` and `on` are true to YAML
            raise ValueError("expected no true or false")
        return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # before `<<` puts another mapping's keys among its own, of which its own count
        keys = [(key.tag, key.value) for key, _ in node.value]
        for number, (tag, value) in enumerate(keys):
            if (tag, value) in keys[:number]:
                raise yaml.composer.ComposerError(None, None, f"{value} appears twice", node.value[number][0].start_mark)
        return node


def read_yaml(path: Path) -> Any:
    """Raises OSError, UnicodeDecodeError or yaml.YAMLError."""
    return yaml.load(path.read_text(encoding="utf-8"), _Loader)


class Surgery(_Settings):
    """How the seed model becomes an XPT model."""

    seed_weights: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps only the seed's architecture: the control of every comparison."""
    itl: Literal["both", "input", "output", "none"] = "both"
    """Where an adaptation layer (ITL) stands: before the encoder, after it, both, nowhere."""
    itl_init: Literal["random", "near-identity"] = "random"
    """`near-identity`: an ITL gives back what reaches it, as nearly as a layer can; the paper's are random."""
    embedding_init: Literal["random", "source-statistics", "dictionary", "anchors", "co-occurrences"] = "random"
    """First word embeddings: random (the paper's); drawn with the seed's mean and deviation; from a lexicon and the corpus; from the pieces
    that both vocabularies share and the corpus; from the corpus alone (trainer/embedding_init.py)."""
    lexicon: Path | None = None
    """English<TAB>Korean pairs; needed by `embedding_init: dictionary`."""
    output_bias_init: Literal["zeros", "unigram"] = "zeros"
    """`unigram` starts the output bias at the log frequency of each piece in the training split."""
    reinit_head: bool = True
    """New dense layer and LayerNorm in the MLM head (the paper's random output layer). A seed without a head needs it."""
    reinit_positions: bool = False
    """New position embeddings; else the seed's."""
    tie_output: bool = True
    """Output matrix = word embeddings, as RoBERTa and BERT have it."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Hidden and attention dropout while post-training. The exported model's config keeps the seed's own rates."""


class Masking(_Settings):
    """Dynamic MLM masking (BERT; RoBERTa section 4.1): of the selected tokens 80 % become <mask>, 10 % random, 10 % stay."""

    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are selected, to be predicted."""
    mask_fraction: float = Field(default=0.8, ge=0, le=1)
    """Of the selected ones, those that become <mask>."""
    random_fraction: float = Field(default=0.1, ge=0, le=1)
    """Of the selected ones, those that become a piece drawn from all."""

    @model_validator(mode="after")
    def _fractions(self) -> "Masking":
        if self.mask_fraction + self.random_fraction > 1:
            raise ValueError("mask_fraction + random_fraction must not exceed 1")
        return self


class Optimizer(_Settings):
    """AdamW (Loshchilov and Hutter 2019); biases and LayerNorms are not decayed."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Times the learning rate: what a weight loses in a step."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    moments: Literal["carry", "fresh"] = "carry"
    """At a stage change: keep the Adam moments and step counts of what already trained, or start all anew."""


def num_itl(itl: str) -> tuple[int, int]:
    """Adaptation layers before the encoder and after it, by `Surgery.itl`."""
    return int(itl in ("both", "input")), int(itl in ("both", "output"))


class Stage(_Settings):
    """One row of the stage table."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    train: tuple[str, ...] = Field(min_length=1)
    """Of: embeddings, itl, encoder, encoder[a:b] (layers of the seed, counted from 0), head, all."""
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    """The stage's highest."""
    warmup_steps: int = Field(default=0, ge=0)
    """Of the stage's steps those in which the rate rises, from nearly 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """After the warm-up, to 0 at the stage's end (`linear`, `cosine`) or not at all."""

    @model_validator(mode="after")
    def _warmup(self) -> "Stage":
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self


class Intervals(_Settings):
    """In optimizer steps. `evaluate` and `checkpoint`: 0 means only at the end of each stage."""

    log: int = Field(default=10, gt=0)
    """Rows of metrics.jsonl and points of TensorBoard."""
    evaluate: int = Field(default=500, ge=0)
    checkpoint: int = Field(default=500, ge=0)


class Recipe(_Settings):
    """A whole run. See recipes/*.yaml."""

    name: str = Field(min_length=1)
    seed_model: str
    """A folder, a hub id, or `package:NAME/PATH` for a model that lies in an installed Python package."""
    corpus: Path
    """A folder made by data_tools.prepare."""
    output_dir: Path
    """The run folder."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of new weights, the order of blocks, masks and dropout."""
    expect_world_size: int | None = Field(default=None, gt=0)
    """Refuse to run on another number of ranks."""
    surgery: Surgery = Surgery()
    sequence_length: int = Field(default=512, ge=8)
    """Tokens of a block, <s> and </s> included."""
    packing: Literal["contiguous", "sentences"] = "contiguous"
    """contiguous: blocks are cut from the running text, documents separated by </s> (RoBERTa's FULL-SENTENCES). sentences: each sentence is
    a sample that sees nothing else; several share a block."""
    masking: Masking = Masking()
    global_batch_size: int = Field(gt=0)
    """Blocks per optimizer step over all ranks."""
    optimizer: Optimizer = Optimizer()
    stages: tuple[Stage, ...] = Field(min_length=1)
    every: Intervals = Intervals()
    validation_blocks: int = Field(default=1024, gt=0)
    """At most this many blocks of the validation split are scored, evenly spread over it."""
    keep_last: int = Field(default=2, gt=0)
    """Checkpoints kept; the ends of stages and what surgery made are kept besides."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this many steps are kept too. 0: none."""
    on_save_failure: Literal["stop", "warn"] = "stop"
    """When a checkpoint cannot be written (a full disk): end the run, or warn and go on. The checkpoint between two stages is needed."""
    hang_seconds: float = Field(default=600, gt=0)
    """End all ranks when nothing has gone on for this long, naming the rank that hangs."""
    max_skipped: int = Field(default=25, gt=0)
    """End the run when this many steps in a row had a gradient that was not finite."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages must have different names, got {names}")
        if self.surgery.embedding_init == "dictionary" and self.surgery.lexicon is None:
            raise ValueError("surgery.embedding_init: dictionary needs surgery.lexicon, a file of english<TAB>korean lines")
        if self.surgery.embedding_init != "random" and self.surgery.seed_weights == "random":
            raise ValueError(f"surgery.seed_weights: random has no source for surgery.embedding_init: {self.surgery.embedding_init}")
        return self

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, int]:
        """(index of the stage that optimizer step `step` (from 0) belongs to, steps done in it); one past the last at the end."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        return len(self.stages), 0

    def as_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: everything that changes its numbers, under names such as `stages.0.steps`. The same
        file is the same however its path is spelt."""
        free = {
            "output_dir",
            "corpus",
            "expect_world_size",
            "every",
            "keep_last",
            "keep_every",
            "on_save_failure",
            "max_skipped",
            "hang_seconds",
            "name",
        }
        settings = {key: value for key, value in self.as_dict().items() if key not in free}
        lexicon = self.surgery.lexicon
        settings["surgery"]["lexicon"] = str(lexicon.resolve()) if lexicon else None
        if Path(self.seed_model).is_dir():  # else a hub's id, or a package's
            settings["seed_model"] = str(Path(self.seed_model).resolve())
        return dict(_entries(settings))


def _entries(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested settings."""
    if not isinstance(settings, dict | list):
        yield name, settings
        return
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        yield from _entries(value, f"{name}.{key}" if name else str(key))


def load_recipe(path: Path, overrides: list[str], **replaced: Any) -> Recipe:
    """Read `path`, apply `key=value` overrides, then the named entries that are not None; check everything.

    Raises: UserError that lists all problems at once.
    """
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"recipe {path}: no such file; recipes lie in recipes/") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"recipe {path}: expected YAML, found: {error}; repair the file") from None
    if not isinstance(settings, dict):
        raise UserError(f"recipe {path}: expected `key: value` lines, found {type(settings).__name__}; see recipes/paper.yaml")
    for override in overrides:
        _apply(settings, override)
    settings.update({key: value for key, value in replaced.items() if value is not None})
    for key in ("seed_model", "corpus", "output_dir"):
        if settings.get(key) == "":  # a shell's variable that is not set; as a path it would be this folder
            raise UserError(f"recipe {path}: {key} is empty; name {'a model' if key == 'seed_model' else 'a folder'}")
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
        if any(item["loc"][0:1] == ("stages",) and len(item["loc"]) > 1 for item in problems):
            # pydantic counts good stages only, and says that there are none
            problems = [item for item in problems if item["loc"] != ("stages",)]
        raise UserError(f"recipe {path}:\n" + "\n".join(map(_problem, problems))) from None


_PART = r"[a-z]+(\[(-?\d+)?:(-?\d+)?\])?"


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, e.g. every.log=10")
    try:
        value = _plain_number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        # `train` without the quotes around encoder[0:2], which pdsh's shell takes away from whoever writes them
        value = [part.strip().strip("'\"") for part in text.strip()[1:-1].split(",")]
        if not (key.endswith(".train") and re.fullmatch(r"\s*\[.*\]\s*", text) and all(re.fullmatch(_PART, part) for part in value)):
            reason = str(error).splitlines()[0]
            raise UserError(f'--set {override}: the value is not YAML ({reason}); quote parts with brackets: ["encoder[0:2]"]') from None
    place: Any = settings
    *parents, last = key.split(".")
    try:
        for name in parents:
            if isinstance(place, dict) and place.get(name) is None:  # not there, or there with nothing after its colon
                place[name] = {}
            place = place[int(name) if isinstance(place, list) else name]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UserError(f"--set {override}: the recipe has no entry {key}; give one of those that recipe.yaml of a run shows") from None


def _plain_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; pydantic would take it for floats anyway, this makes it so everywhere."""
    try:
        return float(value) if isinstance(value, str) and "e" in value.lower() else value
    except ValueError:
        return value


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"  {where}: unknown key; remove it or fix its spelling"
    if item["type"] == "missing":
        return f"  {where}: missing, give it in the recipe or with --set {where}=..."
    message = item["msg"].removeprefix("Value error, ")
    found = "" if item["type"] == "value_error" else f" (found {item['input']!r})"
    return f"  {where}: {message}{found}"
