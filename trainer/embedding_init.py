"""The first word embeddings of a new (Korean) vocabulary, made from those of an English seed model.

Methods: `random` (the paper), `source-statistics`, `dictionary`, `anchors`, `co-occurrences`. `dictionary` follows the idea of WECHSEL
(Minixhofer, Paischer and Rekabsaz, NAACL 2022), written anew: a Korean piece starts as a weighted mean of the English pieces that mean
something similar. What means something similar is found with word vectors made in seconds from the corpus's own tokens, and a kernel
ridge map from these into the seed's embedding space, learnt from a bilingual lexicon. Unlike WECHSEL no word vectors of the
English side are needed, the seed's own embeddings take their place, and pieces that both vocabularies share (digits, Latin,
punctuation) are copied. `anchors` is for languages without a lexicon: it learns the map from those shared pieces.
`co-occurrences` needs neither: the corpus's word vectors themselves take the place of the seed's embeddings, each principal axis
where one of the seed's is and as wide. What matters most in an embedding is how the pieces lie relative to each other (docs/results.md).

V: pieces of the new vocabulary, S: pieces of the seed's, H: hidden size, D: size of the static word vectors.
"""

import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.utils.extmath import randomized_svd
from tokenizers import decoders
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError

if TYPE_CHECKING:
    from data_tools.corpus import Corpus
    from data_tools.mmididx import IndexedDataset

STATIC_TOKENS = 2**24  # of the training split, to make the static vectors from
STRETCH = 2**16  # tokens in a row, where the split is too large to be read whole
CONTEXTS = 4096
WINDOW = 5
DIMENSIONS = 256
SINGULAR_POWER = 0.25
RIDGE = 0.5
KERNEL_GAMMA = 1.0
NEIGHBOURS = 10
TEMPERATURE = 0.1
HELD_OUT = 10  # every tenth translated word tells how good the map is
FEWEST_PAIRS = 20  # a map learnt from fewer would be noise


