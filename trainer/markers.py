"""Entity marking: from checked rows to token ids in which the two entities stand out.

Formats, shown for subject 김철수 (PER) and object 서울 (LOC) in `김철수는 서울에서`:

    untyped       <subj> 김철수</subj>는 <obj> 서울</obj>에서           KLUE's official input; four added special tokens
    typed         <subj:PER> 김철수</subj:PER>는 <obj:LOC> 서울</obj:LOC>에서     added special tokens for each entity type
    typed-punct   @*사람* 김철수@는 #^장소^ 서울#에서                 plain text (Zhou & Chen 2022), no added token
    none          김철수는 서울에서

Markers go in exactly at the offsets, and every token behind an end marker keeps what the sentence says about spaces. An end marker cuts
a word in two, and many tokenizers read what follows as the start of a word: as the official preprocessing does, that token is glued on
again (see `_Glue`). An opening marker hides the word start of the entity from tokenizers that look only at the space before it: where the
entity begins a word, a space goes behind the marker. To tokenizers that see a word start there anyway it changes nothing; inside a word
they see one, too, as with KLUE's own preprocessing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError
from trainer.relations import ENTITY_TYPES, Entity, Relation

WORD_START = "▁"  # U+2581, how SentencePiece writes the space before a word
BYTE_LEVEL_WORD_START = "Ġ"  # how byte-level BPE writes the same
PUNCTUATION = "@*#^"  # around the subject and its type, around the object and its type
TYPE_WORDS = {"PER": "사람", "ORG": "단체", "LOC": "장소", "DAT": "날짜", "POH": "기타", "NOH": "수량"}
BATCH_ROWS = 1000  # rows given to the tokenizer at once: it works on a batch in parallel


@dataclass(frozen=True)
class MarkedText:
    """A sentence with its markers in place.

    regions: character (start, end) of each entity with its markers, end exclusive, in the order of the text.
    """

    text: str
    regions: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class EncodedRelations:
    """Rows as model inputs.

    input_ids: each row's token ids, with the tokenizer's own special tokens around them.
    starts: each row's places of the subject's and of the object's first token: its marker, where the format has one.
    num_cut: how many rows were too long and had to be cut around their entities.
    """

    input_ids: list[list[int]]
    starts: list[tuple[int, int]]
    num_cut: int


def marker_tokens(input_format: str) -> list[str]:
    """The special tokens that a format always adds to the vocabulary, in a fixed order."""
    if input_format == "untyped":
        return ["<subj>", "</subj>", "<obj>", "</obj>"]
    if input_format == "typed":
        return [f"<{slash}{role}:{kind}>" for role in ("subj", "obj") for kind in ENTITY_TYPES for slash in ("", "/")]
    return []


def mark(row: Relation, input_format: str) -> MarkedText:
    """The sentence with its entities marked."""
    roles = sorted((("subj", row.subject), ("obj", row.object)), key=lambda pair: pair[1].start)
    text, position, regions = "", 0, []
    for role, entity in roles:
        opening, closing = _marker_pair(role, entity, input_format)
        text += row.sentence[position : entity.start]
        start = len(text)
        # An opening marker takes the place where the tokenizer would see the word begin; the space repeats it for the entity's first token.
        begins_word = opening and (entity.start == 0 or row.sentence[entity.start - 1].isspace())
        text += opening + (" " if begins_word else "") + row.sentence[entity.start : entity.end + 1] + closing
        regions.append((start, len(text)))
        position = entity.end + 1
    return MarkedText(text + row.sentence[position:], (regions[0], regions[1]))


def add_markers(tokenizer: PreTrainedTokenizerBase, input_format: str) -> int:
    """Add what the format needs to the tokenizer's special tokens; returns how many were new.

    Of typed-punct's signs only those are added that the tokenizer would read as its unknown token, which cannot tell the entities apart.
    """
    tokens = marker_tokens(input_format)
    if input_format == "typed-punct":
        tokens = [sign for sign in PUNCTUATION if tokenizer.unk_token_id in tokenizer(sign, add_special_tokens=False)["input_ids"]]
    vocabulary = tokenizer.get_vocab()
    tokens = [token for token in tokens if token not in vocabulary]
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return len(tokens)


def encode_relations(
    rows: Sequence[Relation],
    tokenizer: PreTrainedTokenizerBase,
    input_format: str,
    max_length: int,
    source: str = "the data",
    end_id: int | None = None,
) -> EncodedRelations:
    """Token ids of every row, at most `max_length` each, special tokens included; a longer row is cut around its entities.

    The tokenizer must be a fast one that knows the format's markers. `source` names the data in errors. `end_id`, if given, ends every
    row, once: encoder-decoders classify from the state of the end token, which some of their tokenizers do not write by themselves.
    Raises UserError where a sentence holds a marker's own text, or max_length leaves no room for two entities.
    """
    markers = marker_tokens(input_format)
    assert all(token in tokenizer.get_vocab() for token in markers), "add_markers comes first"
    for number, row in enumerate(rows, start=1):
        clash = next((token for token in markers if token in row.sentence), None)
        if clash:
            raise UserError(
                f"{source}: row {number} (guid {row.guid}), sentence: expected no entity marker of the format {input_format!r}, "
                f"found {clash!r}; take it out of the sentence"
            )
    prefix, suffix = special_frame(tokenizer)
    if end_id is not None and end_id not in suffix:
        suffix = [*suffix, end_id]
    budget = max_length - len(prefix) - len(suffix)
    if budget < 6:
        raise UserError(
            f"--max-length: expected at least {len(prefix) + len(suffix) + 6}, found {max_length}; two marked entities need the room"
        )
    encoded, starts, num_cut = [], [], 0
    control_ids = {*prefix, *suffix} - {tokenizer.unk_token_id}
    for row, (ids, regions) in zip(rows, _tokenize(rows, tokenizer, input_format, control_ids), strict=True):
        first, second = regions[0][0], regions[1][0]
        if len(ids) > budget:
            kept = keep_around(len(ids), regions, budget)
            ids, first, second = [ids[place] for place in kept], kept.index(first), kept.index(second)
            num_cut += 1
        encoded.append([*prefix, *ids, *suffix])
        first, second = len(prefix) + first, len(prefix) + second
        starts.append((first, second) if row.subject.start < row.object.start else (second, first))
    return EncodedRelations(encoded, starts, num_cut)


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text, such as ([CLS], [SEP])."""
    bare = tokenizer("가", add_special_tokens=False)["input_ids"]
    framed = tokenizer("가")["input_ids"]
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise AssertionError(f"{framed} does not hold {bare}")


