"""Raw text in, a corpus out: memory-mapped token ids in three splits, the tokenizer that made them, and a manifest.

    python -m data_tools.prepare --input TEXT_OR_DUMP_OR_FOLDER --output-dir CORPUS --vocab-size 32000

Two passes: documents into sentences on disk; then, with the splits drawn and the vocabulary trained, sentences into ids. If a run is
killed, the same command goes on after the last step that it finished. On hosts that share a file system:

    mpirun -n 32 python -m data_tools.prepare ...
"""

import argparse
import shutil
import signal
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tqdm import tqdm

from data_tools import corpus as corpora
from data_tools import lock
from data_tools.collecting import describe_sentences, list_inputs, sample_sentences, spool_sentences, tell_found
from data_tools.digest import sha256_of
from data_tools.encoding import Block, encode_block
from data_tools.errors import UserError, naming, run_command
from data_tools.mmididx import write_dataset
from data_tools.options import (
    VOCABULARY_DEFAULTS,
    add_input,
    add_seed,
    add_sentences,
    add_vocabulary,
    check_values,
    fill_vocabulary,
    new_parser,
)
from data_tools.splits import DEFAULT_SENTENCES, TEST, TRAIN, UNUSED, VALID, assign_documents, held_out_sizes
from data_tools.spool import Spool
from data_tools.vocabulary import FILES, MODEL_NAME, check_export, export_tokenizer, load_processor, train_vocabulary
from data_tools.work import Work
from data_tools.workers import mpi_workers, ordered_map

SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
WORK_NAME = ".work"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a number out of range is refused with a UserError."""
    parser = new_parser("prepare", __doc__)
    add_input(parser)
    add_seed(parser)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="CORPUS")
    add_sentences(parser)
    vocabulary = add_vocabulary(parser)
    vocabulary.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="use this tokenizer folder, made by prepare, instead of training one"
    )
    for split, default in DEFAULT_SENTENCES.items():
        parser.add_argument(f"--{split}-sentences", type=int, help=f"default {default}, less on small inputs")
    parser.add_argument("--max-train-sentences", type=int, help="default: all that are left")
    parser.add_argument(
        "--token-dtype",
        choices=("auto", "int32"),
        default="auto",
        help="auto: uint16 when the vocabulary fits (default); int32 also opens in Megatron-LM",
    )
    options = parser.parse_args(arguments)
    check_values(options)
    if options.tokenizer:
        if options.tokenizer.resolve().is_relative_to(options.output_dir.resolve()):
            raise UserError(
                f"--tokenizer {options.tokenizer}: expected a folder outside --output-dir, found one inside; copy it, or leave the flag "
                "out: the command that trained it will use it again"
            )
        found = check_export(options.tokenizer).vocab_size()
        if options.vocab_size not in (None, found):
            raise UserError(f"--vocab-size {options.vocab_size}: expected {found}, that of --tokenizer {options.tokenizer}; leave it out")
        options.vocab_size = found
        for name in VOCABULARY_DEFAULTS:
            if getattr(options, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: expected none with --tokenizer {options.tokenizer}, which is already trained; leave it out")
    else:
        fill_vocabulary(options)
    return options


def prepare(options: argparse.Namespace) -> None:
    """Make the corpus. Raises UserError for anything the user can fix; the manifest is written last."""
    inputs = list_inputs(options.input, besides=options.output_dir)
    described = describe_sentences(options, inputs)
    settings = describe_settings(options, described)
    output_dir = options.output_dir
    work = Work(output_dir / WORK_NAME)
    finished = is_already_there(output_dir, settings)
    if not finished or work.path.exists():  # left by a run that was killed at its very end, or by another process
        lock.hold(work.path)
        try:
            finished = finished or is_already_there(output_dir, settings)
        except UserError:  # another process made another corpus there meanwhile
            lock.release(work.path)
            with suppress(OSError):
                work.path.rmdir()
            raise
    if finished:
        print(f"{output_dir}: a corpus of these inputs and settings is already there; nothing to do")
        remove_work(work)
        return
    clear_remains(output_dir)
    spool, facts = spool_sentences(options, described, inputs, work)
    tell_found(options, len(inputs), spool, facts)
    total = int(spool.num_sentences.sum())
    valid, test, facts["notices"] = held_out_sizes(total, options.valid_sentences, options.test_sentences)
    splits = np.full(len(spool.num_sentences), UNUSED, np.uint8)  # documents with nothing but duplicates stay unused
    whole = spool.num_sentences > 0
    splits[whole] = assign_documents(spool.num_sentences[whole], valid, test, options.max_train_sentences, options.seed)
    for name, code, asked in (("valid", VALID, valid), ("test", TEST, test), ("train", TRAIN, options.max_train_sentences or total)):
        if (given := int(spool.num_sentences[splits == code].sum())) > asked:
            facts["notices"].append(f"{name}: {given} sentences instead of {asked}, since no document is smaller")
    make_tokenizer(options, settings, spool, splits, work)
    shutil.copytree(work.path / "tokenizer", output_dir / corpora.TOKENIZER_NAME)
    facts |= encode_splits(options, spool, splits)
    write_manifest(output_dir, settings, facts)
    remove_work(work)
    for notice in facts["notices"]:
        print(f"notice: {notice}")
    for name, counts in facts["splits"].items():
        print(f"{name}: {counts['documents']} documents, {counts['sentences']} sentences, {counts['tokens']} tokens")
    print(f"{output_dir}: done; look inside with: python -m data_tools.inspect {output_dir}")


def describe_settings(options: argparse.Namespace, described: dict[str, Any]) -> dict[str, Any]:
    """What determines the corpus's bytes: the same description, the same corpus (as long as `datasets` serves the same rows)."""
    names = (
        "vocab_size", "model_type", "character_coverage", "byte_fallback", "valid_sentences", "test_sentences", "max_train_sentences",
        "token_dtype", "seed",
    )  # fmt: skip
    tokenizer = sha256_of(options.tokenizer / MODEL_NAME) if options.tokenizer else None
    return {name: getattr(options, name) for name in names} | {"tokenizer_sha256": tokenizer} | described


