"""What data_tools.prepare costs: time, speed and memory.

    python benchmarks/prepare_cost.py --repeat 1 8 -- --input TEXT --vocab-size 32000 [any flag of prepare]

Measured: seconds of each step, megabytes of input per second without the training of the tokenizer, and the peak memory of the process and
its workers together in MB (PSS). --repeat N: with the decompressed input N times over in one file; give --keep-duplicates too, or little
is left of it. Prints a JSON line for each N.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from data_tools.compression import open_decompressed


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children that still run, pages that they share counted once (PSS)."""
    memory = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            memory += one.memory_full_info().pss
    return memory


def measure(words: list[str], folder: Path) -> dict[str, float]:
    """Run prepare and watch it."""
    begin, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "data_tools.prepare", *words, "--output-dir", str(folder)], stdout=subprocess.DEVNULL)
    ends: dict[str, float] = {}
    while process.poll() is None:
        for name in ("sentences", "tokenizer"):
            if name not in ends and (folder / ".work" / f"{name}.json").exists():
                ends[name] = time.perf_counter()
        peak = max(peak, memory_of(process))
        time.sleep(0.1)
    assert process.returncode == 0
    end = time.perf_counter()
    parts = {
        "sentences": ends["sentences"] - begin,
        "tokenizer": ends["tokenizer"] - ends["sentences"],
        "tokens": end - ends["tokenizer"],
    }
    return {"peak_megabytes": peak / 1e6, **{f"{name}_seconds": value for name, value in parts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, nargs="+", default=[1])
    parser.add_argument("prepare", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    words = arguments.prepare[1:]
    place = words.index("--input") + 1
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs") as name:
        for count in arguments.repeat:
            text = Path(name) / "text.txt"
            with open(text, "wb") as out:
                for _ in range(count):
                    with open(words[place], "rb") as source:
                        shutil.copyfileobj(open_decompressed(source), out)
                    out.write(b"\n\n")
            megabytes = text.stat().st_size / 1e6
            row = measure([*words[:place], str(text), *words[place + 1 :]], Path(name) / f"corpus-{count}")
            rate = megabytes / (row["sentences_seconds"] + row["tokens_seconds"])
            print(
                json.dumps(
                    {"megabytes": round(megabytes), "megabytes_per_second": round(rate, 1)} | {k: round(v, 1) for k, v in row.items()}
                )
            )


if __name__ == "__main__":
    main()