def keep_around(num_tokens: int, regions: Sequence[tuple[int, int]], budget: int) -> list[int]:
    """The `budget` places of 0..num_tokens-1 to keep, in order, when a text must be cut around its two entities.

    regions: (start, end) places of each entity with its markers, end exclusive, in order. First come the outermost tokens of the
    regions (the markers), then the rest of the entities, then what lies between them, nearest to an entity first, then what lies
    around them, on both sides evenly until one runs out.
    """
    (first_start, first_end), (second_start, second_end) = regions
    place = np.arange(num_tokens)
    distance = np.full(num_tokens, num_tokens)
    for start, end in regions:
        distance = np.minimum(distance, np.maximum(np.maximum(start - place, place - (end - 1)), 0))
    between = (place >= first_end) & (place < second_start)
    edge = np.isin(place, [first_start, first_end - 1, second_start, second_end - 1])
    # Inside an entity that is itself too long, the tokens nearest to its start stay.
    inside = np.where(place >= second_start, place - second_start, place - first_start)
    group = np.where(distance == 0, np.where(edge, 0, 1), np.where(between, 2, 3))
    order = np.lexsort((np.where(group == 1, inside, distance), group))
    return np.sort(order[:budget]).tolist()


def _marker_pair(role: str, entity: Entity, input_format: str) -> tuple[str, str]:
    if input_format == "untyped":
        return f"<{role}>", f"</{role}>"
    if input_format == "typed":
        return f"<{role}:{entity.type}>", f"</{role}:{entity.type}>"
    if input_format == "typed-punct":
        outer, inner = tuple(PUNCTUATION[:2] if role == "subj" else PUNCTUATION[2:])
        return f"{outer}{inner}{TYPE_WORDS[entity.type]}{inner}", outer
    assert input_format == "none", input_format
    return "", ""


