"""The catalogue of a survey of Korean and multilingual language models, and the short names by which `--model` knows them.

survey_models.csv and survey_objectives.csv hold it, every row with its source. An empty cell is something the survey does not say.
This file imports nothing heavy: a list of models has to appear at once.
"""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from data_tools.errors import UserError

MODELS = Path(__file__).with_name("survey_models.csv")
OBJECTIVES = Path(__file__).with_name("survey_objectives.csv")
SCOPES = ("korean", "multilingual", "english", "architecture")  # architecture: named as what another model was made after
STRUCTURES = ("encoder", "decoder", "encoder-decoder")
NOT_SAID = "~"  # the sign that the survey's own figure has for it


@dataclass(frozen=True)
class Model:
    """A row of survey_models.csv; every field is text.

    objectives: abbreviations, joined by "; ", as other lists are. hub_id: with its evidence, which begins with "unverified" where
    there is none. not_runnable: why `--model` refuses it; empty means that nothing known stands against it. implied: the fields, separated
    by spaces, that the survey does not say outright, but which follow from what the model was made after.
    """

    short: str
    name: str
    scope: str
    structure: str
    objectives: str
    parameters: str
    vocabulary: str
    tokenizer: str
    corpus: str
    corpus_size: str
    released_by: str
    date: str
    public: str
    hub_id: str
    evidence: str
    not_runnable: str
    implied: str
    source: str
    notes: str

    @property
    def runs(self) -> str:
        """yes, unverified (nobody has shown that the Hub id is right) or no."""
        if self.not_runnable:
            return "no"
        return "unverified" if self.evidence.startswith("unverified") else "yes"

    @property
    def all_text(self) -> str:
        """What it learnt from, and how much."""
        return ", ".join(part for part in (self.corpus, self.corpus_size) if part)


@dataclass(frozen=True)
class Objective:
    """A row of survey_objectives.csv. supervision: "supervised" needs more than text as it is found: translations, or marked entities.

    introduced_by: the model known for it where the survey names none; that is general knowledge, not the survey's.
    """

    abbreviation: str
    name: str
    does: str
    supervision: str
    data: str
    introduced_by: str
    source: str
    notes: str


def read_objectives(path: Path = OBJECTIVES) -> list[Objective]:
    return [Objective(**row) for row in _rows(path, [field.name for field in fields(Objective)])]


def read_models(path: Path = MODELS) -> list[Model]:
    """All models, in the file's order. Raises ValueError where the file breaks its own rules: that is our bug, not the user's."""
    models = [Model(**row) for row in _rows(path, [field.name for field in fields(Model)])]
    objectives = {objective.abbreviation for objective in read_objectives()}
    problems = [f"{path.name}, {model.short}: {problem}" for model in models for problem in _problems(model, objectives)]
    for key in ("short", "name"):
        values = [getattr(model, key).lower() for model in models]
        problems += [f"{path.name}: {key} {value!r} appears twice" for value in sorted({v for v in values if values.count(v) > 1})]
    if problems:
        raise ValueError("\n".join(problems))
    return models


def select(models: Sequence[Model], scope: str | None = None, structure: str | None = None, runnable: bool = False) -> list[Model]:
    """Those that meet every condition given. `runnable` lets unverified Hub ids pass."""
    return [
        model
        for model in models
        if scope in (None, model.scope) and structure in (None, model.structure) and not (runnable and model.not_runnable)
    ]


def resolve_model(given: str) -> str:
    """The Hub id that a short name stands for; a folder, and anything that is no name in the catalogue, comes back as it is.

    Raises UserError for a model of the catalogue that cannot be run, and says why.
    """
    model = _by_short_name().get(given.lower())
    if model is None or Path(given).exists():  # a folder of that name is what commands meant before there were short names
        return given
    if model.not_runnable:
        raise UserError(
            f"--model {given}: {model.name} cannot be run: {model.not_runnable}; "
            "take one that `klue_re.py models --runnable` lists, or give a model folder or Hub id"
        )
    return model.hub_id


def resolve_named(given: str) -> str:
    """The same for `compare`'s NAME=MODEL. A short name alone is its own name in the table."""
    name, equals, source = given.partition("=")
    if equals:
        return f"{name}={resolve_model(source)}"
    return f"{given}={resolve_model(given)}" if given.lower() in _by_short_name() else given


