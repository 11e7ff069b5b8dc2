"""How fast the training side reads packed and masked batches, and how much of them is padding.

    python -m benchmarks.reader CORPUS

Measured, in CPU time of one process: seconds to open the training split, millions of tokens per second over 60 batches of 256 blocks, and
the per cent of tokens that are padding; for each way of packing and blocks of 128 and 512 tokens. Prints a table.
"""

import time

import numpy as np

from benchmarks.command import paths
from data_tools.corpus import Corpus
from trainer.blocks import PACKINGS, SpecialIds
from trainer.recipe import Masking


def main() -> None:
    corpus = Corpus.open(*paths(__doc__, "CORPUS"))
    special = SpecialIds(bos=0, pad=1, eos=2, mask=4, count=5, vocab_size=corpus.vocab_size)
    print("| packing | block | opens in | million tokens/s | padding |\n|---|---|---|---|---|")
    for packing, blocks_of in PACKINGS.items():
        for length in (128, 512):
            begin = time.process_time()
            blocks = blocks_of(corpus.split("train"), length, special, Masking(), 0)
            opened, begin, tokens, padding = time.process_time() - begin, time.process_time(), 0, 0
            for batch in range(60):
                read = blocks.training(np.arange(batch * 256, (batch + 1) * 256)).input_ids
                tokens += read.numel()
                padding += int((read == special.pad).sum())
            rate = tokens / (time.process_time() - begin) / 1e6
            print(f"| {packing} | {length} | {opened:.2f} s | {rate:.1f} | {100 * padding / tokens:.2f} % |")


if __name__ == "__main__":
    main()
