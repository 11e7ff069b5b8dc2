"""Cuts the validation splits of several corpora of the same text to the same sentences.

    python -m benchmarks.validation_head corpora/clean corpora/clean-8k ...

Kept are the sentences of the first 512 blocks of 128 tokens of the corpus that is named first. All of them are then scored, and they are
the same text whatever the pieces are: 512 blocks of larger pieces would hold more text. The corpora are changed in place.
"""

import numpy as np

from benchmarks.command import paths
from data_tools.corpus import Corpus, fingerprint_of, write_manifest
from data_tools.digest import sha256_of
from data_tools.mmididx import IndexedDataset, write_dataset

BLOCKS, PAYLOAD = 512, 126


def sentences_of_head(split: IndexedDataset) -> int:
    """How many sentences reach to the end of the last block. Blocks are cut from a stream with one </s> after each document."""
    ended = np.searchsorted(split.document_index[1:], np.arange(1, len(split) + 1), side="left")  # documents before each sentence's
    return 1 + int(np.flatnonzero(np.cumsum(split.sizes, dtype=np.int64) + ended >= BLOCKS * PAYLOAD)[0])


def cut(corpus: Corpus, count: int, characters: int) -> None:
    """The first `count` sentences of the split, of so many characters, take its place; the manifest and the fingerprint follow."""
    split = corpus.split("valid")
    documents = int(np.searchsorted(split.document_index[1:], count)) + 1
    sizes, ends = split.sizes[:count], np.minimum(split.document_index[1 : documents + 1], count)
    with write_dataset(corpus.path / "head", split.tokens.dtype.newbyteorder("=").type) as writer:
        writer.add_documents(split.tokens[: sizes.sum()], sizes, np.diff(ends, prepend=0))
    facts = {"documents": documents, "sentences": count, "tokens": writer.num_tokens, "characters": characters}
    outputs = corpus.manifest["outputs"]
    for end in (".bin", ".idx"):
        (corpus.path / f"head{end}").replace(corpus.path / f"valid{end}")
        path = corpus.path / f"valid{end}"
        outputs[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    splits = {**corpus.manifest["splits"], "valid": facts}
    write_manifest(corpus.path, {**corpus.manifest, "splits": splits, "fingerprint": fingerprint_of(outputs)})
    print(corpus.path, facts)


def main() -> None:
    corpora = [Corpus.open(path) for path in paths(__doc__, "CORPUS...")]
    split, whole = corpora[0].split("valid"), corpora[0].manifest["splits"]["valid"]
    count = sentences_of_head(split)
    characters = round(whole["characters"] * int(split.sizes[:count].sum()) / whole["tokens"])  # of the same text, whatever the pieces
    for corpus in corpora:
        cut(corpus, count, characters)


if __name__ == "__main__":
    main()
