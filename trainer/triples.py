"""What a relation classifier reads out of sentences: (subject, relation, object), with how likely it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_tools.errors import UserError
from trainer.classifier import Classifier, encode_rows, predict_probabilities
from trainer.relations import ENTITY_TYPES, LABELS, NO_RELATION, Entity, Relation, has_lone_surrogate


@dataclass(frozen=True)
class Triple:
    """One reading of one sentence."""

    subject: str
    relation: str
    object: str
    probability: float


def one_row(sentence: str, subject: str, object_: str, types: Sequence[str]) -> Relation:
    """A row from a sentence and its two entities' words. types: of subject and object; only typed input formats read them.

    Raises UserError when a word does not stand in the sentence, the two overlap, or a type is unknown. Of a word that stands there more
    than once the first place is taken that the other entity leaves free.
    """
    for flag, word in (("--sentence", sentence), ("--subject", subject), ("--object", object_)):
        if not word:
            raise UserError(f"{flag}: expected text, found none; give some")
        if has_lone_surrogate(word):  # what Python makes of bytes that are not UTF-8
            raise UserError(f"{flag} {word!r}: expected UTF-8, found other bytes; set the terminal to UTF-8")
    for kind in types:
        if kind not in ENTITY_TYPES:
            raise UserError(f"--types: expected two of {', '.join(ENTITY_TYPES)}, found {kind!r}; give two of them")
    first = _places(sentence, subject, "--subject")
    second = _places(sentence, object_, "--object")
    for start in first:
        for other in second:
            if start + len(subject) <= other or other + len(object_) <= start:
                return Relation(
                    "1", sentence, Entity(subject, start, start + len(subject) - 1, types[0]),
                    Entity(object_, other, other + len(object_) - 1, types[1]), LABELS.index(NO_RELATION),
                )  # fmt: skip
    raise UserError(f"--subject {subject!r}, --object {object_!r}: expected two places in the sentence, found the same; name other words")


def _places(sentence: str, word: str, flag: str) -> list[int]:
    places = [start for start in range(len(sentence)) if sentence.startswith(word, start)]
    if not places:
        raise UserError(f"{flag} {word!r}: expected a word of the sentence, found none in {sentence!r}; copy it from there")
    return places


def read_triples(classifier: Classifier, rows: Sequence[Relation], source: str, top: int = 1) -> Iterator[list[Triple]]:
    """The `top` most likely triples of each row, the likeliest first."""
    encoded = encode_rows(classifier, rows, source)
    for row, probabilities in zip(rows, predict_probabilities(classifier, encoded), strict=True):
        best = (-probabilities).argsort(kind="stable")[:top]  # of equal ones the first, as the scores take it
        yield [Triple(row.subject.word, LABELS[n], row.object.word, float(probabilities[n])) for n in best]
