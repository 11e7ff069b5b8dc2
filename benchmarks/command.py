"""A benchmark's command line: --help prints what the module says of itself, and what is missing or too much is an error."""

import argparse
from pathlib import Path


def paths(doc: str | None, *names: str) -> list[Path]:
    """The paths that were given, one a name; a last name with `...` takes one or more. Flags of DeepSpeed's launcher are passed over."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        parser.add_argument(name.removesuffix("..."), nargs="+" if name.endswith("...") else 1, type=Path)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    return [path for name in names for path in given[name.removesuffix("...")]]
