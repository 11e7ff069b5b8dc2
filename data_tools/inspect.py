"""What is inside a corpus: counts, sentence lengths, unknown tokens, decoded samples.

python -m data_tools.inspect CORPUS [--samples 5] [--verify]
"""

import argparse
import random
from pathlib import Path

import numpy as np

from data_tools.corpus import SPLITS, Corpus
from data_tools.errors import run_command
from data_tools.mmididx import IndexedDataset
from data_tools.vocabulary import load_processor


def describe(corpus: Corpus, num_samples: int, seed: int) -> str:
    """The report, plain text."""
    manifest = corpus.manifest
    documents = manifest["documents"]
    lines = [
        f"{corpus.path}: {corpus.vocab_size} pieces, {manifest['token_dtype']} tokens, fingerprint {corpus.fingerprint[:16]}",
        f"made from {len(manifest['settings']['inputs'])} file(s), {documents['found']} documents: "
        f"{documents['without_sentences']} without sentences, {documents['failed']} could not be parsed",
        "",
        f"{'split':6} {'documents':>10} {'sentences':>11} {'tokens':>13} {'characters':>13} {'unknown':>8}"
        "  tokens a sentence: median, 95 %, longest",
    ]
    for name in SPLITS:
        counts = manifest["splits"][name]
        unknown = f"{100 * counts['unknown'] / max(1, counts['tokens']):.3f} %"
        lines.append(
            f"{name:6} {counts['documents']:>10} {counts['sentences']:>11} {counts['tokens']:>13} {counts['characters']:>13} {unknown:>8}"
            f"  {_length_summary(corpus.split(name))}"
        )
    lines += [f"notice: {notice}" for notice in manifest["notices"]]
    for name in SPLITS:
        lines += ["", f"from {name}:", *decode_samples(corpus, name, num_samples, seed)]
    return "\n".join(lines)


def _length_summary(dataset: IndexedDataset) -> str:
    if not len(dataset):
        return "-"
    median, high = np.percentile(dataset.sizes, [50, 95])
    return f"{median:.0f}, {high:.0f}, {dataset.sizes.max()}"


def decode_samples(corpus: Corpus, split: str, num_samples: int, seed: int) -> list[str]:
    """Some sentences of a split, the pieces apart, then as text."""
    processor = load_processor(corpus.tokenizer_dir)
    dataset = corpus.split(split)
    lines = []
    for item in sorted(random.Random(seed).sample(range(len(dataset)), min(num_samples, len(dataset)))):
        ids = dataset[item].tolist()
        lines += [f"  [{item}] {processor.decode(ids)}", f"      {' '.join(processor.id_to_piece(ids))}"]
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--samples", type=int, default=5, help="sentences shown of each split (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--verify", action="store_true", help="compare every file's SHA-256 with the manifest")
    options = parser.parse_args()
    corpus = Corpus.open(options.corpus)
    if options.verify:
        corpus.verify()
    print(describe(corpus, max(0, options.samples), options.seed))
    if options.verify:
        print("\nevery file has the SHA-256 of the manifest")


if __name__ == "__main__":
    run_command(main)
