"""How well and how fast sentences are split by our rules, by kiwipiepy (if it is installed) and at full stops alone.

    python benchmarks/sentences.py --output benchmarks/results/sentences/record.json \\
        ud_korean_gsd.txt ud_korean_kaist.txt parallel_news_ko.txt

Measured: precision, recall and F1 of the boundaries, and megabytes per second of CPU time. Each file holds one sentence a line. Lines are
joined with single spaces into paragraphs of 5 to 20 (the seed is fixed), and each paragraph is split. A boundary is a character offset in
the paragraph without its white space; the paragraph's end does not count. The rules were written with the even paragraphs in view, so that
the odd ones count ("held out"); both are shown. The speed is that of one process over all paragraphs, the best of three runs (of kiwi one
run, which takes ten seconds). kiwipiepy is an extra: pip install -e '.[kiwi]'.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from data_tools.errors import UserError
from data_tools.sentences import make_splitter

SEED = 20
_MARK = re.compile(r"(?<=[.!?…])\s")


@dataclass(frozen=True)
class Count:
    """Boundaries: found that are right, found, and true."""

    right: int = 0
    found: int = 0
    true: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.right + other.right, self.found + other.found, self.true + other.true)

    def figures(self) -> dict[str, float]:
        precision, recall = self.right / max(self.found, 1), self.right / max(self.true, 1)
        f1 = 2 * self.right / max(self.found + self.true, 1)
        return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4), "boundaries": self.true}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    paragraphs = {path.stem: read_paragraphs(path) for path in arguments.files}
    splitters: dict[str, Callable[[str], list[str]]] = {"full stops": _MARK.split, "rules": make_splitter("rules")}
    try:
        splitters["kiwi"] = make_splitter("kiwi")
    except UserError as error:
        print(error, file=sys.stderr)
    record: dict[str, object] = {"python": sys.version.split()[0], "seed": SEED, "paragraphs": {k: len(v) for k, v in paragraphs.items()}}
    if "kiwi" in splitters:
        record["kiwipiepy"] = version("kiwipiepy")
    speeds = {}
    for name, split in splitters.items():
        figures, speeds[name] = measure(split, paragraphs, repeats=1 if name == "kiwi" else 3)
        record[name] = figures | {"mb_per_cpu_second": round(speeds[name], 3)}
        for half, of_files in figures.items():
            for file, numbers in of_files.items():
                print(f"{name:11} {half:9} {file:18}" + "".join(f"  {k} {v}" for k, v in numbers.items()))
        print(f"{name:11} {speeds[name]:.3f} MB per second of CPU time")
    if "kiwi" in speeds:
        record["times_the_speed_of_kiwi"] = round(speeds["rules"] / speeds["kiwi"], 1)
        print(f"rules: {record['times_the_speed_of_kiwi']} times the speed of kiwi")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_paragraphs(path: Path) -> list[list[str]]:
    """The file's sentences, in order, in paragraphs."""
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    lengths, paragraphs = random.Random(SEED), []
    while lines:
        n = lengths.randint(5, 20)
        paragraphs.append(lines[:n])
        lines = lines[n:]
    return paragraphs


def measure(
    split: Callable[[str], list[str]], paragraphs: dict[str, list[list[str]]], repeats: int
) -> tuple[dict[str, dict[str, dict[str, float]]], float]:
    """Figures by half and file, and MB of UTF-8 for each second of CPU time."""
    texts = {file: [" ".join(sentences) for sentences in of_file] for file, of_file in paragraphs.items()}
    megabytes = sum(len(text.encode()) for of_file in texts.values() for text in of_file) / 1e6
    split("준비한다.")  # what is loaded at the first use
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        pieces = {file: [split(text) for text in of_file] for file, of_file in texts.items()}
        seconds.append(time.process_time() - begin)
    figures = {}
    for half, parity in (("held out", 1), ("in view", 0)):
        counts = {
            file: sum((compare(t, p) for t, p in list(zip(paragraphs[file], pieces[file], strict=True))[parity::2]), Count())
            for file in paragraphs
        }
        counts["pooled"] = sum(counts.values(), Count())
        figures[half] = {file: count.figures() for file, count in counts.items()}
    return figures, megabytes / min(seconds)


def compare(true: list[str], found: list[str]) -> Count:
    text = _bare("".join(true))
    a, b = boundaries(text, true), boundaries(text, found)
    return Count(len(a & b), len(b), len(a))


def boundaries(text: str, pieces: list[str]) -> set[int]:
    """Where the pieces after the first begin in the text, which is without white space (a splitter may leave out a lone mark)."""
    starts, end = set(), 0
    for piece in map(_bare, pieces):
        start = text.index(piece, end)
        starts.add(start)
        end = start + len(piece)
    return starts - {0}


def _bare(text: str) -> str:
    return "".join(text.split())


if __name__ == "__main__":
    main()
