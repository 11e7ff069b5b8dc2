"""Raw text in, a corpus out: memory-mapped token ids in three splits, the tokenizer that made them, and a manifest.

    python -m data_tools.prepare --input TEXT_OR_DUMP_OR_FOLDER --output-dir CORPUS --vocab-size 32000

Two passes: documents into sentences, aside on disk; then, with the splits drawn and the vocabulary trained, sentences into ids.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tqdm import tqdm

from data_tools import corpus as corpora
from data_tools.encoding import Block, encode_block
from data_tools.errors import UserError, run_command
from data_tools.mmididx import IndexedDatasetWriter
from data_tools.sources import list_files, read_documents, relative_name
from data_tools.splits import TEST, TRAIN, VALID, assign_documents, held_out_sizes
from data_tools.spool import Spool, batch_documents, split_documents
from data_tools.vocabulary import MODEL_NAME, check_export, export_tokenizer, load_processor, train_vocabulary
from data_tools.workers import ordered_map

SAMPLE_SENTENCES = 300_000  # for the vocabulary
SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
WORK_NAME = ".work"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a number out of range is refused with a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="PATH", help="files or directories; the format is told from the content"
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="CORPUS")
    parser.add_argument("--vocab-size", type=int, help="pieces, the 5 special tokens included (default 32000)")
    parser.add_argument("--valid-sentences", type=int, help="default 100000, less on small inputs")
    parser.add_argument("--test-sentences", type=int, help="default 88000, less on small inputs")
    parser.add_argument("--max-train-sentences", type=int, help="default: all that are left")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="use this tokenizer folder, made by prepare, instead of training one")
    parser.add_argument(
        "--token-dtype",
        choices=("auto", "int32"),
        default="auto",
        help="auto: uint16 when the vocabulary fits (default); int32 also opens in Megatron-LM",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: one a core); the output does not depend on it"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, least in (("vocab_size", 10), ("valid_sentences", 0), ("test_sentences", 0), ("max_train_sentences", 1), ("workers", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least {least}.")
    if options.tokenizer:
        found = check_export(options.tokenizer).vocab_size()
        if options.vocab_size not in (None, found):
            raise UserError(f"--vocab-size {options.vocab_size}: expected {found}, that of --tokenizer {options.tokenizer}; leave it out.")
        options.vocab_size = found
    elif options.vocab_size is None:
        options.vocab_size = 32000
    return options


def prepare(options: argparse.Namespace) -> None:
    """Make the corpus. Raises UserError for anything the user can mend; the manifest is written last."""
    files = list_files(options.input)
    settings = describe_settings(options, files)
    output_dir = options.output_dir
    if is_already_there(output_dir, settings):
        print(f"{output_dir}: a corpus of these inputs and settings is already there; nothing to do")
        return
    work_dir = output_dir / WORK_NAME
    clear_remains(output_dir)
    work_dir.mkdir(parents=True)
    try:
        spool, facts = spool_sentences(files, work_dir / "sentences.txt", options.workers)
        total = int(spool.num_sentences.sum())
        if not total:
            raise UserError(f"--input {' '.join(map(str, options.input))}: expected text, found no sentence in {len(files)} file(s).")
        valid, test, facts["notices"] = held_out_sizes(total, options.valid_sentences, options.test_sentences)
        splits = assign_documents(spool.num_sentences, valid, test, options.max_train_sentences, options.seed)
        make_tokenizer(options, spool, splits, output_dir / corpora.TOKENIZER_NAME)
        facts |= encode_splits(options, spool, splits)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    write_manifest(output_dir, settings, facts)
    for notice in facts["notices"]:
        print(f"notice: {notice}")
    for name, counts in facts["splits"].items():
        print(f"{name}: {counts['documents']} documents, {counts['sentences']} sentences, {counts['tokens']} tokens")
    print(f"{output_dir}: done; look inside with: python -m data_tools.inspect {output_dir}")


def describe_settings(options: argparse.Namespace, files: list[Path]) -> dict[str, Any]:
    """What decides the corpus's bytes: the same description, the same corpus."""
    inputs = [
        {"name": relative_name(file, options.input), "bytes": file.stat().st_size, "sha256": corpora.sha256_of(file)}
        for file in tqdm(files, desc="inputs", disable=not sys.stderr.isatty(), leave=False)
    ]
    tokenizer = corpora.sha256_of(options.tokenizer / MODEL_NAME) if options.tokenizer else None
    names = ("vocab_size", "valid_sentences", "test_sentences", "max_train_sentences", "token_dtype", "seed")
    return {name: getattr(options, name) for name in names} | {"tokenizer_sha256": tokenizer, "inputs": inputs}