def as_csv(models: Sequence[Model]) -> str:
    """All fields, in the form that `read_models` reads."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(Model)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(model) for model in models)
    return stream.getvalue()


def as_markdown(models: Sequence[Model]) -> str:
    """A table with the survey's properties; what it only implies is in italics. The last cell is what `--model` makes of the name."""
    header = ("model", "`--model`", "structure", "objective", "vocabulary", "size", "corpus", "tokenizer", "released by", "date", "Hub id")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for model in models:
        implied = model.implied.split()
        shown = {"vocabulary": grouped(model.vocabulary), "corpus": model.all_text}
        cells = [model.name, f"`{model.short}`"]
        for field in ("structure", "objectives", "vocabulary", "parameters", "corpus", "tokenizer", "released_by", "date"):
            value = shown.get(field, getattr(model, field)) or NOT_SAID
            cells.append(f"*{value}*" if field in implied else value)
        sign = " (unverified)" if model.runs == "unverified" else ""
        cells.append(f"not runnable: {model.not_runnable}" if model.not_runnable else f"`{model.hub_id}`{sign}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_text(models: Sequence[Model], width: int) -> str:
    """A table for a terminal of that width: long cells go on in the lines below."""
    table = [("--model", "structure", "objective", "vocabulary", "size", "corpus", "tokenizer", "released by", "date", "runs")]
    for m in models:
        properties = (m.structure, m.objectives, grouped(m.vocabulary), m.parameters, m.all_text, m.tokenizer, m.released_by, m.date)
        table.append((m.short, *(value or NOT_SAID for value in properties), m.runs))  # type: ignore[arg-type]
    columns = list(zip(*table, strict=True))
    widths = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    room = width - 2 * (len(columns) - 1)
    while sum(widths) > room and max(widths) > 8:  # a narrow terminal: the widest gives way first
        widths[widths.index(max(widths))] -= 1
    wanted = [max(map(len, column)) for column in columns]
    while sum(widths) < room and widths != wanted:  # else what is left goes where most letters stand above each other
        narrow = [place for place, wide in enumerate(widths) if wide < wanted[place]]
        widths[max(narrow, key=lambda place: sum(map(len, columns[place])) / widths[place])] += 1
    lines = []
    for row in table:
        cells = [textwrap.wrap(value, wide) for value, wide in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (cell[number] if number < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(wide) for part, wide in zip(parts, widths, strict=True)).rstrip())
        if row is table[0]:
            lines.append("  ".join("-" * wide for wide in widths))
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    lines += ["", f"{count}. {NOT_SAID}: the survey does not say. runs: whether `--model` takes the name (--format markdown says why not);"]
    lines.append("unverified: the Hub id is from general knowledge, and nobody looked it up.")
    return "\n".join(lines)


def grouped(text: str) -> str:
    """Long numbers with commas; the file has them without, since commas stand between its cells."""
    return re.sub(r"\d{4,}", lambda match: f"{int(match[0]):,}", text)


@cache
def _by_short_name() -> dict[str, Model]:
    return {model.short: model for model in read_models()}


def _rows(path: Path, expected: list[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    if reader.fieldnames != expected:
        raise ValueError(f"{path.name}: expected the columns {', '.join(expected)}, found {', '.join(reader.fieldnames or ['none'])}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path.name}, row {number}: expected {len(expected)} cells, found more or fewer")
    return rows


def _problems(model: Model, objectives: set[str]) -> list[str]:
    allowed = {"scope": SCOPES, "structure": (*STRUCTURES, ""), "public": ("yes", "no", "announced", "")}
    problems = [f"{field}: found {getattr(model, field)!r}" for field, values in allowed.items() if getattr(model, field) not in values]
    patterns = {"short": r"[a-z0-9][a-z0-9-]*", "date": r"(20\d\d-(0[1-9]|1[0-2]))?", "hub_id": r"([\w.-]+/)?[\w.-]+|", "source": r".+"}
    problems += [
        f"{field}: found {getattr(model, field)!r}" for field, form in patterns.items() if not re.fullmatch(form, getattr(model, field))
    ]
    problems += [
        f"objectives: {name!r} is not in {OBJECTIVES.name}" for name in filter(None, model.objectives.split("; ")) if name not in objectives
    ]
    problems += [f"implied: {name!r} is no field with a value" for name in model.implied.split() if not getattr(model, name, "")]
    if bool(model.hub_id) != bool(model.evidence):
        problems.append("evidence: expected for each Hub id, and only there")
    if not model.hub_id and not model.not_runnable:
        problems.append("not_runnable: expected a reason where there is no Hub id")
    return problems
