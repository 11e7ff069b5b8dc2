"""Packed, masked training batches as a function of (seed, batch number): there is no loader state.

The split is read as one stream: the sentences in order, one </s> after each document. Block k is <s>, the k-th piece of
sequence_length - 2 stream tokens, </s>. The remainder shorter than a block is left out. Each epoch visits every block
once, in an order drawn from (seed, epoch); sample p of the run is block order[p mod num_blocks] of epoch p div num_blocks.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data_tools.errors import UserError
from data_tools.mmididx import IndexedDataset
from trainer.masking import block_keys, mask_tokens
from trainer.recipe import Masking

VALIDATION_EPOCH = 2**31  # masks of the validation split: a stream of its own, the same at every evaluation


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokenizer's special pieces. All ids below `count` are special and never masked."""

    bos: int
    eos: int
    mask: int
    count: int
    vocab_size: int


@dataclass(frozen=True)
class MaskedBatch:
    """input_ids (B, L); selected (M,) flat positions into B*L; labels (M,). All int64."""

    input_ids: torch.Tensor
    selected: torch.Tensor
    labels: torch.Tensor


class Blocks:
    """The blocks of one split of a corpus."""

    def __init__(self, split: IndexedDataset, sequence_length: int, special: SpecialIds, masking: Masking, seed: int) -> None:
        self.special, self.masking, self.seed, self.sequence_length = special, masking, seed, sequence_length
        self._tokens = split.tokens
        ends = np.concatenate([[0], np.cumsum(split.sizes, dtype=np.int64)])[split.document_index[1:]]
        self._separators = ends + np.arange(len(ends))  # stream place of the </s> after each document
        self._payload = sequence_length - 2
        stream_length = len(self._tokens) + len(ends)
        self.num_blocks = stream_length // self._payload
        if self.num_blocks == 0:
            raise UserError(
                f"corpus split has {len(self._tokens)} tokens, less than one block of sequence_length {sequence_length}; "
                "prepare more text or shorten sequence_length"
            )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def read(self, blocks: np.ndarray) -> np.ndarray:
        """Unmasked blocks. blocks: (B,) -> (B, L) int64."""
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
        return out

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
        return self._masked(epochs, blocks)

    def validation(self, blocks: np.ndarray) -> MaskedBatch:
        """These blocks under masks that are the same at every evaluation. blocks: (B,)."""
        return self._masked(np.full(len(blocks), VALIDATION_EPOCH), blocks)

    def _masked(self, epochs: np.ndarray, blocks: np.ndarray) -> MaskedBatch:
        tokens = self.read(blocks)
        keys = block_keys(self.seed, epochs, blocks)
        inputs, selected = mask_tokens(tokens, keys, self.masking, self.special.mask, self.special.count, self.special.vocab_size)
        labels = tokens.reshape(-1)[selected]
        return MaskedBatch(torch.from_numpy(inputs), torch.from_numpy(selected), torch.from_numpy(labels))


def samples_of(batch: int, global_batch: int, micro_batch: int, accumulation: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Sample numbers of each micro-batch of `rank` in global batch number `batch`; over the ranks they cover it exactly once."""
    first = batch * global_batch
    return [first + (micro * world_size + rank) * micro_batch + np.arange(micro_batch) for micro in range(accumulation)]
