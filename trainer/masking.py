"""Dynamic MLM masking as a pure function of (tokens, where the block stands, seed).

Every token position draws one 64-bit number from a counter-based generator (SplitMix64, Steele et al. 2014) keyed by
seed, epoch, block and place in the block: no state, the same mask whichever rank or worker computes it.
"""

import numpy as np

from trainer.recipe import Masking

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(counter: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64 output for each uint64 `counter` in the stream named by `key` (broadcast against it)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = (counter + np.uint64(1)) * _GOLDEN + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def dropout_seed(seed: int, batch: int, micro_batch: int) -> int:
    """Seed of the dropout in one micro-batch, by its number in the global batch: the same whichever rank computes it."""
    key: np.ndarray | np.uint64 = np.uint64(0)
    for number in (seed, batch, micro_batch):
        key = hash64(np.asarray(number, dtype=np.uint64), key)
    return int(key) % 2**63


def block_keys(seed: int, epochs: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """One independent stream key per block. epochs, blocks: (B,) -> (B,) uint64."""
    key = hash64(np.asarray(seed, dtype=np.uint64), np.uint64(0))
    return hash64(blocks.astype(np.uint64), hash64(epochs.astype(np.uint64), key))


def mask_tokens(
    tokens: np.ndarray, keys: np.ndarray, settings: Masking, mask_id: int, num_special: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Select and replace tokens.

    tokens: (B, L) integers; ids below `num_special` are never selected. keys: (B,) from `block_keys`.
    Returns inputs (B, L) int64 and the selected flat positions into B*L, ascending (int64); labels are tokens there.
    The 64 bits are cut in three: 24 choose the token, 16 its fate, 24 the random replacement.
    """
    length = tokens.shape[1]
    bits = hash64(np.arange(length, dtype=np.uint64)[None, :], keys[:, None])  # (B, L)
    chosen = ((bits >> np.uint64(40)) < np.uint64(round(settings.rate * 2**24))) & (tokens >= num_special)
    selected = np.flatnonzero(chosen)
    bits = bits.ravel()[selected]
    fate = (bits >> np.uint64(24)) & np.uint64(0xFFFF)
    replacement = num_special + ((bits & np.uint64(0xFFFFFF)) * np.uint64(vocab_size - num_special) >> np.uint64(24)).astype(np.int64)
    to_mask = fate < np.uint64(round(settings.mask_fraction * 2**16))
    to_random = ~to_mask & (fate < np.uint64(round((settings.mask_fraction + settings.random_fraction) * 2**16)))
    inputs = tokens.astype(np.int64)  # a copy
    flat = inputs.reshape(-1)
    flat[selected] = np.where(to_mask, mask_id, np.where(to_random, replacement, flat[selected]))
    return inputs, selected
