"""Makes the survey's page and its two figures, from the catalogue alone.

    python benchmarks/survey_figures.py

Writes docs/korean_models.md, docs/korean_models_timeline.png (the survey's Fig. 1) and docs/multilingual_objectives.png (its Fig. 2). A
picture carries the checksum of the catalogue it was drawn from, so that a test can tell when it is out of date.
"""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.catalogue import (
    MODELS,
    NOT_SAID,
    OBJECTIVES,
    STRUCTURES,
    Model,
    Objective,
    as_markdown,
    grouped,
    read_models,
    read_objectives,
    select,
)

PAGE = Path("docs/korean_models.md")
TIMELINE = Path("docs/korean_models_timeline.png")
MATRIX = Path("docs/multilingual_objectives.png")
INK, GREY, FAINT, LINE = "#1f2933", "#55616d", "#8a949e", "#d5dbe1"
COLOURS = {"encoder": "#1b6ca8", "decoder": "#b3541e", "encoder-decoder": "#2f7d4f", "": "#66727f"}
TINTS = {"encoder": "#eaf3fa", "decoder": "#fdf1e8", "encoder-decoder": "#eaf6ee", "": "#f3f4f6"}
SUPERVISION = {"unsupervised": "#1b6ca8", "supervised": "#b3541e", "": "#66727f"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def checksum() -> str:
    return hashlib.sha256(MODELS.read_bytes() + OBJECTIVES.read_bytes()).hexdigest()


def timeline(models: Sequence[Model]) -> Any:
    """Fig. 1: time goes down the page, a column for each structure, a card for each model. Units are inches."""
    from matplotlib import pyplot

    rows: list[tuple[str, dict[str, Model]]] = []  # a month gets as many rows as its fullest column has models
    for month, group in groupby(sorted(models, key=lambda model: model.date), key=lambda model: model.date):
        begin = len(rows)
        for model in group:
            place = next((row for row in rows[begin:] if model.structure and model.structure not in row[1]), None)
            if place is None:
                place = (month, {})
                rows.append(place)
            place[1][model.structure] = model
    left, wide, top = 1.2, 4.25, 0.62
    lines = [max(len(_card_lines(model)) for model in row.values()) for _, row in rows]
    height = top + sum(_card_height(number) + 0.13 for number in lines) + 0.1
    figure = pyplot.figure(figsize=(left + 3 * wide + 0.1, height), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, left + 3 * wide + 0.1), ylim=(height, 0))
    axes.axis("off")
    for column, structure in enumerate(STRUCTURES):
        x = left + column * wide
        axes.add_patch(pyplot.Rectangle((x + 0.02, top - 0.06), wide - 0.04, height, facecolor="#fafbfc", linewidth=0, zorder=0))
        axes.text(x + wide / 2, top / 2, structure, ha="center", va="center", fontsize=17, weight="bold", color=COLOURS[structure])
    _how_to_read(axes, left + 2 * wide + 0.1, top + 0.1, wide - 0.2)
    y, last = top + 0.06, ""
    for (month, row), number in zip(rows, lines, strict=True):
        if month[:4] != last[:4]:
            axes.plot([0.1, left + 3 * wide], [y - 0.065, y - 0.065], color="#c3cbd3", linewidth=1.2, zorder=0.5)
            axes.text(0.12, y + 0.2, month[:4], fontsize=16, weight="bold", color=INK, va="center")
        if month != last:
            axes.text(left - 0.06, y + 0.2, MONTHS[int(month[5:]) - 1], fontsize=13, color=GREY, va="center", ha="right")
        for structure, model in row.items():
            place_x = left + wide * (STRUCTURES.index(structure) if structure else 1)
            _card(axes, place_x + 0.1, y, wide - 0.2, model)
        y, last = y + _card_height(number) + 0.13, month
    return figure


