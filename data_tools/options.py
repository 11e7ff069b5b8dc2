"""The flags that the commands of data_tools share."""

import argparse
import os
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.filters import SCRIPTS, SentenceFilter

DEFAULT_VOCAB_SIZE = 32_000
VOCABULARY_DEFAULTS = {"model_type": "unigram", "character_coverage": 0.9995, "byte_fallback": False}
_LEAST = {"vocab_size": 10, "valid_sentences": 0, "test_sentences": 0, "max_train_sentences": 1, "workers": 1, "min_characters": 1,
          "max_characters": 1, "seed": 0}  # fmt: skip


def new_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m data_tools.{command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_input(parser: argparse.ArgumentParser) -> None:
    """--input and --workers."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files or directories, the format is told from the content; or hf:DATASET[:CONFIG], read through `datasets`",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: one for each core that we may use); the output does not depend on their number",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed, of what is drawn."""
    parser.add_argument("--seed", type=int, default=0)


def add_sentences(parser: argparse.ArgumentParser) -> None:
    """How text becomes sentences, and which are left out."""
    group = parser.add_argument_group("sentences")
    group.add_argument(
        "--splitter",
        choices=("rules", "kiwi", "lines"),
        default="rules",
        help="kiwi: slow, needs pip install -e '.[kiwi]'; lines: each line is a sentence already",
    )
    group.add_argument(
        "--min-characters", type=int, default=SentenceFilter.min_characters, help="shorter sentences are left out (default %(default)s)"
    )
    group.add_argument(
        "--max-characters", type=int, default=SentenceFilter.max_characters, help="longer sentences are left out (default %(default)s)"
    )
    group.add_argument("--script", choices=sorted(SCRIPTS), help="sentences with less than half of their letters in it are left out")
    group.add_argument("--keep-duplicates", action="store_true", help="without it, only the first of equal sentences is kept")
    help_text = "KLUE JSON or text whose sentences are left out: evaluation data"
    group.add_argument("--exclude", nargs="+", type=Path, default=[], metavar="FILE", help=help_text)


def add_vocabulary(parser: argparse.ArgumentParser) -> Any:
    """How a tokenizer is trained. Returns the group."""
    group = parser.add_argument_group("vocabulary")
    group.add_argument("--vocab-size", type=int, help=f"pieces, the 5 special tokens included (default {DEFAULT_VOCAB_SIZE})")
    group.add_argument("--model-type", choices=("unigram", "bpe"), help=f"default {VOCABULARY_DEFAULTS['model_type']}")
    coverage = VOCABULARY_DEFAULTS["character_coverage"]
    group.add_argument("--character-coverage", type=float, help=f"share of the characters that get a piece (default {coverage})")
    group.add_argument("--byte-fallback", action="store_true", default=None, help="the other characters become UTF-8 bytes, not <unk>")
    return group


def fill_vocabulary(options: argparse.Namespace) -> None:
    """Set what was not given of `add_vocabulary`. Defaults of the parser could not be told from what was given."""
    for name, default in ({"vocab_size": DEFAULT_VOCAB_SIZE} | VOCABULARY_DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def check_values(options: argparse.Namespace) -> None:
    """Raises UserError for a number out of range, and an output without a name."""
    for name in ("output", "output_dir"):
        if str(getattr(options, name, "x")) == ".":  # what "" becomes, from a variable that is not set; the user's own files are there
            raise UserError(f"--{name.replace('_', '-')}: expected the name of a place, found the current folder; name another")
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
    if options.min_characters > options.max_characters:
        raise UserError(f"--min-characters {options.min_characters}: expected at most --max-characters, {options.max_characters}")
    coverage = getattr(options, "character_coverage", None)
    if coverage is not None and not 0.98 <= coverage <= 1:
        raise UserError(f"--character-coverage {coverage}: expected 0.98 to 1")
