"""Packed, masked training batches as a function of (seed, batch number): there is no loader state.

Each epoch visits every block once, in an order drawn from (seed, epoch); sample p of the run is block order[p mod num_blocks] of epoch p
div num_blocks. What a block is, the recipe's `packing` says:

contiguous (RoBERTa's FULL-SENTENCES): the split is read as one stream, the sentences in order, one </s> after each document. Block k is
<s>, the k-th piece of sequence_length - 2 stream tokens, </s>. The remainder shorter than a block is left out.

sentences: each sentence is a sample of its own, <s> ... </s>, that sees nothing but itself. As many as fit share a block (best fit, longest
first, among neighbours), so that next to nothing is padding; one longer than a block is cut into several.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_tools.corpus import Corpus
from data_tools.errors import UserError, first_line
from data_tools.mmididx import IndexedDataset
from trainer.masking import block_keys, mask_tokens
from trainer.recipe import Masking, Recipe

VALIDATION_EPOCH = 2**31  # masks of the validation split: a stream of its own, the same at every evaluation


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokenizer's special pieces. All ids below `count` are special and never masked."""

    bos: int
    pad: int
    eos: int
    mask: int
    count: int
    vocab_size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialIds":
        roles = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id)
        return cls(*roles, max(tokenizer.all_special_ids) + 1, len(tokenizer))


@dataclass(frozen=True)
class MaskedBatch:
    """input_ids (B, L); selected (M,) flat positions into B*L; labels (M,). All int64."""

    input_ids: torch.Tensor
    selected: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor | None = None
    """(B, L): number of the sentence in its block, 0 for padding; sentences do not see each other. None: a block is one text."""


def corpus_tokenizer(corpus: Corpus) -> PreTrainedTokenizerBase:
    """Raises UserError when its files do not load, or hold another number of pieces than the manifest says."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir, trust_remote_code=False)
    except Exception as error:  # whatever the parser of that kind of file raises
        raise UserError(
            f"{corpus.tokenizer_dir}: expected the corpus's tokenizer, found none that loads: {first_line(error)}; prepare it anew"
        ) from None
    if len(tokenizer) != corpus.vocab_size:
        raise UserError(
            f"corpus {corpus.path}: its tokenizer has {len(tokenizer)} pieces, its manifest says {corpus.vocab_size}; prepare it anew"
        )
    return tokenizer


class Blocks:
    """The blocks of one split of a corpus. Subclasses say what is in a block: `num_blocks` and `read`."""

    num_blocks: int

    def __init__(self, split: IndexedDataset, sequence_length: int, special: SpecialIds, masking: Masking, seed: int) -> None:
        self.special, self.masking, self.seed, self.sequence_length = special, masking, seed, sequence_length
        self._tokens = split.tokens.view(np.ndarray)  # slices of a memmap are slow
        self._payload = sequence_length - 2
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def read(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Unmasked blocks and their segments, if they have any. blocks: (B,) -> (B, L) int64 each."""
        raise NotImplementedError

    def place(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, block) of each sample number of the run. samples: (B,) int64."""
        epochs, places = np.divmod(samples, self.num_blocks)
        blocks = np.empty_like(places)
        for epoch in np.unique(epochs):
            blocks[epochs == epoch] = self._epoch_order(int(epoch))[places[epochs == epoch]]
        return epochs, blocks

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Philox (Salmon et al. 2011) bit streams are fixed by NumPy's compatibility policy; its `permutation` is not."""
        if self._order[0] != epoch:
            keys = np.random.Philox(key=[self.seed, epoch]).random_raw(self.num_blocks)
            self._order = (epoch, np.argsort(keys, kind="stable"))
        return self._order[1]

    def training(self, samples: np.ndarray) -> MaskedBatch:
        """The batch of these sample numbers. samples: (B,)."""
        epochs, blocks = self.place(samples)
        return self._masked(self.seed, epochs, blocks)

    def validation(self, blocks: np.ndarray) -> MaskedBatch:
        """These blocks under masks that are the same at every evaluation, whatever the run's seed: losses of two seeds are of the same
        predictions. blocks: (B,)."""
        return self._masked(0, np.full(len(blocks), VALIDATION_EPOCH), blocks)

    def _masked(self, seed: int, epochs: np.ndarray, blocks: np.ndarray) -> MaskedBatch:
        tokens, segments = self.read(blocks)
        keys = block_keys(seed, epochs, blocks)
        inputs, selected = mask_tokens(tokens, keys, self.masking, self.special.mask, self.special.count, self.special.vocab_size)
        labels = tokens.reshape(-1)[selected]
        arrays = (inputs, selected, labels) if segments is None else (inputs, selected, labels, segments)
        return MaskedBatch(*map(torch.from_numpy, arrays))


