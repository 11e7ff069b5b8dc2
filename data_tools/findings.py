"""Facts about a finished corpus, for a report."""

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from data_tools.corpus import SPLITS, Corpus
from data_tools.errors import UserError, first_line
from data_tools.mmididx import IndexedDataset
from data_tools.packages import locate_model
from data_tools.vocabulary import UNKNOWN_ID, load_processor

FERTILITY_SENTENCES = 5000
HISTOGRAM_EDGES = (1, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500)


@dataclass(frozen=True)
class Fertility:
    """A tokenizer on some sentences."""

    tokenizer: str
    tokens_per_word: float
    """Words are what white space separates."""
    characters_per_token: float
    unknown: float
    """Share of the tokens."""


@dataclass(frozen=True)
class Sample:
    """A sentence of a corpus."""

    item: int
    text: str
    pieces: list[str]


@dataclass(frozen=True)
class Findings:
    """Everything that the reports show."""

    corpus: Corpus
    lengths: dict[str, np.ndarray]
    """Tokens a sentence, by split: 5, 50, 95 and 100 % points; empty for a split without sentences."""
    histogram: list[tuple[str, int]]
    """Training sentences by their tokens: ("5-9", count)."""
    unknown: dict[str, float]
    byte_fallback: dict[str, float]
    """Shares of each split's tokens."""
    fertility: list[Fertility]
    samples: dict[str, list[Sample]]

    @classmethod
    def of(cls, corpus: Corpus, num_samples: int = 5, seed: int = 0, seed_model: str | None = None) -> "Findings":
        """Examine an opened corpus. seed_model: its tokenizer is compared with the corpus's own on the same sentences."""
        processor = load_processor(corpus.tokenizer_dir)
        is_byte = np.array([processor.is_byte(piece) for piece in range(corpus.vocab_size)])
        datasets = {name: corpus.split(name) for name in SPLITS}
        used = {name: _used_ids(dataset, corpus.vocab_size) for name, dataset in datasets.items()}
        samples = {}
        for name, dataset in datasets.items():
            items = sorted(random.Random(seed).sample(range(len(dataset)), min(num_samples, len(dataset))))
            ids = [dataset[item].tolist() for item in items]
            samples[name] = [Sample(item, processor.decode(i), processor.id_to_piece(i)) for item, i in zip(items, ids, strict=True)]
        return cls(
            corpus,
            {name: np.percentile(dataset.sizes, [5, 50, 95, 100]) if len(dataset) else np.zeros(0) for name, dataset in datasets.items()},
            _histogram(datasets["train"].sizes),
            {name: float(counts[UNKNOWN_ID] / max(1, counts.sum())) for name, counts in used.items()},
            {name: float(counts[is_byte].sum() / max(1, counts.sum())) for name, counts in used.items()},
            _fertilities(corpus, seed, seed_model),
            samples,
        )


def _used_ids(dataset: IndexedDataset, vocab_size: int) -> np.ndarray:
    """How often each id stands there; (vocab_size,). Raises UserError for one that the vocabulary does not have."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(dataset.tokens), 1 << 22):
        tokens = dataset.tokens[start : start + (1 << 22)]
        if not 0 <= int(tokens.min()) <= (largest := int(tokens.max())) < vocab_size:
            raise UserError(f"{dataset.path}: expected ids of {vocab_size} pieces, found {largest}: damaged; prepare the corpus anew")
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def _histogram(sizes: np.ndarray) -> list[tuple[str, int]]:
    edges = [*HISTOGRAM_EDGES, max(int(sizes.max(initial=0)) + 1, HISTOGRAM_EDGES[-1] + 1)]
    counts, _ = np.histogram(sizes, edges)
    names = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    return list(zip(names, counts.tolist(), strict=True))


def _fertilities(corpus: Corpus, seed: int, seed_model: str | None) -> list[Fertility]:
    processor = load_processor(corpus.tokenizer_dir)
    dataset = corpus.split("train")
    items = sorted(random.Random(seed).sample(range(len(dataset)), min(FERTILITY_SENTENCES, len(dataset))))
    ids = [dataset[item].tolist() for item in items]
    texts = processor.decode(ids)
    words, characters = sum(len(text.split()) for text in texts), sum(map(len, texts))

    def of(name: str, encoded: list[list[int]], unknown_id: int | None) -> Fertility:
        num_tokens = sum(map(len, encoded))
        num_unknown = sum(sentence.count(unknown_id) for sentence in encoded) if unknown_id is not None else 0
        return Fertility(name, num_tokens / max(1, words), characters / max(1, num_tokens), num_unknown / max(1, num_tokens))

    found = [of("this corpus's", ids, UNKNOWN_ID)]
    if seed_model:
        tokenizer = _load_tokenizer(seed_model)
        found.append(of(seed_model, tokenizer(texts, add_special_tokens=False)["input_ids"], tokenizer.unk_token_id))
    return found


def _load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer  # slow to import
    from transformers.utils import logging

    logging.set_verbosity_error()  # sentences longer than its model takes are fine here
    try:
        return AutoTokenizer.from_pretrained(locate_model(model), trust_remote_code=False)
    except Exception as error:  # a damaged file can make transformers raise anything
        raise UserError(f"--seed-model {model}: its tokenizer cannot be loaded ({first_line(error)})") from error
