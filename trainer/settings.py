"""What a fine-tuning run is started with, and the mark that it leaves in its output folder."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_tools import aside, lock
from data_tools.digest import sha256_of
from data_tools.errors import UserError
from trainer.recipe import read_yaml

INPUT_FORMATS = ("untyped", "typed", "typed-punct", "none")
HEADS = ("cls", "entities")
CONFLICTS = ("keep", "drop")
DEFAULT_MAX_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A fine-tuning run as the command line gives it."""

    model: str
    train_file: Path
    output_dir: Path
    eval_file: Path | None = None
    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-5
    warmup: float = 0.1
    input_format: str = "untyped"
    head: str = "cls"
    max_length: int = DEFAULT_MAX_LENGTH
    hold_out: float | None = None
    conflicts: str = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be meant."""
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(self, name)}; give a larger number")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed: expected 0 to {2**31 - 1}, found {self.seed}; give a number in between")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"--learning-rate: expected a number above 0, found {self.learning_rate}; give one such as 1e-5")
        if not 0 <= self.warmup < 1:
            raise UserError(f"--warmup: expected a share of the steps from 0 to below 1, found {self.warmup}; give one such as 0.1")
        for name, known in (("input_format", INPUT_FORMATS), ("head", HEADS), ("conflicts", CONFLICTS)):
            if getattr(self, name) not in known:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: expected one of {', '.join(known)}, found {getattr(self, name)!r}; give one of them")
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise UserError(f"--hold-out: expected a share of the sentences between 0 and 1, found {self.hold_out}; give one such as 0.1")


PER_RUN = ("model", "train_file", "output_dir", "eval_file", "seed")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings) if field.name not in PER_RUN}
"""What a recipe may set, and what holds without one."""


def load_recipe(path: Path) -> dict[str, Any]:
    """The settings of a fine-tuning recipe, a YAML file with keys of DEFAULTS. Raises UserError with all its problems."""
    try:
        given = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"--recipe {path}: no such file; give one such as recipes/klue_re_official.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--recipe {path}: expected YAML, found: {str(error).splitlines()[0]}; repair the file") from None
    if not isinstance(given, dict):
        raise UserError(f"--recipe {path}: expected `key: value` lines, found {type(given).__name__}; see recipes/klue_re_paper.yaml")
    problems, found = [], {}
    for key, value in given.items():
        if key not in DEFAULTS:
            problems.append(f"  {key}: unknown key; expected one of {', '.join(DEFAULTS)}")
            continue
        if isinstance(value, bool):  # `yes` and `on` are true to YAML
            problems.append(f"  {key}: expected no true or false")
            continue
        try:
            found[key] = TypeAdapter(Settings.__annotations__[key]).validate_python(value)  # reads 1e-5, which is text to YAML 1.1
        except ValidationError as error:
            problems.append(f"  {key}: {error.errors()[0]['msg']} (found {value!r})")
    if problems:
        raise UserError(f"--recipe {path}:\n" + "\n".join(problems) + "\nfix these lines, then run the command again")
    return found


def check_output(settings: Settings) -> None:
    """Raises UserError when the output folder is that of another run, or of something else; this run's own is held from now on."""
    output = settings.output_dir
    path = output / "settings.json"
    if not path.is_file():
        if output.exists() and (not output.is_dir() or {entry.name for entry in output.iterdir()} - {"lock", "settings.json.partial"}):
            raise UserError(
                f"--output-dir {output}: expected a new or empty folder, or one of an earlier run, found other files; give another"
            )
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict):
        raise UserError(f"{path}: expected the settings of a run as JSON, found something else; give another --output-dir")
    mine = _identity(settings)
    differing = [f"{key}: {theirs.get(key)} there, {mine[key]} now" for key in mine if theirs.get(key) != mine[key]]
    if differing:
        raise UserError(
            f"--output-dir {output}: expected a run of the same settings, found others ({'; '.join(differing)}); "
            "give another --output-dir, or the settings of that run to go on with it"
        )
    if not (output / "config.json").is_file():
        lock.hold(output)


def claim_output(settings: Settings, selection: str, eval_sha256: str, precision: str) -> None:
    """Make the output folder this run's own. selection: how the epoch is chosen. eval_sha256: of the evaluation file; empty without one."""
    path = settings.output_dir / "settings.json"
    # For people; not compared.
    given = {
        "model_given": settings.model,
        "train_file_given": str(settings.train_file),
        "selection": selection,
        "eval_sha256": eval_sha256,
        "precision": precision,
    }
    try:
        lock.hold(path.parent)
        if path.is_file():  # another process's, made since we looked, or ours that goes on
            check_output(settings)
            before = json.loads(path.read_text(encoding="utf-8"))
            given["eval_sha256"] = eval_sha256 or before.get("eval_sha256", "")  # of the scores that stand in metrics.jsonl
            if before.get("precision", precision) != precision:
                print(f"{path.parent}: begun in {before['precision']}, goes on in {precision}, as this machine has it", flush=True)
        if (path.parent / "config.json").is_file():
            raise UserError(f"--output-dir {path.parent}: another process has finished this run meanwhile; give the command again")
    except OSError as error:
        raise UserError(f"--output-dir {settings.output_dir}: cannot be written ({error.strerror}); give another") from None
    aside.write_text(path, json.dumps(_identity(settings) | given, indent=1) + "\n")


def _identity(settings: Settings) -> dict[str, Any]:
    """What makes two runs the same: the settings, with files by content. The evaluation file changes nothing in the training."""
    identity = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("output_dir", "eval_file", "train_file", "model")}
    folder = Path(settings.model)
    kinds = ("*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model", "*.spm")  # weights, configuration, every kind of tokenizer
    told = ("report.json", "settings.json", "table.json")  # what was found out about it, or how it came about
    files = sorted(path for kind in kinds for path in folder.glob(kind) if path.name not in told)
    model = f"contents {_digest(files)}" if files else settings.model
    return {"model": model, "train_file": f"contents {sha256_of(settings.train_file)[:16]}", **identity}


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while data := file.read(1 << 22):
                digest.update(data)
    return digest.hexdigest()[:16]