class ContiguousBlocks(Blocks):
    """Pieces of one stream."""

    def __init__(self, split: IndexedDataset, *settings: Any) -> None:
        super().__init__(split, *settings)
        # where documents begin the index says; sums over the sizes would be two arrays of all sentences
        begins = split.offsets[split.document_index[1:-1]] // split.tokens.itemsize
        ends = np.append(begins, len(self._tokens)).astype(np.int64)
        self._separators = ends + np.arange(len(ends))  # stream place of the </s> after each document
        self.num_blocks = (len(self._tokens) + len(ends)) // self._payload
        if self.num_blocks == 0:
            raise UserError(
                f"{split.path}: {len(self._tokens)} tokens, less than one block of sequence_length {self.sequence_length}; "
                "prepare a larger split, or shorten sequence_length"
            )

    def read(self, blocks: np.ndarray) -> tuple[np.ndarray, None]:
        starts = blocks.astype(np.int64) * self._payload
        first = np.searchsorted(self._separators, starts)  # documents that end before each block
        last = np.searchsorted(self._separators, starts + self._payload)
        out = np.empty((len(blocks), self.sequence_length), dtype=np.int64)
        out[:, 0], out[:, -1] = self.special.bos, self.special.eos
        for row, (start, a, b) in enumerate(zip(starts.tolist(), first.tolist(), last.tolist(), strict=True)):
            text = self._tokens[start - a : start + self._payload - b]
            if a == b:
                out[row, 1:-1] = text
            else:
                cuts = self._separators[a:b] - start - np.arange(b - a)
                out[row, 1:-1] = np.insert(text.astype(np.int64), cuts, self.special.eos)
        return out, None


class SentenceBlocks(Blocks):
    """Whole sentences side by side. Opening it packs the split: about a second per million sentences."""

    def __init__(self, split: IndexedDataset, *settings: Any) -> None:
        super().__init__(split, *settings)
        sizes = split.sizes.astype(np.int64)
        if not len(sizes):
            raise UserError(f"{split.path}: no sentence; prepare a larger split")
        pieces = -(-sizes // self._payload)  # of each sentence
        number = _count_up(pieces)  # of a piece in its sentence
        self._starts = np.repeat(np.cumsum(sizes) - sizes, pieces) + number * self._payload
        self._lengths = np.minimum(self._payload, np.repeat(sizes, pieces) - number * self._payload)
        self._pieces, self._ends = best_fit(self._lengths + 2, self.sequence_length)
        self.num_blocks = len(self._ends)

    def read(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, segments) of these blocks, each (blocks, L): <s> sentence </s> side by side, numbered from 1; 0 is padding."""
        first = np.where(blocks > 0, self._ends[blocks - 1], 0)
        counts = self._ends[blocks] - first  # pieces of each block
        number = _count_up(counts)  # of a piece in its block
        pieces = self._pieces[np.repeat(first, counts) + number]
        lengths, widths = self._lengths[pieces], self._lengths[pieces] + 2
        before = np.cumsum(widths) - widths
        rows = np.arange(len(blocks)) * self.sequence_length
        begins = before + np.repeat(rows - before[np.cumsum(counts) - counts], counts)  # where each piece begins
        tokens = np.full((len(blocks), self.sequence_length), self.special.pad, dtype=np.int64)
        segments = np.zeros_like(tokens)
        flat_tokens, flat_segments = tokens.reshape(-1), segments.reshape(-1)
        inside = _count_up(lengths)
        flat_tokens[np.repeat(begins + 1, lengths) + inside] = self._tokens[np.repeat(self._starts[pieces], lengths) + inside]
        flat_tokens[begins], flat_tokens[begins + widths - 1] = self.special.bos, self.special.eos
        flat_segments[np.repeat(begins, widths) + _count_up(widths)] = np.repeat(number + 1, widths)
        return tokens, segments


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., n - 1 for each n of `lengths`, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


PACKINGS: dict[str, type[Blocks]] = {"contiguous": ContiguousBlocks, "sentences": SentenceBlocks}


def open_blocks(recipe: Recipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> tuple[Blocks, Blocks]:
    """To train on and to validate on. Raises UserError when a split has less than a block."""
    special, packing = SpecialIds.of(tokenizer), PACKINGS[recipe.packing]
    train, valid = (
        packing(corpus.split(name), recipe.sequence_length, special, recipe.masking, recipe.seed) for name in ("train", "valid")
    )
    return train, valid


def best_fit(widths: np.ndarray, capacity: int, neighbours: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """Bins of `capacity` for items of these widths (best fit decreasing, Johnson 1973, among so many neighbours at a time).

    Returns the items, bin after bin, and for each bin where its items end in that list.
    """
    order: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for start in range(0, len(widths), neighbours):
        part = widths[start : start + neighbours]
        bins: list[list[int]] = []
        with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by what is left in them
        rooms = 0  # bit r is set when with_room[r] is not empty
        for item in np.argsort(-part, kind="stable").tolist():
            width = int(part[item])
            fitting = rooms >> width
            if fitting:
                room = width + (fitting & -fitting).bit_length() - 1
                chosen = with_room[room].pop()
                if not with_room[room]:
                    rooms ^= 1 << room
                bins[chosen].append(item)
            else:
                room, chosen = capacity, len(bins)
                bins.append([item])
            with_room[room - width].append(chosen)
            rooms |= 1 << (room - width)
        order.append(np.array([item for bin_ in bins for item in bin_], np.int64) + start)
        sizes.append(np.array([len(bin_) for bin_ in bins], np.int64))
    return np.concatenate(order), np.cumsum(np.concatenate(sizes))


def samples_of(batch: int, global_batch: int, micro_batch: int, accumulation: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Sample numbers of each micro-batch of `rank` in global batch number `batch`; over the ranks they cover it exactly once."""
    first = batch * global_batch
    return [first + (micro * world_size + rank) * micro_batch + np.arange(micro_batch) for micro in range(accumulation)]
