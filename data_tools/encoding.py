"""Sentences into token ids, a block of documents at a time, in worker processes."""

from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from data_tools.splits import TEST, TRAIN, UNUSED, VALID
from data_tools.spool import read_sentences
from data_tools.vocabulary import UNKNOWN_ID, load_processor


class Block(NamedTuple):
    """Where some documents lie in a spool, which lines are kept, and the split of each document."""

    spool: Path
    offset: int
    num_bytes: int
    kept: np.ndarray  # (lines,)
    num_sentences: np.ndarray  # (documents,)
    splits: np.ndarray  # (documents,)
    tokenizer_dir: Path


class EncodedPart(NamedTuple):
    """What a block contributes to one split."""

    ids: np.ndarray  # (tokens,)
    sizes: np.ndarray  # (sentences,), tokens of each
    items_per_document: np.ndarray  # (documents,)
    num_characters: int
    num_unknown: int
    num_empty: int
    """Sentences that normalise to nothing."""


def encode_block(block: Block) -> dict[int, EncodedPart]:
    """The parts of a block by split: exactly SentencePiece's ids; a sentence that normalises to nothing is left out."""
    sentences = read_sentences(block.spool, block.offset, block.num_bytes, block.kept)
    split_of = np.repeat(block.splits, block.num_sentences)
    document_of = np.repeat(np.arange(len(block.splits)), block.num_sentences)
    used = split_of != UNUSED
    sentences, split_of, document_of = list(compress(sentences, used)), split_of[used], document_of[used]
    encoded = _processor(block.tokenizer_dir).encode(sentences, num_threads=1)
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    ids = np.fromiter(chain.from_iterable(encoded), np.int32, int(sizes.sum()))
    split_of_token = np.repeat(split_of, sizes)
    parts = {}
    for split in (TRAIN, VALID, TEST):
        of_split = split_of == split
        chosen = of_split & (sizes > 0)
        if of_split.any():
            part_ids = ids[split_of_token == split]
            per_document = np.bincount(document_of[chosen])
            parts[split] = EncodedPart(
                part_ids, sizes[chosen], per_document[per_document > 0], int(lengths[chosen].sum()), int((part_ids == UNKNOWN_ID).sum()),
                int((of_split & ~chosen).sum()),
            )  # fmt: skip
    return parts


@lru_cache(maxsize=1)
def _processor(tokenizer_dir: Path) -> sentencepiece.SentencePieceProcessor:
    return load_processor(tokenizer_dir)