def is_already_there(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very corpus. Raises UserError when it holds another, or files that are not a corpus's."""
    if not output_dir.exists():
        return False
    if not output_dir.is_dir():
        raise UserError(f"--output-dir {output_dir}: expected a folder or nothing, found a file; give another name.")
    if (output_dir / corpora.MANIFEST_NAME).exists():
        found = corpora.Corpus.open(output_dir).manifest["settings"]
        other = sorted(name for name in settings if found.get(name) != settings[name])
        if other:
            raise UserError(
                f"--output-dir {output_dir}: holds a finished corpus that differs in {', '.join(other)}; "
                "give another folder or delete that one."
            )
        return True
    known = {WORK_NAME, corpora.TOKENIZER_NAME, corpora.MANIFEST_NAME + ".partial"}
    known |= {f"{split}{end}{aside}" for split in corpora.SPLITS for end in (".bin", ".idx") for aside in ("", ".partial")}
    foreign = sorted(entry.name for entry in output_dir.iterdir() if entry.name not in known)
    if foreign:
        raise UserError(f"--output-dir {output_dir}: expected an empty folder, found {foreign[0]}; give another folder.")
    return False


def clear_remains(output_dir: Path) -> None:
    """Remove what a run that did not end has left; only names that prepare gives."""
    for name in (WORK_NAME, corpora.TOKENIZER_NAME):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    for split in corpora.SPLITS:
        for file in output_dir.glob(f"{split}.*"):
            file.unlink()


def spool_sentences(files: list[Path], spool_file: Path, num_workers: int) -> tuple[Spool, dict[str, Any]]:
    """The first pass: documents of all files, split into sentences, aside on disk; and what was found on the way."""
    spool = Spool(spool_file)
    counts: Counter[str] = Counter()
    failed: list[str] = []
    total_bytes = sum(file.stat().st_size for file in files)

    def tasks() -> Iterator[list]:
        start = 0
        for file in files:
            yield from batch_documents(read_documents(file, start))
            start += file.stat().st_size

    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc="sentences", disable=not sys.stderr.isatty()) as progress:
        for split in ordered_map(split_documents, tasks(), num_workers):
            spool.add(split)
            counts["without_sentences"] += split.num_without_sentences
            counts["failed"] += len(split.failed)
            failed += split.failed[: 100 - len(failed)]
            progress.update(split.position - progress.n)
    spool.finish()
    documents = {"found": len(spool.num_sentences) + counts["without_sentences"] + counts["failed"], **counts, "failed_titles": failed}
    return spool, {"documents": documents}


def make_tokenizer(options: argparse.Namespace, spool: Spool, splits: np.ndarray, folder: Path) -> None:
    """Train a vocabulary on a random sample of the training sentences, or copy the one that was given."""
    if options.tokenizer:
        shutil.copytree(options.tokenizer, folder)
        return
    num_train = int(spool.num_sentences[splits == TRAIN].sum())
    rate = min(1.0, SAMPLE_SENTENCES / num_train)
    print(f"training {options.vocab_size} pieces on {min(num_train, SAMPLE_SENTENCES)} sentences", flush=True)
    export_tokenizer(train_vocabulary(sample_sentences(spool, splits, rate, options.seed), options.vocab_size), folder)


def sample_sentences(spool: Spool, splits: np.ndarray, rate: float, seed: int) -> Iterator[str]:
    """Each training sentence with probability `rate`, in order."""
    generator = np.random.default_rng(seed)
    for offset, documents in spool.blocks():
        is_train = np.repeat(splits[documents] == TRAIN, spool.num_sentences[documents])
        chosen = np.flatnonzero(is_train & (generator.random(len(is_train)) < rate))
        if len(chosen):
            sentences = spool.read(offset, documents)
            for index in chosen:
                yield sentences[index]


def encode_splits(options: argparse.Namespace, spool: Spool, splits: np.ndarray) -> dict[str, Any]:
    """The second pass: write the three indexed datasets. Returns the vocabulary size, the dtype and the counts of each split."""
    tokenizer_dir = options.output_dir / corpora.TOKENIZER_NAME
    vocab_size = load_processor(tokenizer_dir).vocab_size()
    dtype = np.int32 if options.token_dtype == "int32" or vocab_size > 65536 else np.uint16
    writers = {name: IndexedDatasetWriter(options.output_dir / name, dtype) for name in SPLIT_CODES}
    counts = {name: Counter(documents=0, sentences=0, tokens=0, characters=0, unknown=0) for name in SPLIT_CODES}
    tasks = (
        Block(spool.path, offset, int(spool.num_bytes[run].sum()), spool.num_sentences[run], splits[run], tokenizer_dir)
        for offset, run in spool.blocks()
    )
    try:
        with tqdm(total=int(spool.num_sentences.sum()), unit=" sentences", desc="tokens", disable=not sys.stderr.isatty()) as progress:
            for parts in ordered_map(encode_block, tasks, options.workers):
                for name, code in SPLIT_CODES.items():
                    if code in parts:
                        part = parts[code]
                        writers[name].add_documents(part.ids, part.sizes, part.items_per_document)
                        counts[name].update(documents=len(part.items_per_document), sentences=len(part.sizes), tokens=len(part.ids))
                        counts[name].update(characters=part.num_characters, unknown=part.num_unknown)
                        progress.update(len(part.sizes))
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return {"vocab_size": vocab_size, "token_dtype": np.dtype(dtype).name, "splits": {name: dict(count) for name, count in counts.items()}}


def write_manifest(output_dir: Path, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """The last step: from here on the folder is a corpus. No time, path or host stands in it: the same corpus, the same manifest."""
    files = [output_dir / f"{name}{end}" for name in corpora.SPLITS for end in (".bin", ".idx")]
    files += sorted((output_dir / corpora.TOKENIZER_NAME).iterdir())
    outputs = {file.relative_to(output_dir).as_posix(): {"bytes": file.stat().st_size, "sha256": corpora.sha256_of(file)} for file in files}
    manifest = {
        "format_version": corpora.FORMAT_VERSION,
        "fingerprint": corpora.fingerprint_of(outputs),
        "settings": settings,
        **facts,
        "outputs": outputs,
        "versions": {"sentencepiece": sentencepiece.__version__, "numpy": np.__version__},
    }
    corpora.write_manifest(output_dir, manifest)


def main() -> None:
    """The command."""
    prepare(parse_arguments())


if __name__ == "__main__":
    run_command(main)
