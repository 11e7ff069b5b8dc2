"""KLUE-RE rows: the 30 relations, and reading and checking a file of rows.

A row is a sentence with two marked entities and the relation between them. Files are KLUE's own (a JSON array) or JSON lines of
the same objects. Offsets count characters (Unicode code points) and the end is inclusive: `sentence[start : end + 1] == word`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError

NO_RELATION = "no_relation"
# The official order: an index into this tuple is the class number in every model, score and prediction file.
LABELS = (
    NO_RELATION,
    "org:dissolved",
    "org:founded",
    "org:place_of_headquarters",
    "org:alternate_names",
    "org:member_of",
    "org:members",
    "org:political/religious_affiliation",
    "org:product",
    "org:founded_by",
    "org:top_members/employees",
    "org:number_of_employees/members",
    "per:date_of_birth",
    "per:date_of_death",
    "per:place_of_birth",
    "per:place_of_death",
    "per:place_of_residence",
    "per:origin",
    "per:employee_of",
    "per:schools_attended",
    "per:alternate_names",
    "per:parents",
    "per:children",
    "per:siblings",
    "per:spouse",
    "per:other_family",
    "per:colleagues",
    "per:product",
    "per:religion",
    "per:title",
)
ENTITY_TYPES = ("PER", "ORG", "LOC", "DAT", "POH", "NOH")
MAX_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Entity:
    """A span of a sentence: characters `start` to `end`, the end inclusive, of one of ENTITY_TYPES."""

    word: str
    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Relation:
    """One checked row. `label` is a place in LABELS."""

    guid: str
    sentence: str
    subject: Entity
    object: Entity
    label: int


def read_relations(path: Path, labelled: bool = True) -> list[Relation]:
    """Read and check every row of a KLUE-RE file, in the file's order.

    labelled: whether guid and label must be there; without, a guid that is missing or null is the row's number, and the label no_relation,
    whatever it says. A labelled file is known by its contents, so that a pipe, which can be read only once, is none.
    Raises UserError once for the whole file: all its problems up to MAX_PROBLEMS_SHOWN, each with row number (from 1), guid and field.
    """
    if labelled and path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: expected a file, found a pipe or a device; write its rows to a file first")
    label_numbers = {label: number for number, label in enumerate(LABELS)}
    relations: list[Relation] = []
    problems: list[str] = []
    for number, (where, item) in enumerate(_read_items(path), start=1):
        if not labelled and isinstance(item, dict):
            item = {**item, "guid": str(number if item.get("guid") is None else item["guid"]), "label": NO_RELATION}
        row_problems = [f"{where}: {item}"] if isinstance(item, ValueError) else [f"{where}{p}" for p in _problems_of(item)]
        if row_problems:
            problems += row_problems
        else:
            relations.append(
                Relation(
                    guid=item["guid"],
                    sentence=item["sentence"],
                    subject=_entity(item["subject_entity"]),
                    object=_entity(item["object_entity"]),
                    label=label_numbers[item["label"]],
                )
            )
    if problems:
        raise UserError(_summary(path, problems))
    if not relations:
        raise UserError(f"{path}: expected KLUE-RE rows, found none; give a JSON array or JSON lines with at least one row")
    return relations


def conflicting_rows(rows: Sequence[Relation]) -> set[int]:
    """Numbers of the rows (from 0) that give one pair of entities in one sentence different labels: label noise that shows."""
    places: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        spans = (row.subject.start, row.subject.end, row.object.start, row.object.end)
        places.setdefault((row.sentence, *spans), []).append(number)
    return {number for numbers in places.values() if len({rows[n].label for n in numbers}) > 1 for number in numbers}


def _read_items(path: Path) -> list[tuple[str, Any]]:
    """(where, object) of every row; a line that is not JSON stands as a ValueError in its row's place."""
    if path.is_dir():
        raise UserError(f"{path}: expected a KLUE-RE file, found a folder; name the file inside it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected KLUE-RE rows as a JSON array or JSON lines") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x} at {error.start}; convert the file"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a KLUE-RE file") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; expected KLUE-RE rows as a JSON array or JSON lines")
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: expected a JSON array of KLUE-RE rows, found text that is not JSON ({error}); repair the file"
            ) from None
        return [(f"row {number}", item) for number, item in enumerate(items, start=1)]
    rows: list[tuple[str, Any]] = []
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines(): it also breaks at U+2028, which JSON allows inside strings
        if not line.strip():
            continue
        where = f"row {len(rows) + 1}"
        try:
            rows.append((where, json.loads(line)))
        except (ValueError, RecursionError) as error:
            rows.append((where, ValueError(f"line {number} is not JSON ({error})")))
    if all(isinstance(item, ValueError) for _, item in rows):
        raise UserError(
            f"{path}: not JSON: expected a JSON array of KLUE-RE rows or one JSON object a line, found: {rows[0][1]}; give KLUE's JSON"
        )
    return rows


