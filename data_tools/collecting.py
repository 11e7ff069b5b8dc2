"""The first pass: all inputs into sentences, which are kept on disk for the second."""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.digest import sha256_of
from data_tools.errors import UserError
from data_tools.exclusions import read_exclusions
from data_tools.filters import SentenceFilter
from data_tools.hub import is_dataset, local_content, read_dataset
from data_tools.sentences import make_splitter
from data_tools.sources import Document, list_files, read_documents, relative_name
from data_tools.splits import TRAIN
from data_tools.spool import SplitDocuments, Spool, batch_documents, split_documents
from data_tools.work import Work
from data_tools.workers import ordered_map

SAMPLE_SENTENCES = 300_000
SETTINGS = ("splitter", "min_characters", "max_characters", "script", "keep_duplicates")


def list_inputs(names: list[str], besides: Path | None = None) -> list[Path | str]:
    """The files under the inputs in sorted order, and the names of datasets; of a file with several names, the first. besides: a folder to
    leave out.

    Raises UserError for an input that is missing or holds nothing.
    """
    inputs: list[Path | str] = []
    for name in names:
        if not name:  # from a variable that is not set; as a path it would be the current folder
            raise UserError("--input '': expected a file or a directory, found an empty name; check the variable it came from")
        inputs += [name] if is_dataset(name) else list_files([Path(name)], besides)
    first: dict[str, Path | str] = {}
    for given in inputs:
        known = first.setdefault(given if isinstance(given, str) else os.path.realpath(given), given)
        if known is not given:
            print(f"{given}: the same as {known}, read once", flush=True)
    return list(first.values())


def describe_sentences(options: argparse.Namespace, inputs: list[Path | str]) -> dict[str, Any]:
    """What determines the sentences: the settings, and the contents of the files."""
    folders = [Path(name) for name in options.input if not is_dataset(name)]
    described = [
        {"name": file, **local_content(file)}
        if isinstance(file, str)
        else {"name": relative_name(file, folders), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in tqdm(inputs, desc="inputs", disable=not sys.stderr.isatty(), leave=False)
    ]
    for file in options.exclude:
        if not file.is_file():
            raise UserError(f"--exclude {file}: expected a file of evaluation data, found none; check the path")
    excluded = [sha256_of(file) for file in options.exclude]
    return {name: getattr(options, name) for name in SETTINGS} | {"exclude": excluded, "inputs": described}


def tell_found(options: argparse.Namespace, num_inputs: int, spool: Spool, facts: dict[str, Any]) -> None:
    """Print what became of the sentences. Raises UserError when none is left."""
    counts = facts["sentences"]
    left_out = [f"{reason} {count:,}" for reason, count in counts.items() if reason != "found" and count]
    found = f"{counts['found']:,} sentences" + (f", left out of them: {', '.join(left_out)}" if left_out else "")
    if not spool.kept.any():
        raise UserError(f"--input {' '.join(options.input)}: expected text, found {found} in {num_inputs} file(s)")
    print(found, flush=True)
    if options.exclude and not counts["excluded"]:
        print("notice: --exclude: none of its texts is among the sentences; is it KLUE JSON, a table or plain text?", flush=True)


def spool_sentences(
    options: argparse.Namespace, described: dict[str, Any], inputs: list[Path | str], work: Work
) -> tuple[Spool, dict[str, Any]]:
    """The documents of all inputs, split into sentences on disk, and what was counted on the way. described: by `describe_sentences`."""
    spool = Spool(work.path / "sentences")
    if facts := work.finished("sentences", described):
        print(f"{spool.path.parent}: the sentences are already there", flush=True)
        spool.load()
        return spool, facts
    excluded = None
    if options.exclude:
        excluded = spool.path.with_name("excluded.npy")
        np.save(excluded, read_exclusions(options.exclude, make_splitter(options.splitter)))
    keep = SentenceFilter(options.min_characters, options.max_characters, options.script, excluded)
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter(short=0, long=0, script=0, excluded=0)
    failed: list[str] = []
    digests: dict[str, Any] = {name: hashlib.sha256() for name in inputs if isinstance(name, str)}

    def documents() -> Iterator[Document]:
        start = 0
        for file in inputs:
            if isinstance(file, str):
                yield from read_dataset(file, start, digests[file])
            else:
                yield from read_documents(file, start)
                start += file.stat().st_size

    total_bytes = sum(file.stat().st_size for file in inputs if isinstance(file, Path))
    progress = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="sentences", disable=not sys.stderr.isatty())

    def counted() -> Iterator[SplitDocuments]:
        work_on = partial(split_documents, splitter=options.splitter, keep=keep)
        for split in ordered_map(work_on, batch_documents(documents()), options.workers):
            counts["without_sentences"] += split.num_without_sentences
            counts["failed"] += len(split.failed)
            failed.extend(split.failed[: 100 - len(failed)])
            left_out.update(split.left_out)
            progress.update(split.position - progress.n)
            yield split

    with progress:
        spool.fill(counted(), options.keep_duplicates)
    found = len(spool.num_lines) + counts["without_sentences"] + counts["failed"]
    sentences = {"found": len(spool.kept) + left_out.total(), **left_out, "duplicates": int((~spool.kept).sum())}
    facts = {"documents": {"found": found, **counts, "failed_titles": failed}, "sentences": sentences}
    if digests:
        facts["datasets_sha256"] = {name: digest.hexdigest() for name, digest in digests.items()}
    return spool, work.finish("sentences", described, facts)


def sample_sentences(spool: Spool, splits: np.ndarray, seed: int) -> Iterator[str]:
    """About SAMPLE_SENTENCES of the training sentences, each equally likely, in order: what the vocabulary is trained on."""
    generator = np.random.default_rng(seed)
    rate = min(1.0, SAMPLE_SENTENCES / int(spool.num_sentences[splits == TRAIN].sum()))
    for offset, documents in spool.blocks():
        is_train = np.repeat(splits[documents] == TRAIN, spool.num_sentences[documents])
        chosen = np.flatnonzero(is_train & (generator.random(len(is_train)) < rate))
        if len(chosen):
            sentences = spool.read(offset, documents)
            for index in chosen:
                yield sentences[index]