def _card_lines(model: Model) -> list[tuple[str, str]]:
    """The lines below a card's head, each with its colour: how it learnt and reads, then what it learnt from."""
    parts = {"objective": model.objectives.replace("; ", " + "), "vocabulary": grouped(model.vocabulary), "tokenizer": model.tokenizer}
    said = [f"vocabulary {value}" if field == "vocabulary" else value for field, value in parts.items() if value]
    silent = [field for field, value in parts.items() if not value] + ([] if model.all_text else ["corpus"])
    lines = [(line.removesuffix(" ·"), INK) for line in textwrap.wrap(" · ".join(said).replace("; ", " / "), 46)]
    lines += [(line, GREY) for line in textwrap.wrap(model.all_text.replace("; ", ", ").replace(" GB", "\u00a0GB"), 45)]
    return lines + ([(f"{NOT_SAID} {', '.join(silent)}", FAINT)] if silent else [])


def _card_height(lines: int) -> float:
    return 0.42 + 0.205 * lines


def _card(axes: Any, x: float, y: float, width: float, model: Model) -> None:
    """Name and size, then the lines; the frame is dashed where the structure is not known."""
    from matplotlib.patches import FancyBboxPatch

    colour, lines = COLOURS[model.structure], _card_lines(model)
    style = {"facecolor": TINTS[model.structure], "edgecolor": colour, "linestyle": "-" if model.structure else (0, (4, 3))}
    axes.add_patch(FancyBboxPatch((x, y), width, _card_height(len(lines)), boxstyle="round,pad=0,rounding_size=0.08", linewidth=1, **style))
    face = "white" if model.not_runnable else colour
    axes.plot([x + 0.18], [y + 0.2], marker="o", markersize=8, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.4)
    axes.text(x + 0.33, y + 0.2, model.name, fontsize=13, weight="bold", color=INK, va="center")
    sizes = model.parameters.split("; ")
    size = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 2 else " / ".join(sizes)
    axes.text(x + width - 0.12, y + 0.2, size or NOT_SAID, fontsize=12, color=colour, va="center", ha="right", weight="bold")
    for number, (text, shade) in enumerate(lines):
        axes.text(x + 0.12, y + 0.475 + 0.205 * number, text, fontsize=10.5, color=shade, va="center")


def _how_to_read(axes: Any, x: float, y: float, width: float) -> None:
    """The key, where the timeline has nothing else: no model with encoder and decoder came out before the end of 2020."""
    axes.text(x + 0.12, y + 0.2, "How to read a card", fontsize=12, weight="bold", color=GREY, va="center")
    for number, (face, text) in enumerate(
        ((GREY, "klue_re.py --model takes its short name"), ("white", "it does not: the table says why"))
    ):
        axes.plot(
            [x + 0.18], [y + 0.52 + 0.27 * number], "o", markersize=8, markerfacecolor=face, markeredgecolor=GREY, markeredgewidth=1.4
        )
        axes.text(x + 0.36, y + 0.52 + 0.27 * number, text, fontsize=10.5, color=GREY, va="center")
    signs = (
        (NOT_SAID, "the survey does not say"),
        ("- -", "dashed: not even the structure"),
        ("M, B", "millions and billions of parameters"),
    )
    for number, (sign, text) in enumerate(signs):
        axes.text(x + 0.11, y + 1.06 + 0.25 * number, sign, fontsize=10.5, color=GREY, va="center", weight="bold")
        axes.text(x + 0.65, y + 1.06 + 0.25 * number, text, fontsize=10.5, color=GREY, va="center")


@dataclass(frozen=True)
class Column:
    """A model of Fig. 2."""

    name: str
    size: str
    structure: str
    objectives: set[str]
    surveyed: bool
    """Whether the survey's catalogue lists it."""


def matrix_columns(models: Sequence[Model], objectives: Sequence[Objective]) -> list[Column]:
    """By structure; after the encoders of the catalogue the ones that an objective is known from."""
    columns = []
    for structure in STRUCTURES:
        for model in select(models, "multilingual", structure):
            surveyed = "not in the survey" not in model.source
            columns.append(Column(model.name, model.parameters, structure, set(model.objectives.split("; ")), surveyed))
        if structure == "encoder":
            for name in dict.fromkeys(objective.introduced_by for objective in objectives if objective.introduced_by):
                known = {objective.abbreviation for objective in objectives if objective.introduced_by == name}
                columns.append(Column(name, "", structure, known, False))
    return columns


