"""Which document goes to which split."""

import random

import numpy as np

from data_tools.errors import UserError

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, 3
DEFAULT_SENTENCES = {"valid": 100_000, "test": 88_000}  # the paper's, of 4.19M
LARGEST_HELD_OUT = 0.1  # of all sentences, for the default sizes


def held_out_sizes(total: int, valid: int | None, test: int | None) -> tuple[int, int, list[str]]:
    """Sentences for valid and test, and notices. None asks for the default, which shrinks on small inputs; a number is kept to.

    Raises UserError when what is asked for leaves less than half of the `total` sentences for training.
    """
    factor = min(1.0, LARGEST_HELD_OUT * total / sum(DEFAULT_SENTENCES.values()))
    sizes, notices = [], []
    for name, asked in (("valid", valid), ("test", test)):
        default = DEFAULT_SENTENCES[name]
        sizes.append(asked if asked is not None else max(1, round(default * factor)))
        if asked is None and factor < 1:
            notices.append(f"--{name}-sentences: {sizes[-1]} instead of {default}, since the input has {total} sentences only")
    if sum(sizes) > total / 2:
        raise UserError(
            f"{sizes[0]} sentences for valid and {sizes[1]} for test: expected at most half of the input's {total} sentences; "
            "give more text, or smaller --valid-sentences and --test-sentences"
        )
    return sizes[0], sizes[1], notices


def assign_documents(num_sentences: np.ndarray, valid: int, test: int, max_train: int | None, seed: int) -> np.ndarray:
    """The split of each document, uint8, from its number of sentences. Valid, then test, then train are filled, in an order shuffled by
    `seed`, with the documents that still fit. So no document straddles splits, and no split exceeds its size, unless even the smallest
    document that is left is larger. One document is left for each split that follows.

    Raises UserError when there are fewer documents than splits.
    """
    sizes = num_sentences.tolist()
    wanted = [(VALID, valid), (TEST, test), (TRAIN, max_train)]
    needed = sum(size != 0 for _, size in wanted)
    if len(sizes) < needed:
        raise UserError(
            f"--input: expected at least {needed} documents, one for each split, found {len(sizes)}; separate documents by blank lines, "
            "or give --valid-sentences 0 --test-sentences 0"
        )
    left = list(range(len(sizes)))
    random.Random(seed).shuffle(left)
    assignment = np.full(len(sizes), UNUSED, np.uint8)
    for place, (split, target) in enumerate(wanted):
        if target is None:
            assignment[left] = split
        elif target:
            taken = _take(left, sizes, target, len(left) - sum(size != 0 for _, size in wanted[place + 1 :]))
            assignment[taken] = split
            left = [document for document in left if assignment[document] == UNUSED]
    return assignment


def _take(documents: list[int], sizes: list[int], target: int, most: int) -> list[int]:
    """The documents, at most `most`, that fit into the target one after another; the smallest one if none fits."""
    taken: list[int] = []
    total = 0
    for document in documents:
        if total == target or len(taken) == most:
            break
        if total + sizes[document] <= target:
            taken.append(document)
            total += sizes[document]
    return taken or [min(documents, key=lambda document: sizes[document])]