def initial_embeddings(
    method: str,
    seed_embeddings: torch.Tensor,
    seed_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    corpus: "Corpus | None",
    lexicon: Path | None,
    initializer_range: float,
    seed: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """(V, H) fp32 embeddings of `tokenizer`'s pieces, and a report of where they come from.

    seed_embeddings: (S, H) fp32, rows in the order of `seed_tokenizer`'s ids. method: `random`, N(0, initializer_range);
    `source-statistics`, N(mean, std) of each dimension of the seed's; `dictionary`, `anchors` and `co-occurrences`, see the module,
    need a corpus, `dictionary` also a lexicon.
    Deterministic in its arguments, but for the last bits of sums, which follow the number of threads. Raises UserError for a lexicon
    that is missing, malformed or of no use.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    source = seed_embeddings.detach().float().numpy()
    shape = (len(tokenizer), source.shape[1])
    report: dict[str, Any]
    if method == "random":
        rows, report = rng.normal(0.0, initializer_range, shape), {"random": shape[0]}
    elif method == "source-statistics":
        rows, report = _like_source(source, shape[0], rng), {"random": shape[0]}
    elif method == "dictionary":
        if lexicon is None:
            raise UserError("surgery.lexicon: embedding_init dictionary needs a file of english<TAB>korean lines, none was given")
        assert corpus is not None
        pairs = read_lexicon(lexicon)
        rows, report = _from_map(source, seed_tokenizer, tokenizer, corpus, pairs, f"lexicon {lexicon}", rng, seed)
    elif method == "anchors":
        assert corpus is not None
        rows, report = _from_map(source, seed_tokenizer, tokenizer, corpus, None, "surgery.embedding_init anchors", rng, seed)
    elif method == "co-occurrences":
        assert corpus is not None
        rows, report = _from_co_occurrences(source, seed_tokenizer, tokenizer, corpus, rng, seed)
    else:
        raise ValueError(f"unknown method of embedding initialisation {method!r}")
    report["seconds"] = round(time.perf_counter() - started, 2)
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)), report


def read_lexicon(path: Path) -> list[tuple[str, str]]:
    """The distinct (english, korean) pairs of a file of `english<TAB>korean` lines, lower-cased, in the file's order.

    Raises: UserError naming the file and the line.
    """
    try:
        lines = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig")).split("\n")  # as the vocabularies' pieces are
    except FileNotFoundError:
        raise UserError(f"lexicon {path}: no such file; expected lines of english<TAB>korean") from None
    except UnicodeDecodeError:
        raise UserError(f"lexicon {path}: not a UTF-8 text file; expected lines of english<TAB>korean") from None
    except OSError as error:
        raise UserError(f"lexicon {path}: cannot be read ({error.strerror}); expected lines of english<TAB>korean") from None
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sides = [side.strip().lower() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise UserError(f"lexicon {path}, line {number}: expected english<TAB>korean, found {line[:60]!r}; fix or remove the line")
        pairs[sides[0], sides[1]] = None
    if not pairs:
        raise UserError(f"lexicon {path}: empty; expected lines of english<TAB>korean")
    return list(pairs)


@dataclass(frozen=True)
class Pieces:
    """A vocabulary by what its pieces stand for: (at the start of a word?, text) -> id. Special pieces are left out."""

    ids: dict[tuple[bool, str], int]
    special: dict[str, int]
    """Role (bos, pad, eos, unk, mask) -> id."""
    cased: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Pieces":
        """Tells WordPiece (##ing), byte-level BPE (Ġword) and SentencePiece (▁word) apart by the marks of the pieces."""
        vocabulary, special_ids = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
        marks = {mark: sum(piece.startswith(mark) for piece in vocabulary) for mark in ("##", "Ġ", "▁")}
        mark = max(marks, key=lambda candidate: marks[candidate])
        bytes_to_text = decoders.ByteLevel()
        ids: dict[tuple[bool, str], int] = {}
        for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
            if number in special_ids:
                continue
            marked = piece.startswith(mark)
            text = piece.removeprefix(mark)
            if mark == "Ġ":
                text = bytes_to_text.decode([text])
                if "\ufffd" in text:  # part of a character
                    continue
            ids.setdefault((marked != (mark == "##"), text), number)
        roles = {
            "bos": (tokenizer.bos_token_id, tokenizer.cls_token_id),
            "pad": (tokenizer.pad_token_id,),
            "eos": (tokenizer.eos_token_id, tokenizer.sep_token_id),
            "unk": (tokenizer.unk_token_id,),
            "mask": (tokenizer.mask_token_id,),
        }
        special = {role: next((number for number in numbers if number is not None), None) for role, numbers in roles.items()}
        cased = any(text != text.lower() for _, text in ids)
        return cls(ids, {role: number for role, number in special.items() if number is not None}, cased)

    def find(self, text: str, initial: bool = True) -> int | None:
        """Id of the piece for `text`, preferably at that place in a word; a vocabulary without capitals is asked in lower case."""
        if not self.cased:
            text = text.lower()
        # signs and Chinese characters are words of their own in WordPiece; its ##-forms of these are never trained
        initial = initial or not any(character.isalnum() and character < "\u2e80" for character in text)
        for place in (initial, not initial):
            if (place, text) in self.ids:
                return self.ids[place, text]
        return None

    def shared_with(self, other: "Pieces") -> dict[int, int]:
        """Id here -> id there, of the pieces that `other` has too."""
        return {number: same for (initial, text), number in self.ids.items() if (same := other.find(text, initial)) is not None}

    def special_in(self, other: "Pieces") -> dict[int, int]:
        """Id here -> id there, of the special pieces whose role `other` has too."""
        return {number: other.special[role] for role, number in self.special.items() if role in other.special}

    def words(self) -> np.ndarray:
        """(W,) sorted ids of the pieces that are words of two letters or more."""
        return np.array(sorted(number for (initial, text), number in self.ids.items() if initial and text.isalpha() and len(text) > 1))

    def find_word(self, word: str) -> int | None:
        """Id of the piece for a lower-case word; names stand in a cased vocabulary with a capital only."""
        for spelling in (word, word.capitalize(), word.upper()):
            if (True, spelling) in self.ids:
                return self.ids[True, spelling]
        return self.ids.get((False, word))


def _english_pieces(seed_tokenizer: PreTrainedTokenizerBase, source: np.ndarray) -> Pieces:
    """Raises UserError for a seed whose tokenizer has pieces beyond its embeddings `source` (S, H)."""
    english = Pieces.of(seed_tokenizer)
    if (beyond := max(english.ids.values(), default=0)) >= len(source):
        raise UserError(f"the seed's tokenizer has a piece {beyond}, its model {len(source)} embeddings; give a seed whose two fit")
    return english


def _from_map(
    source: np.ndarray,
    seed_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    corpus: "Corpus",
    pairs: list[tuple[str, str]] | None,
    origin: str,
    rng: np.random.Generator,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """pairs: of a lexicon; without one the map is learnt from the pieces that both vocabularies have. origin: of the pairs, for people."""
    english, korean = _english_pieces(seed_tokenizer, source), Pieces.of(tokenizer)
    specials, copies = korean.special_in(english), korean.shared_with(english)
    found = translated_pieces(pairs or [], english, korean)
    translations = {number: meanings for number, meanings in found.items() if number not in copies}
    if pairs is None:
        anchors, given = {number: [same] for number, same in copies.items()}, f"the {len(copies)} shared pieces"
    else:
        anchors, given = translations, f"its {len(pairs)} pairs"
    single = f"{origin}: {len(anchors)} of {given} are single pieces of both vocabularies"
    _refuse_few(len(anchors), single, "a larger lexicon (english<TAB>korean)")
    static, seen = static_vectors(corpus.split("train"), len(tokenizer), seed)
    known = {number: meanings for number, meanings in anchors.items() if seen[number]}
    _refuse_few(len(known), f"{origin}: {len(known)} of the pieces with a known meaning stand in the corpus", "more text")

    centred, words = unit_length(source - source.mean(axis=0)), english.words()
    mapped = np.setdiff1d(np.flatnonzero(seen), [*copies, *korean.special.values()])
    neighbours: dict[int, np.ndarray] = {}
    if len(mapped):
        similarity, nearest = _nearest(_map_into(centred, static, known)[mapped], centred[words], NEIGHBOURS)
        neighbours = dict(zip(mapped.tolist(), _weighted_mean(similarity, nearest, source[words]), strict=True))
    composed = _compose(
        neighbours=neighbours,
        translations={number: source[meanings].mean(axis=0) for number, meanings in translations.items()},
        copies={number: source[same] for number, same in copies.items()},
    )
    rows = _like_source(source, len(tokenizer), rng)
    for number, row in composed.items():
        rows[number] = row
    rows[list(specials)] = source[list(specials.values())]
    counts = {
        "special": len(specials),
        "copied": len(copies),
        "translated": len(translations),
        "neighbours": len(set(mapped) - set(translations)),
    }
    return rows, {
        **counts,
        "random": len(rows) - sum(counts.values()),
        "lexicon_pairs": len(pairs or []),
        "map": _quality_of_map(centred, static, known, words, korean),
    }


def _refuse_few(count: int, known: str, remedy: str) -> None:
    """known: what there are `count` of to learn the map from, for people; remedy: what to give."""
    if count < FEWEST_PAIRS:
        raise UserError(f"{known}, expected {FEWEST_PAIRS} or more; give {remedy}, or use embedding_init source-statistics")


def _compose(
    neighbours: dict[int, np.ndarray], translations: dict[int, np.ndarray], copies: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Piece -> its row (H,). What is given: piece -> mean of the English pieces near it, mean of its translations, its copy. A piece that
    has the first two is half of each."""
    direct = {number: (neighbours[number] + row) / 2 if number in neighbours else row for number, row in translations.items()}
    return neighbours | direct | copies


def _from_co_occurrences(
    source: np.ndarray,
    seed_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    corpus: "Corpus",
    rng: np.random.Generator,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    english, korean = _english_pieces(seed_tokenizer, source), Pieces.of(tokenizer)
    rows = _like_source(source, len(tokenizer), rng)
    static, seen = static_vectors(corpus.split("train"), len(tokenizer), seed)
    known, words = np.flatnonzero(seen), source[english.words()]
    if min(len(known), len(words)) <= (axes := min(static.shape[1], source.shape[1])):
        raise UserError(
            f"surgery.embedding_init co-occurrences: {len(known)} pieces stand in the corpus, {len(words)} words in the seed's vocabulary, "
            f"expected more than {axes} of each; give more text, or use embedding_init source-statistics"
        )
    rows[known] = _in_the_place_of(words, static[known])
    specials = korean.special_in(english)
    rows[list(specials)] = source[list(specials.values())]
    return rows, {"special": len(specials), "co-occurrences": len(known), "random": len(rows) - len({*known, *specials})}


def _in_the_place_of(source: np.ndarray, static: np.ndarray) -> np.ndarray:
    """(N, H): static (N, D) about the mean of source (M, H), its n-th principal axis where source's is and as wide."""
    middle = source.mean(axis=0)
    _, widths, axes = np.linalg.svd(source - middle, full_matrices=False)
    own, _, _ = np.linalg.svd(static - static.mean(axis=0), full_matrices=False)
    count = min(own.shape[1], len(axes))
    placed: np.ndarray = middle + own[:, :count] * (widths[:count] * (len(static) / len(source)) ** 0.5) @ axes[:count]
    return placed


def _like_source(source: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, H) drawn from N(mean, std) of each dimension of `source`."""
    return rng.normal(source.mean(axis=0), source.std(axis=0), (count, source.shape[1]))


def translated_pieces(pairs: list[tuple[str, str]], english: Pieces, korean: Pieces) -> dict[int, list[int]]:
    """Korean piece -> its English pieces, of the pairs whose sides are single pieces."""
    found: dict[int, list[int]] = {}
    for english_word, korean_word in pairs:
        target = english.find_word(english_word)
        if target is None:
            continue
        for initial in (True, False):
            piece = korean.ids.get((initial, korean_word))
            if piece is not None and target not in found.setdefault(piece, []):
                found[piece].append(target)
    return found


def static_vectors(split: "IndexedDataset", vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, D) unit-length word vectors of the split's pieces, and (V,) which of them it holds.

    Truncated SVD of the positive pointwise mutual information with the commonest pieces before and after (Levy, Goldberg and
    Dagan, TACL 2015), counted in at most STATIC_TOKENS tokens. On corpora of this size far better than skip-gram vectors that
    take as long: with 12 million tokens 49 of 100 held-out pieces have a translation among the 10 nearest, not 31.
    """
    tokens = sample_of(split.tokens, STATIC_TOKENS)
    counts = np.bincount(tokens, minlength=vocab_size)
    size = min(CONTEXTS, vocab_size)
    column = np.full(vocab_size, size)  # contexts that are not counted share a last column
    column[np.argsort(-counts, kind="stable")[:size]] = np.arange(size)
    context = column[tokens]
    table = np.zeros((vocab_size, 2, size), dtype=np.float32)
    for distance in tqdm(range(1, WINDOW + 1), desc="counting co-occurrences", disable=None, leave=False):
        weight = (WINDOW + 1 - distance) / WINDOW
        places = (tokens[distance:], context[:-distance]), (tokens[:-distance], context[distance:])
        for side, (piece, other) in enumerate(places):
            together = np.bincount(piece * (size + 1) + other, minlength=vocab_size * (size + 1))
            counted = together.reshape(vocab_size, size + 1)
            for start in range(0, vocab_size, 4096):  # the products are float64: not of all at once
                table[start : start + 4096, side] += np.float32(weight) * counted[start : start + 4096, :size]
            del together, counted  # before the next, which is as large as the table
    dimensions = min(DIMENSIONS, vocab_size - 1)
    left, values, _ = randomized_svd(
        _positive_pmi(table.reshape(vocab_size, 2 * size)), dimensions, n_oversamples=32, n_iter=3, random_state=seed
    )
    return unit_length(left * values**SINGULAR_POWER), counts > 0


def sample_of(tokens: np.ndarray, count: int) -> np.ndarray:
    """(T,) int64: all tokens, or about `count` of them in stretches evenly spread over the split."""
    stretches = -(-len(tokens) // STRETCH)
    kept = min(stretches, count // STRETCH)
    chosen = np.arange(kept) * stretches // max(1, kept)
    return np.concatenate([tokens[number * STRETCH : (number + 1) * STRETCH] for number in chosen]).astype(np.int64)


def _positive_pmi(table: np.ndarray) -> np.ndarray:
    """Co-occurrence counts to positive pointwise mutual information, in place; context probabilities to the power 0.75."""
    pieces = table.sum(axis=1, keepdims=True)
    contexts = table.sum(axis=0) ** np.float32(0.75)
    table /= np.maximum(pieces, 1e-9)
    table /= np.maximum(contexts / contexts.sum(), 1e-30)
    return np.log(np.maximum(table, 1.0, out=table), out=table)


def _map_into(centred: np.ndarray, static: np.ndarray, translations: dict[int, list[int]]) -> np.ndarray:
    """(V, H) static vectors mapped to directions in the centred seed space, learnt from the translated pieces."""
    pieces = sorted(translations)
    directions = np.stack([centred[translations[number]].mean(axis=0) for number in pieces])
    mean = directions.mean(axis=0)
    ridge = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=KERNEL_GAMMA).fit(static[pieces], directions - mean)
    return unit_length(ridge.predict(static) + mean)


def held_out_pieces(pieces: Iterable[int], vocabulary: Pieces, every: int = HELD_OUT) -> list[int]:
    """Of these pieces, sorted, those of every `every`-th word: a word's piece at the start of words and its piece within them go together,
    since a lexicon translates both alike."""
    texts = {number: text for (_, text), number in vocabulary.ids.items()}
    chosen = set(list(dict.fromkeys(texts[number] for number in sorted(pieces)))[::every])
    return [number for number in sorted(pieces) if texts[number] in chosen]


def _quality_of_map(
    centred: np.ndarray, static: np.ndarray, translations: dict[int, list[int]], words: np.ndarray, korean: Pieces
) -> dict[str, Any]:
    """How often a translation is the nearest, or among the ten nearest, of all English words, for the held-out pieces under a map learnt
    from the others."""
    pieces = sorted(translations)
    held_out = held_out_pieces(pieces, korean)
    mapped = _map_into(centred, static, {number: translations[number] for number in pieces if number not in set(held_out)})
    _, nearest = _nearest(mapped[held_out], centred[words], 10)
    hits = np.array([np.isin(words[row], translations[number]) for number, row in zip(held_out, nearest, strict=True)])
    top1, top10 = float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
    return {"pairs": len(pieces), "held_out": len(held_out), "candidates": len(words), "top1": round(top1, 4), "top10": round(top10, 4)}


def _nearest(mapped: np.ndarray, words: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and places in `words` (N, count) of the rows of `words` (W, H) nearest to each row of `mapped` (N, H), all
    of unit length.

    Half of a word's mean cosine with its own nearest of the mapped rows is taken off, so that words which are near to everything
    do not crowd out the others (CSLS, Conneau et al., ICLR 2018, has the whole of it).
    """
    rows, candidates = torch.from_numpy(mapped).float(), torch.from_numpy(words).float()
    some = rows[:: -(-len(rows) // 1024)]
    crowding = (candidates @ some.T).topk(min(10, len(some)), dim=1).values.mean(dim=1) / 2
    parts = []
    for part in tqdm(rows.split(1024), desc="nearest English pieces", disable=None, leave=False):
        parts.append((part @ candidates.T - crowding).topk(min(count, len(candidates)), dim=1))
    return torch.cat([part.values for part in parts]).numpy(), torch.cat([part.indices for part in parts]).numpy()


def _weighted_mean(similarity: np.ndarray, nearest: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(N, H): the rows (W, H) named by `nearest` (N, k), weighted by the softmax of their similarity."""
    weights = np.exp((similarity - similarity[:, :1]) / TEMPERATURE)
    return np.einsum("nk,nkh->nh", weights / weights.sum(axis=1, keepdims=True), rows[nearest])


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Each row over its length; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