def matrix(models: Sequence[Model], objectives: Sequence[Objective]) -> Any:
    """Fig. 2: which multilingual model learns by which objective; colour says what the objective needs."""
    from matplotlib import pyplot

    columns = matrix_columns(models, objectives)
    rows = [objective for objective in objectives if any(objective.abbreviation in column.objectives for column in columns)]
    figure, axes = pyplot.subplots(figsize=(13.4, 0.36 * len(rows) + 2.7), dpi=100)
    for number, objective in enumerate(rows):
        _matrix_row(axes, number, objective, columns)
    for place, column in enumerate(columns):
        _matrix_head(axes, place, column, len(rows) - 0.5)
    _matrix_structures(axes, columns, len(rows) - 0.1)
    _matrix_legend(axes, len(rows) + 1.75)
    axes.set(xlim=(-7.6, len(columns) - 0.3), ylim=(len(rows) + 2.2, -4.3))
    axes.axis("off")
    figure.subplots_adjust(0.01, 0.005, 0.99, 0.995)
    return figure


def _matrix_row(axes: Any, number: int, objective: Objective, columns: Sequence[Column]) -> None:
    """An objective: its names, and a circle in the column of each model that learns by it."""
    colour = SUPERVISION[objective.supervision]
    if number % 2 == 0:
        axes.axhspan(number - 0.5, number + 0.5, color="#f6f8fa", zorder=0, linewidth=0)
    axes.text(-7.5, number, objective.abbreviation, fontsize=12, weight="bold", color=colour, va="center", family="monospace")
    axes.text(-6.05, number, objective.name, fontsize=11.5, color=INK, va="center")
    for place, column in enumerate(columns):
        if objective.abbreviation in column.objectives:
            face = colour if column.surveyed else "white"
            axes.plot([place], [number], "o", markersize=11.5, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.8)


