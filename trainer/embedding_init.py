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
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError
from trainer.lexicon import read_lexicon, translated_pieces
from trainer.pieces import Pieces
from trainer.static_vectors import static_vectors, unit_length

if TYPE_CHECKING:
    from data_tools.corpus import Corpus

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