def _tokenize(
    rows: Sequence[Relation], tokenizer: PreTrainedTokenizerBase, input_format: str, control_ids: set[int]
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """(token ids, the two entities' token places) of each row, without the tokenizer's own special tokens.

    control_ids: what frames a row. Where a sentence spells such a token, say '</s>', it reads as the unknown token, if the tokenizer has
    one: an encoder-decoder would look there for the end of the row.
    """
    glue = _Glue(tokenizer)
    for begin in range(0, len(rows), BATCH_ROWS):
        marked = [mark(row, input_format) for row in rows[begin : begin + BATCH_ROWS]]
        batch = tokenizer([m.text for m in marked], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for m, ids, offsets in zip(marked, batch["input_ids"], batch["offset_mapping"], strict=True):
            if input_format != "none":
                ids, offsets = glue.apply(m, ids, offsets)
            if not control_ids.isdisjoint(ids):
                read = [tokenizer.unk_token_id if token_id in control_ids else token_id for token_id in ids]
                offsets = [span for span, token_id in zip(offsets, read, strict=True) if token_id is not None]
                ids = [token_id for token_id in read if token_id is not None]
            yield ids, [_places(region, offsets) for region in m.regions]


def _places(region: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last-plus-one token that touches a character region; at least one token long."""
    touching = [place for place, (start, end) in enumerate(offsets) if start < region[1] and end > region[0]]
    if not touching:  # the tokenizer dropped the entity's characters altogether
        place = max(0, min(sum(start < region[0] for start, _ in offsets), len(offsets) - 1))
        return place, place + 1
    return touching[0], touching[-1] + 1


class _Glue:
    """Undoes the word start that a tokenizer sees after an end marker which stands inside a word (`</subj>는`).

    SentencePiece: a lone U+2581 goes, a leading one is taken off. WordPiece: a token that begins with a Hangul letter gets its '##'.
    As the official code, with one difference: where the glued token is not in the vocabulary, official code gives an unknown
    token; here SentencePiece splits the rest of the token anew, and WordPiece keeps the token as it was. Byte-level BPE is treated as
    SentencePiece is: with add_prefix_space it writes a 'Ġ' after every marker.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = tokenizer.backend_tokenizer.model
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.tokens = {token_id: token for token, token_id in self.vocabulary.items()}
        self.special_ids = set(tokenizer.all_special_ids)
        self.wordpiece_prefix: str = getattr(self.model, "continuing_subword_prefix", None) or ""
        starts = () if self.wordpiece_prefix else (WORD_START, BYTE_LEVEL_WORD_START)
        self.word_start = next((start for start in starts if any(token.startswith(start) for token in self.vocabulary)), None)

    def apply(self, marked: MarkedText, ids: list[int], offsets: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """The glued ids, and the character span (start, end) of each."""
        for _, end in reversed(marked.regions):  # from the right, so that places to the left stay valid
            if end == len(marked.text) or marked.text[end].isspace():
                continue
            place = next((place for place, (start, _) in enumerate(offsets) if start >= end), None)
            if place is not None:
                glued = self._continued(ids[place])
                ids = [*ids[:place], *glued, *ids[place + 1 :]]
                offsets = [*offsets[:place], *[offsets[place]] * len(glued), *offsets[place + 1 :]]
        return ids, offsets

    def _continued(self, token_id: int) -> list[int]:
        """The token as it reads inside a word; none, one or several."""
        token = self.tokens[token_id]
        if token_id in self.special_ids:
            return [token_id]
        if self.word_start and token.startswith(self.word_start):
            rest = token.removeprefix(self.word_start)
            return [self.vocabulary[rest]] if rest in self.vocabulary else [piece.id for piece in self.model.tokenize(rest)] if rest else []
        if self.wordpiece_prefix and not token.startswith(self.wordpiece_prefix) and _is_hangul(token[0]):
            return [self.vocabulary.get(self.wordpiece_prefix + token, token_id)]
        return [token_id]


def _is_hangul(character: str) -> bool:
    """Whole syllables, or the single letters that an accent-stripping tokenizer takes them apart into."""
    return "가" <= character <= "힣" or "\u1100" <= character <= "\u11ff"
