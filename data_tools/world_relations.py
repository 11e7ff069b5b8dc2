"""Rows in KLUE-RE's format about the invented world.

What a sentence says follows from its slots: where `x` and `x.school` both occur in it, it says where x went to school. Two
mentions that no fact joins make a no_relation row; where the labels of KLUE-RE would be open to doubt, no row is made.

Training rows speak of the region "train" in the frames "train", evaluation rows of the region "eval" in the frames "eval": they
share no name, no fact and no frame. The facts of both are also told in the articles, in the frames "dump", so that a language
model may have read about the people of the evaluation rows, but no sentence of a row is a sentence of an article.
"""

import random
from dataclasses import dataclass
from typing import Any

from data_tools.world_facts import ORGANISATIONS, Day, Region, Thing, Value
from data_tools.world_scene import Scene, fits
from data_tools.world_text import Frame, Mention, Sentences

NO_RELATION = "no_relation"
NO_RELATION_SHARES = {"train": 0.30, "eval": 0.38}
_STRANGERS_SHARE = 0.5  # of the no_relation rows: frames that join nobody; the others mark an unrelated pair of a frame that says something

# fact: (label of owner -> value, label of value -> owner). None: KLUE-RE has a label for it, but we make no such rows.
_LABELS: dict[str, tuple[str | None, str | None]] = {
    "birth_date": ("per:date_of_birth", None),
    "birth_place": ("per:place_of_birth", None),
    "death_date": ("per:date_of_death", None),
    "residence": ("per:place_of_residence", None),
    "title": ("per:title", None),
    "post": ("per:title", None),
    "school": ("per:schools_attended", None),
    "employer": ("per:employee_of", None),
    "wife": ("per:spouse", "per:spouse"),
    "husband": ("per:spouse", "per:spouse"),
    "father": ("per:parents", None),
    "mother": ("per:parents", None),
    "son": ("per:children", None),
    "daughter": ("per:children", None),
    "child": ("per:children", None),
    "death_place": ("per:place_of_death", None),
    "started": (None, "org:founded_by"),
    "founded": ("org:founded", None),
    "founder": ("org:founded_by", None),
    "hq": ("org:place_of_headquarters", None),
    "head": ("org:top_members/employees", None),
    "worker": ("org:top_members/employees", None),
    "product": ("org:product", None),
    "group": ("org:member_of", None),
}
LABELS = tuple(dict.fromkeys(label for pair in _LABELS.values() for label in pair if label))
_FAMILY = ("wife", "husband", "father", "mother", "son", "daughter", "child")
_HOMES = ("birth_place", "residence", "death_place")
_STAFF = ("founder", "head", "worker")


@dataclass(frozen=True)
class Pair:
    """A subject and an object among the slots of a frame, and the label of the two."""

    subject: str
    object: str
    label: str


def pairs_of(frame: Frame) -> list[Pair]:
    """Every pair of slots of the frame that can be a row."""
    entities = [path for path in frame.mentioned if _is_entity(path)]
    found = []
    for subject in entities:
        for object_ in entities:
            label = _label(subject, object_) if subject != object_ and _can_be_subject(subject) else None
            if label:
                found.append(Pair(subject, object_, label))
    return found


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _is_entity(path: str) -> bool:
    return path == "x" or path.startswith("any_") or _last(path) in _LABELS


def _can_be_subject(path: str) -> bool:
    return path in ("x", "any_person", "any_org") or _last(path) in (*_FAMILY, *_STAFF, "employer", "started", "school", "group")


def _label(subject: str, object_: str) -> str | None:
    """The label of a pair of slots, NO_RELATION included; None where no row is to be made."""
    for owner, value, direction in ((subject, object_, 0), (object_, subject, 1)):
        if value.rpartition(".")[0] == owner:
            return _LABELS[_last(value)][direction]
    if subject.rpartition(".")[0] == object_.rpartition(".")[0]:
        both = {_last(subject), _last(object_)}
        # parents of one child, colleagues, where a family lives; and a post at an employer: KLUE-RE labels them now one way, now another
        if both <= {*_FAMILY} or both <= {*_STAFF} or both in ({"employer", "post"}, {"group", "product"}):
            return None
        if _last(subject) in _FAMILY and _last(object_) in _HOMES:
            return None
    if _last(object_) in ("title", "post") and not subject.startswith("any_") and subject != "x":
        return None
    return NO_RELATION