def _matrix_head(axes: Any, place: int, column: Column, bottom: float) -> None:
    """A model: its name and size above a line through its circles."""
    axes.plot([place, place], [-0.5, bottom], color=LINE, linewidth=0.8, zorder=0.5)
    title = f"{column.name}  {column.size.split()[0]}" if column.size else column.name
    weight, shade = ("bold", INK) if column.surveyed else ("normal", GREY)
    slanted = {"rotation": 55, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
    axes.text(place - 0.12, -0.75, title, fontsize=12, color=shade, weight=weight, **slanted)


def _matrix_structures(axes: Any, columns: Sequence[Column], y: float) -> None:
    """Below the columns: whose structure is what."""
    begin = 0
    for structure, group in groupby(columns, key=lambda column: column.structure):
        end = begin + len(list(group))
        colour, middle = COLOURS[structure], (begin + end - 1) / 2
        axes.plot([begin - 0.35, end - 0.65], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
        axes.text(middle, y + 0.75, structure, fontsize=11.5, weight="bold", color=colour, ha="center", va="center")
        begin = end


def _matrix_legend(axes: Any, y: float) -> None:
    x = -7.4
    for colour, text, room in (
        (SUPERVISION["unsupervised"], "needs only text", 3.3),
        (SUPERVISION["supervised"], "needs translations or marked entities", 6.4),
        (SUPERVISION[""], "the survey does not say", 4.3),
    ):
        axes.plot([x], [y], "o", markersize=9, color=colour)
        axes.text(x + 0.28, y, text, fontsize=11.5, color=INK, va="center")
        x += room
    axes.plot([x], [y], "o", markersize=9, markerfacecolor="white", markeredgecolor=GREY, markeredgewidth=1.6)
    axes.text(x + 0.28, y, "hollow: ours, not the survey's", fontsize=11.5, color=INK, va="center")


def page(models: Sequence[Model], objectives: Sequence[Objective]) -> str:
    """docs/korean_models.md."""
    korean, multilingual = select(models, "korean"), select(models, "multilingual")
    others = [model for model in models if model not in korean + multilingual]
    said_by = {o.abbreviation: [m.name for m in models if o.abbreviation in m.objectives.split("; ")] for o in objectives}
    objective_rows = [
        f"| {o.abbreviation} | {o.name} | {o.does} | {o.data or NOT_SAID} | {o.supervision or NOT_SAID} | "
        f"{', '.join(said_by[o.abbreviation]) or f'*{o.introduced_by}*'} | {o.source.removeprefix('survey, ')} |"
        for o in objectives
    ]
    evidence = [f"| `{m.short}` | `{m.hub_id}` | {m.evidence} |" for m in models if m.hub_id]
    remarks = [f"| {m.name} | {m.source.removeprefix('survey, ')} | {m.notes or '-'} |" for m in models]
    remarks += [f"| {o.abbreviation} | {o.source.removeprefix('survey, ')} | {o.notes} |" for o in objectives if o.notes]
    running = len(select(models, runnable=True))
    unverified = ", ".join(f"`{m.short}`" for m in models if m.runs == "unverified")
    return f"""# Korean and multilingual language models

<!-- Written by benchmarks/survey_figures.py from trainer/survey_models.csv and trainer/survey_objectives.csv; edit those. -->

What a survey of late 2021 says of {len(korean)} Korean models and {len(multilingual) - 1} multilingual ones, in our own words, and
which of them `--model` knows by a short name. The same table on the terminal, at once:

```sh
python trainer/klue_re.py models                                   # --scope korean|multilingual|english|architecture
python trainer/klue_re.py models --structure encoder --runnable    # --format text|markdown|csv
python trainer/klue_re.py compare --model klue-bert mbert xpt=run/model --train-file F --eval-file F --output-dir D
```

How to read it:

* **{NOT_SAID}** is what the survey does not say. *Italics*: it does not say so outright, but the model it was made after implies it.
* **`--model`** is the short name; a folder of that name in the working directory goes before it. {running} of {len(models)} names
  run; for the others the last column says why not, and so does the command.
* **unverified** ({unverified}): the Hub id is from general knowledge and nobody looked it up.
* "Runs" is what the catalogue knows: weights on the Hub, and no code but transformers' own. Nothing was downloaded to try it.
* That a tokenizer cannot be loaded, or that no Hub id is known, is general knowledge too. A full Hub id is never held back.
* Objectives are abbreviated; [their table](#objectives) is below.

## Fig. 1: Korean models over time, by structure

![{len(korean)} Korean models from June 2019 to December 2021, in a column for each structure]({TIMELINE.name})

{as_markdown(korean)}

## Fig. 2: multilingual models and their objectives

![Which multilingual model learns by which objective]({MATRIX.name})

The survey describes the objectives of the later encoders without naming the models. The hollow circles are ours: XLM-R, and the
model that each of these objectives is known from.

{as_markdown(multilingual)}

## English models and architectures

{as_markdown(others)}

## Objectives

*Supervised* needs more than text as it is found: translations, or marked entities. The survey itself calls TLM and MEP supervised and MMLM
unsupervised; for the others it follows from the data. A model in italics is not named by the survey.

| objective | in full | what it does | data | supervision | models | section |
|---|---|---|---|---|---|---|
{chr(10).join(objective_rows)}

## Where the Hub ids come from

| `--model` | Hub id | evidence |
|---|---|---|
{chr(10).join(evidence)}

## Sources and remarks

| row | section | remark |
|---|---|---|
{chr(10).join(remarks)}
"""


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    models, objectives = read_models(), read_objectives()
    for path, figure in ((TIMELINE, timeline(select(models, "korean"))), (MATRIX, matrix(models, objectives))):
        figure.savefig(path, facecolor="white", metadata={"Description": checksum()})
        print(path)
    PAGE.write_text(page(models, objectives), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
