"""How many sentences are held out, and which documents they come from."""

import numpy as np

from data_tools.splits import TEST, TRAIN, UNUSED, VALID, assign_documents, held_out_sizes


def test_split_sizes() -> None:
    assert held_out_sizes(4_190_000, None, None) == (100_000, 88_000, [])
    valid, test, notices = held_out_sizes(10_000, None, None)
    assert (valid, test) == (532, 468) and len(notices) == 2
    assert held_out_sizes(10_000, 2000, None)[:2] == (2000, 468)
    sizes = np.array([3, 50, 2, 2, 40, 1, 1, 30])
    assignment = assign_documents(sizes, 4, 3, 60, 0)
    totals = [int(sizes[assignment == split].sum()) for split in (TRAIN, VALID, TEST)]
    assert 0 < totals[0] <= 60 and totals[1:] == [4, 3] and (assignment == UNUSED).any()
    assert (assign_documents(sizes, 4, 3, 60, 0) == assignment).all() and (assign_documents(sizes, 4, 3, 60, 1) != assignment).any()
    assert assign_documents(np.array([9, 8, 7]), 1, 1, None, 0).tolist() == [TRAIN, TEST, VALID]  # the smallest, when none fits
    for seed in range(6):  # small ones that all fit into the first split: each split still gets one
        assert sorted(assign_documents(np.array([1, 1, 600]), 30, 26, None, seed).tolist()) == sorted([TRAIN, VALID, TEST])
        assert assign_documents(np.array([1, 1, 600]), 30, 26, None, seed)[2] == TRAIN