@dataclass(frozen=True)
class _Source:
    """A frame as a source of rows with one label: what it speaks of, and its wordings, each with a pair that has that label."""

    about: str
    frame: Frame
    choices: tuple[tuple[Frame, Pair], ...]


def _sources(split: str, sentences: Sentences) -> dict[str, list[_Source]]:
    """The sources of a split by label; by "strangers" those of frames that join nobody."""
    sources: dict[str, list[_Source]] = {}
    for (where, topic), frames in sentences.frames.items():
        for frame in frames if where == split else ():
            by_label: dict[str, list[tuple[Frame, Pair]]] = {}
            for wording in map(Frame, frame.wordings):
                for pair in pairs_of(wording):
                    by_label.setdefault("strangers" if topic.endswith("_none") else pair.label, []).append((wording, pair))
            for label, choices in by_label.items():
                sources.setdefault(label, []).append(_Source(topic.removesuffix("_none"), frame, tuple(choices)))
    return sources


def build_rows(split: str, num_rows: int, region: Region, sentences: Sentences, rng: random.Random) -> list[dict[str, Any]]:
    """Rows of a split ("train" or "eval"), no two alike; labels about equally often, apart from no_relation's share."""
    sources = _sources(split, sentences)
    anchors = {"person": region.things["person"], "org": region.organisations}
    fitting: dict[Frame, list[Thing]] = {}
    rows: list[dict[str, Any]] = []
    seen = set()
    for label in _label_plan(num_rows, NO_RELATION_SHARES[split], rng):
        while True:
            strangers = label == NO_RELATION and rng.random() < _STRANGERS_SHARE
            source = rng.choice(sources["strangers" if strangers else label])
            if source.frame not in fitting:
                fitting[source.frame] = [x for x in anchors[source.about] if fits(source.frame, x)]
            wording, pair = rng.choice(source.choices)
            row = _row(wording, pair, Scene(rng.choice(fitting[source.frame]), region, sentences.lists, rng))
            key = (row["sentence"], row["subject_entity"]["start_idx"], row["object_entity"]["start_idx"])
            if key not in seen:
                break
        seen.add(key)
        rows.append({"guid": f"klue-re-v1_{split}_{len(rows):05d}", **row})
    return rows


def _label_plan(num_rows: int, no_relation_share: float, rng: random.Random) -> list[str]:
    """The labels of the rows to come, shuffled."""
    none = round(num_rows * no_relation_share)
    plan = [NO_RELATION] * none + [LABELS[i % len(LABELS)] for i in range(num_rows - none)]
    rng.shuffle(plan)
    return plan


def _row(frame: Frame, pair: Pair, scene: Scene) -> dict[str, Any]:
    sentence, mentions = frame.render(scene.rng, scene.word_of)
    first: dict[str, Mention] = {}
    for mention in mentions:
        first.setdefault(mention.path, mention)
    return {
        "sentence": sentence,
        "subject_entity": _entity(first[pair.subject], scene.value_of(pair.subject)),
        "object_entity": _entity(first[pair.object], scene.value_of(pair.object)),
        "label": pair.label,
        "source": "world",
    }


def _entity(mention: Mention, value: Value) -> dict[str, Any]:
    """An entity as KLUE-RE writes it: the end is inclusive."""
    return {"word": mention.word, "start_idx": mention.start, "end_idx": mention.end - 1, "type": entity_type(value)}


def entity_type(value: Value) -> str:
    """KLUE-RE's type: PER, ORG, LOC, DAT, or POH for works, products and titles."""
    if isinstance(value, Day):
        return "DAT"
    kinds = {"person": "PER", "city": "LOC", "group": "ORG"} | dict.fromkeys(ORGANISATIONS, "ORG")
    return kinds.get(value.kind, "POH") if isinstance(value, Thing) else "POH"
