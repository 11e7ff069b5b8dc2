"""Make the invented Korean world that the quickstart learns from: a wiki dump to read, and questions about relations to answer.

    python -m data_tools.world --output-dir DIR [--articles 4000] [--train-rows 3000] [--eval-rows 800] [--seed 0]

writes DIR/wiki.xml (a MediaWiki export), DIR/klue_re_train.json and DIR/klue_re_eval.json (KLUE-RE's format). The same arguments
give the same bytes. See `world_region`, `world_text`, `world_dump` and `world_relations` for what is in them.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from data_tools.aside import replacing
from data_tools.errors import UserError, run_command
from data_tools.world_dump import dump_xml
from data_tools.world_region import build_world
from data_tools.world_relations import build_rows
from data_tools.world_text import read_sentences

FILES = ("wiki.xml", "klue_re_train.json", "klue_re_eval.json")
MIN_ARTICLES = 400  # fewer do not hold a person for every frame


def write_world(output_dir: Path, num_articles: int, num_train_rows: int, num_eval_rows: int, seed: int) -> None:
    """Write the three files into `output_dir`. Raises UserError."""
    if num_articles < MIN_ARTICLES:
        raise UserError(f"--articles: expected at least {MIN_ARTICLES}, found {num_articles}; ask for more articles")
    for flag, number in (("--train-rows", num_train_rows), ("--eval-rows", num_eval_rows)):
        if number < 1:
            raise UserError(f"{flag}: expected at least 1, found {number}; ask for more rows")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output-dir {output_dir}: expected a folder, found a file; name another")
    output_dir.mkdir(parents=True, exist_ok=True)
    sentences = read_sentences()
    regions = build_world(num_articles, sentences.names, seed)
    with ExitStack() as stack:  # all are named at its end: a folder with only some of the files would look complete
        paths = {name: stack.enter_context(replacing(output_dir / name)) for name in FILES}
        for split, num_rows in (("train", num_train_rows), ("eval", num_eval_rows)):
            rows = build_rows(split, num_rows, regions[split], sentences, random.Random(f"rows {split} {seed}"))
            _write(paths[f"klue_re_{split}.json"], [json.dumps(rows, ensure_ascii=False, indent=1), "\n"])
        parts = dump_xml(regions, sentences, random.Random(f"dump {seed}"))
        progress = tqdm(parts, total=num_articles, unit=" pages", desc="wiki.xml", disable=not sys.stderr.isatty())
        _write(paths["wiki.xml"], progress)


def _write(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(parts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make an invented Korean world: a wiki dump, and relation rows about it.")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--articles", type=int, default=4000, help="articles in the dump (default: %(default)s)")
    parser.add_argument("--train-rows", type=int, default=3000, help="rows to learn from (default: %(default)s)")
    parser.add_argument("--eval-rows", type=int, default=800, help="rows to be scored on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_world(args.output_dir, args.articles, args.train_rows, args.eval_rows, args.seed)
    for name in FILES:
        path = args.output_dir / name
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_command(main)
