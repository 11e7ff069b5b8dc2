"""The first word embeddings of a new (Korean) vocabulary, made from those of an English seed model.

Methods: `random` (the paper), `source-statistics`, `dictionary`. The last follows the idea of WECHSEL (Minixhofer, Paischer
and Rekabsaz, NAACL 2022), written anew: a Korean piece starts as a weighted mean of the English pieces that mean something
similar. What means something similar is found with word vectors trained in seconds on the corpus's own tokens, and a ridge
map from these into the seed's embedding space, learnt from a bilingual lexicon. Unlike WECHSEL no word vectors of the
English side are needed, the seed's own embeddings take their place, and pieces that both vocabularies share (digits, Latin,
punctuation) are copied.

V: pieces of the new vocabulary, S: pieces of the seed's, H: hidden size, D: size of the static word vectors.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import decoders
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError

if TYPE_CHECKING:
    from data_tools.corpus import Corpus
    from data_tools.mmididx import IndexedDataset

STATIC_TOKENS = 2_000_000  # tokens of the training split that the static vectors are made from
STATIC_EPOCHS = 2
STATIC_SIZE = 128
STATIC_WINDOW = 5
RIDGE = 0.1  # penalty per pair, for unit-length static vectors
NEIGHBOURS = 10
TEMPERATURE = 0.1
HELD_OUT = 10  # every tenth translated piece tells how good the map is
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
    `source-statistics`, N(mean, std) of each dimension of the seed's; `dictionary`, see the module, needs corpus and lexicon.
    Deterministic in its arguments. Raises UserError for a lexicon that is missing, malformed or of no use.
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
        rows, report = _from_dictionary(source, seed_tokenizer, tokenizer, corpus, pairs, lexicon, rng, seed)
    else:
        raise ValueError(f"unknown method of embedding initialisation {method!r}")
    report["seconds"] = round(time.perf_counter() - started, 2)
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)), report


def read_lexicon(path: Path) -> list[tuple[str, str]]:
    """The distinct (english, korean) pairs of a file of `english<TAB>korean` lines, lower-cased, in the file's order.

    Raises: UserError naming the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"lexicon {path}: no such file; expected lines of english<TAB>korean") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise UserError(f"lexicon {path}: not a UTF-8 text file; expected lines of english<TAB>korean") from None
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sides = [side.strip().lower() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise UserError(f"lexicon {path}, line {number}: expected english<TAB>korean, found {line[:60]!r}; mend or remove the line")
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


def _from_dictionary(
    source: np.ndarray,
    seed_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    corpus: "Corpus",
    pairs: list[tuple[str, str]],
    lexicon: Path,
    rng: np.random.Generator,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    english, korean = Pieces.of(seed_tokenizer), Pieces.of(tokenizer)
    rows = _like_source(source, len(tokenizer), rng)
    specials = {number: english.special[role] for role, number in korean.special.items() if role in english.special}
    copies = {number: same for (initial, text), number in korean.ids.items() if (same := english.find(text, initial)) is not None}
    translations = {number: meanings for number, meanings in _translations(pairs, english, korean).items() if number not in copies}
    if len(translations) < FEWEST_PAIRS:
        raise UserError(
            f"lexicon {lexicon}: {len(translations)} of its {len(pairs)} pairs are single pieces of both vocabularies, expected "
            f"{FEWEST_PAIRS} or more; give a larger lexicon (english<TAB>korean) or use embedding_init source-statistics"
        )
    static, seen = static_vectors(corpus.split("train"), len(tokenizer), seed)
    words = np.array(sorted(number for (initial, text), number in english.ids.items() if initial and text.isalpha() and len(text) > 1))
    mapped, fit = _map_into(source, static, seen, translations)
    wanted = np.array(sorted(set(np.flatnonzero(seen)) - set(copies) - set(korean.special.values())))
    rows[wanted] = _neighbours(mapped[wanted], source, words)
    for number, meanings in translations.items():
        direct = source[meanings].mean(axis=0)
        rows[number] = (rows[number] + direct) / 2 if seen[number] else direct
    for number, same in {**copies, **specials}.items():
        rows[number] = source[same]
    counts = {
        "special": len(specials),
        "copied": len(copies),
        "translated": len(translations),
        "neighbours": len(set(wanted) - set(translations)),
    }
    return rows, {**counts, "random": len(rows) - sum(counts.values()), "lexicon_pairs": len(pairs), "map": fit}


def _like_source(source: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, H) drawn from N(mean, std) of each dimension of `source`."""
    return rng.normal(source.mean(axis=0), source.std(axis=0), (count, source.shape[1]))


def _translations(pairs: list[tuple[str, str]], english: Pieces, korean: Pieces) -> dict[int, list[int]]:
    """Korean piece -> its English pieces, of the pairs whose sides are single pieces."""
    found: dict[int, list[int]] = {}
    for english_word, korean_word in pairs:
        target = english.ids.get((True, english_word), english.ids.get((False, english_word)))
        if target is None:
            continue
        for initial in (True, False):
            piece = korean.ids.get((initial, korean_word))
            if piece is not None and target not in found.setdefault(piece, []):
                found[piece].append(target)
    return found


def static_vectors(split: "IndexedDataset", vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, D) unit-length word vectors (skip-gram, Mikolov et al. 2013) of the split's pieces, and (V,) which of them it holds.

    Made from about STATIC_TOKENS tokens, whole sentences evenly spread over the split; one thread, so that equal arguments give
    equal vectors.
    """
    from gensim.models import Word2Vec  # a second to import, and only this method needs it

    sizes = np.asarray(split.sizes)
    share = min(1.0, STATIC_TOKENS / max(1, int(sizes.sum())))
    count = max(1, int(len(sizes) * share))
    chosen = np.arange(count) * len(sizes) // count
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    sentences = [split.tokens[starts[i] : starts[i + 1]].tolist() for i in chosen]
    counts = np.bincount(np.concatenate([np.asarray(s, dtype=np.int64) for s in sentences]), minlength=vocab_size)
    model = Word2Vec(vector_size=STATIC_SIZE, window=STATIC_WINDOW, sg=1, negative=5, min_count=1, sample=1e-3, workers=1, seed=seed)
    model.build_vocab_from_freq({int(number): int(counts[number]) for number in np.flatnonzero(counts)})
    epochs = _repeated(sentences, STATIC_EPOCHS)
    model.train(epochs, total_examples=len(sentences) * STATIC_EPOCHS, epochs=1)
    vectors = np.zeros((vocab_size, STATIC_SIZE))
    vectors[np.array(model.wv.index_to_key)] = model.wv.vectors
    return _unit(vectors), counts > 0


def _repeated(sentences: list[list[int]], epochs: int) -> Iterator[list[int]]:
    with tqdm(total=len(sentences) * epochs, desc="word vectors", unit=" sentences", disable=None, leave=False) as bar:
        for _ in range(epochs):
            for sentence in sentences:
                yield sentence
                bar.update()


def _map_into(
    source: np.ndarray, static: np.ndarray, seen: np.ndarray, translations: dict[int, list[int]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """(V, H) static vectors mapped into the centred seed space, by ridge regression on the translated pieces; and how well it does
    on every HELD_OUT-th of them when learnt from the others."""
    pieces = np.array([number for number in sorted(translations) if seen[number]])
    centred = _unit(source - source.mean(axis=0))
    targets = np.stack([centred[translations[number]].mean(axis=0) for number in pieces])
    held_out = np.arange(len(pieces)) % HELD_OUT == 0
    weights = _ridge(static[pieces[~held_out]], targets[~held_out])
    guesses = _extended(static[pieces[held_out]]) @ weights
    candidates = np.array(sorted({target for number in pieces for target in translations[number]}))
    order = np.argsort(-_unit(guesses) @ centred[candidates].T, axis=1)[:, :10]
    hits = np.array([[candidates[i] in translations[number] for i in row] for number, row in zip(pieces[held_out], order, strict=True)])
    fit = {
        "pairs": len(pieces),
        "held_out": int(held_out.sum()),
        "candidates": len(candidates),
        "top1": round(float(hits[:, 0].mean()), 4),
        "top10": round(float(hits.any(axis=1).mean()), 4),
    }
    return _extended(static) @ _ridge(static[pieces], targets), fit


def _ridge(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(D + 1, H) weights, the constant's last."""
    extended = _extended(inputs)
    penalty = RIDGE * np.eye(extended.shape[1])
    penalty[-1, -1] = 0.0
    return np.linalg.solve(extended.T @ extended + penalty, extended.T @ targets)


def _extended(inputs: np.ndarray) -> np.ndarray:
    return np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)


def _neighbours(mapped: np.ndarray, source: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(N, H): for each mapped vector the softmax-weighted mean of its NEIGHBOURS nearest rows of source[words], by centred cosine."""
    centred = torch.from_numpy(_unit(source - source.mean(axis=0))[words]).float()
    rows = torch.from_numpy(source[words])
    out = []
    for part in tqdm(torch.from_numpy(_unit(mapped)).float().split(1024), desc="neighbours", disable=None, leave=False):
        similarity, nearest = (part @ centred.T).topk(NEIGHBOURS, dim=1)
        weights = torch.softmax(similarity / TEMPERATURE, dim=1)
        out.append(torch.einsum("nk,nkh->nh", weights, rows[nearest]))
    return torch.cat(out).numpy()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
