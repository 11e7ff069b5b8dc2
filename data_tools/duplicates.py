"""Exact duplicates among any number of sentences, in bounded memory."""

from pathlib import Path

import numpy as np

PARTITION = 1 << 22  # hashes looked at together: about 150 MB while they are sorted


def first_occurrences(hashes_file: Path) -> np.ndarray:
    """For each hash in the file (uint64) whether it is the first of its value; (sentences,) bool.

    The hashes are partitioned by their highest bits; equal ones fall together, and one partition at a time is sorted. Every partition costs
    a scan of 8 bytes a sentence, which is little beside what was spent to make them. Two sentences share an XXH3-64 by chance with a
    probability of n^2 / 2^65: 0.1 % for 200 million.
    """
    num_hashes = hashes_file.stat().st_size // 8
    kept = np.zeros(num_hashes, bool)
    if not num_hashes:
        return kept
    hashes = np.memmap(hashes_file, np.uint64, "r")
    bits = max(0, int(np.ceil(np.log2(num_hashes / PARTITION))))
    for partition in range(1 << bits):
        places = [
            start + np.flatnonzero(hashes[start : start + PARTITION] >> np.uint64(64 - bits) == partition)
            for start in range(0, num_hashes if bits else 0, PARTITION)
        ]
        chosen = np.concatenate(places) if bits else np.arange(num_hashes)
        _, first = np.unique(hashes[chosen], return_index=True)  # of equal ones the first
        kept[chosen[first]] = True
    return kept