def _problems_of(item: Any) -> list[str]:
    """What is wrong with a row, each as ' (guid), field: expected, found'; empty for a good row."""
    if not isinstance(item, dict):
        return [f": expected an object with guid, sentence, subject_entity, object_entity and label, found {_shown(item)}"]
    guid = item.get("guid")
    problems = []
    for field in ("guid", "sentence", "label"):
        problems += _text_problems(item, field, field)
    sentence = item.get("sentence")
    entity_problems = []
    for field in ("subject_entity", "object_entity"):
        entity_problems += _entity_problems(item, field, sentence if isinstance(sentence, str) and sentence else None)
    if not entity_problems:
        first, second = sorted((_entity(item["subject_entity"]), _entity(item["object_entity"])), key=lambda entity: entity.start)
        if second.start <= first.end:
            found = f"{first.start}-{first.end} and {second.start}-{second.end}"
            entity_problems.append(f"subject_entity, object_entity: expected spans that do not overlap, found {found}")
    label = item.get("label")
    if isinstance(label, str) and label and label not in LABELS:
        problems.append(f"label: expected one of KLUE-RE's {len(LABELS)} labels, found {_shown(label)}")
    name = f" (guid {guid})" if isinstance(guid, str) else ""
    return [f"{name}, {problem}" for problem in problems + entity_problems]


def has_lone_surrogate(text: str) -> bool:
    """Whether no tokenizer can read it: JSON can spell half of a surrogate pair, and Python makes one of a command line's bytes that are
    not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_problems(item: dict, field: str, name: str) -> list[str]:
    if field not in item:
        return [f"{name}: missing"]
    if not isinstance(item[field], str) or not item[field]:
        return [f"{name}: expected text, found {_shown(item[field])}"]
    if has_lone_surrogate(item[field]):
        return [f"{name}: expected valid Unicode, found a lone surrogate in {_shown(item[field])}"]
    return []


def _entity_problems(item: dict, field: str, sentence: str | None) -> list[str]:
    if field not in item:
        return [f"{field}: missing"]
    entity = item[field]
    if not isinstance(entity, dict):
        return [f"{field}: expected an object with word, start_idx, end_idx and type, found {_shown(entity)}"]
    problems = _text_problems(entity, "word", f"{field}.word") + _text_problems(entity, "type", f"{field}.type")
    for key in ("start_idx", "end_idx"):
        if key not in entity:
            problems.append(f"{field}.{key}: missing")
        elif not isinstance(entity[key], int) or isinstance(entity[key], bool):
            problems.append(f"{field}.{key}: expected a whole number, found {_shown(entity[key])}")
    if problems:
        return problems
    if entity["type"] not in ENTITY_TYPES:
        problems.append(f"{field}.type: expected one of {', '.join(ENTITY_TYPES)}, found {_shown(entity['type'])}")
    start, end = entity["start_idx"], entity["end_idx"]
    if sentence is not None:
        if not 0 <= start <= end < len(sentence):
            problems.append(f"{field}: expected 0 <= start_idx <= end_idx < {len(sentence)} (the sentence's length), found {start}-{end}")
        elif sentence[start : end + 1] != entity["word"]:
            found = _shown(sentence[start : end + 1])
            problems.append(
                f"{field}: expected the word {_shown(entity['word'])} at characters {start}-{end} (end inclusive), found {found}"
            )
    return problems


def _entity(fields: dict) -> Entity:
    return Entity(word=fields["word"], start=fields["start_idx"], end=fields["end_idx"], type=fields["type"])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _summary(path: Path, problems: list[str]) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN])
    rest = len(problems) - MAX_PROBLEMS_SHOWN
    more = f"\n  ... and {rest} more" if rest > 0 else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path}: {count} in the rows{shown}{more}\nCorrect these rows or take them out, then run the command again."