def is_already_there(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very corpus. Raises UserError when it holds another, or foreign files."""
    if not output_dir.exists():
        return False
    if not output_dir.is_dir():
        raise UserError(f"--output-dir {output_dir}: expected a folder or nothing, found a file; give another name")
    if (output_dir / corpora.MANIFEST_NAME).exists():
        try:
            found = corpora.Corpus.open(output_dir).manifest["settings"]
        except UserError as error:
            raise UserError(f"--output-dir {output_dir}: holds a corpus that cannot be used ({error}); delete that folder") from None
        other = sorted(name for name in settings if found.get(name) != settings[name])
        if other:
            raise UserError(
                f"--output-dir {output_dir}: holds a finished corpus that differs in {', '.join(other)}; "
                "give another folder or delete that one"
            )
        return True
    found = {entry.name for entry in output_dir.iterdir()}
    ours = {WORK_NAME, corpora.TOKENIZER_NAME, corpora.MANIFEST_NAME + ".partial"}
    ours |= {f"{split}{end}{suffix}" for split in corpora.SPLITS for end in (".bin", ".idx") for suffix in ("", ".partial")}
    # a corpus made elsewhere has these names too; ours only exist together with .work
    foreign = sorted(found - ours if WORK_NAME in found else found)
    if foreign:
        raise UserError(f"--output-dir {output_dir}: expected an empty folder, found {foreign[0]}; give another folder")
    return False


def clear_remains(output_dir: Path) -> None:
    """Remove the parts of a corpus that an unfinished run left, only names that prepare gives. Finished steps stay."""
    shutil.rmtree(output_dir / corpora.TOKENIZER_NAME, ignore_errors=True)
    for split in corpora.SPLITS:
        for file in output_dir.glob(f"{split}.*"):
            file.unlink()


def remove_work(work: Work) -> None:
    """Release and remove the folder of the steps: the corpus is finished."""
    lock.release(work.path)
    shutil.rmtree(work.path, ignore_errors=True)


def make_tokenizer(options: argparse.Namespace, settings: dict[str, Any], spool: Spool, splits: np.ndarray, work: Work) -> None:
    """Train a vocabulary on a random sample of the training sentences, or copy the given one, into the step's folder."""
    folder = work.path / "tokenizer"
    if work.finished("tokenizer", settings) is not None:
        print(f"{folder}: the tokenizer is already there", flush=True)
        return
    if options.tokenizer:
        for name in FILES:  # only these: the folder may be a model's
            shutil.copyfile(options.tokenizer / name, folder / name)
    else:
        print(f"training {options.vocab_size} pieces", flush=True)
        sample = sample_sentences(spool, splits, options.seed)
        model = train_vocabulary(sample, options.vocab_size, options.model_type, options.character_coverage, options.byte_fallback)
        export_tokenizer(model, folder)
    work.finish("tokenizer", settings, {})


def encode_splits(options: argparse.Namespace, spool: Spool, splits: np.ndarray) -> dict[str, Any]:
    """The second pass: write the three indexed datasets. Returns the vocabulary size, the dtype and the counts of each split."""
    tokenizer_dir = options.output_dir / corpora.TOKENIZER_NAME
    vocab_size = load_processor(tokenizer_dir).vocab_size()
    dtype = np.int32 if options.token_dtype == "int32" or vocab_size > 65536 else np.uint16
    counts = {code: Counter(documents=0, sentences=0, tokens=0, characters=0, unknown=0, empty=0) for code in SPLIT_CODES.values()}
    tasks = (
        Block(
            spool.path, offset, int(spool.num_bytes[run].sum()), spool.kept_lines(run), spool.num_sentences[run], splits[run], tokenizer_dir
        )
        for offset, run in spool.blocks()
    )
    with ExitStack() as stack:
        writers = {code: stack.enter_context(write_dataset(options.output_dir / name, dtype)) for name, code in SPLIT_CODES.items()}
        progress = stack.enter_context(
            tqdm(total=int(spool.num_sentences.sum()), unit=" sentences", desc="tokens", disable=not sys.stderr.isatty())
        )
        for parts in ordered_map(encode_block, tasks, options.workers):
            for code, part in parts.items():
                writers[code].add_documents(part.ids, part.sizes, part.items_per_document)
                counts[code].update(documents=len(part.items_per_document), sentences=len(part.sizes), tokens=len(part.ids))
                counts[code].update(characters=part.num_characters, unknown=part.num_unknown, empty=part.num_empty)
                progress.update(len(part.sizes))
    splits_facts = {name: dict(counts[code]) for name, code in SPLIT_CODES.items()}
    return {"vocab_size": vocab_size, "token_dtype": np.dtype(dtype).name, "splits": splits_facts}


def write_manifest(output_dir: Path, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """The last step: from here on the folder is a corpus. It holds no time, path or host: the same corpus, the same manifest."""
    files = [output_dir / f"{name}{end}" for name in corpora.SPLITS for end in (".bin", ".idx")]
    files += sorted((output_dir / corpora.TOKENIZER_NAME).iterdir())
    outputs = {file.relative_to(output_dir).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
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
    with mpi_workers() as is_first:
        if is_first:
            options = parse_arguments()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files go; finished steps stay
            with naming(options.output_dir):
                prepare(options)


if __name__ == "__main__":
    run_command(main)
