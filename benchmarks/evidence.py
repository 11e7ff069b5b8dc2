"""Runs the experiments of benchmarks/evidence.yaml unattended, and goes on where it was after a kill. Keeps small records, no weights.

    python -m benchmarks.evidence list                                        # which cells are done, under way, still to do
    python -m benchmarks.evidence run --corpus corpora/clean --klue KLUE_FOLDER --lexicon EN_KO [--only itl] [--minutes 100] [--commit]

A cell is one post-training run, with the fine-tuning runs that it asks for. When it ends, its record is written (and with --commit
committed): benchmarks/results/evidence/TABLE.NAME.SEED.json, with losses in nats per masked token, scores in per cent and speed in tokens
per second. A recorded cell is skipped, until the table asks for scores that the record does not have. What was begun or recorded under
another definition of the cell is refused. At the end of --minutes, or on SIGTERM, the running processes are asked to save and stop; the
next call goes on with them.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import origin as origins
from benchmarks.evidence_report import DEFINES, RECORDS
from benchmarks.probes import probe, test_loss
from data_tools import aside
from data_tools.corpus import Corpus
from data_tools.digest import sha256_of
from data_tools.errors import UserError, run_command

TABLE = Path("benchmarks/evidence.yaml")
RUNS = Path("runs/evidence")


class OtherExperimentError(Exception):
    """What stands there was begun or recorded under another definition of the cell."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One post-training run; benchmarks/evidence.yaml says what each entry is."""

    table: str
    name: str
    seed: int
    tokens: int
    klue: list[float]
    text: str
    variant: list[str]
    set: dict[str, Any]
    stages: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.table}.{self.name}.{self.seed}"

    @property
    def record(self) -> Path:
        return RECORDS / f"{self.label}.json"

    @property
    def run(self) -> Path:
        return RUNS / self.label

    @property
    def origin(self) -> Path:
        return RUNS / f"{self.label}.origin.json"

    def corpus(self, whole: Path) -> Path:
        """Its text: the whole corpus, or the part of it that stands beside it."""
        return whole.with_name(whole.name + self.text)

    def overrides(self, recipe: dict[str, Any], common: dict[str, Any]) -> list[str]:
        """--set arguments: the stages with their steps, what all cells have in common, and the cell's own settings."""
        batch = self.set.get("global_batch_size", recipe["global_batch_size"])
        steps = self.tokens // (batch * self.set.get("sequence_length", recipe["sequence_length"]))
        rows, done = [], 0.0
        for stage in self.stages:
            share = stage["share"]
            own = round(steps * (done + share)) - round(steps * done)
            done += share
            kept = {key: value for key, value in stage.items() if key not in ("share", "warmup")}
            rows.append({"schedule": "linear", **kept, "steps": own, "warmup_steps": int(own * stage.get("warmup", 0.1))})
        every = {"every.evaluate": max(64, steps // 40), "every.checkpoint": max(1, steps // 8), "seed": self.seed}
        if self.klue:
            every["keep_every"] = steps // 8
        values = {**every, **common, **self.set, "stages": rows}
        return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=9999).splitlines()[0]}" for key, value in values.items()]


def read_cells(path: Path = TABLE) -> tuple[dict[str, Any], list[Cell]]:
    """(the file, cells in their order)."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    cells = []
    for table, rows in given["tables"].items():
        defaults = {**given["defaults"], **rows.pop("defaults", {})}
        for name, row in rows.items():
            settings = {**defaults, **row, "set": {**defaults["set"], **row.get("set", {})}}
            cells += [Cell(table, name, seed, **{k: v for k, v in settings.items() if k != "seeds"}) for seed in settings["seeds"]]
    return given, cells


def start(cell: Cell, given: dict[str, Any], arguments: argparse.Namespace) -> subprocess.Popen:
    """The next process that the cell needs: post-training, and then, where it is asked for, fine-tuning after each share."""
    note_origin(cell, given, arguments)
    if not (cell.run / "model" / "config.json").is_file():
        recipe = given["recipe"]
        settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        program = ["-m", "benchmarks.variants", *cell.variant, "--"] if cell.variant else ["trainer/xpt.py"]
        command = [
            *program, "--recipe", recipe, "--ds-config", "ds_configs/zero2_cpu.json", "--corpus", str(cell.corpus(arguments.corpus)),
            "--output-dir", str(cell.run), "--set", f"surgery.lexicon={arguments.lexicon}", *cell.overrides(settings, given["common"]),
        ]  # fmt: skip
    else:
        share = next(share for share in cell.klue if not fine_tuned(cell, share).is_file())
        train, dev = klue_files(arguments.klue)
        command = [
            "trainer/klue_re.py", "train", "--model", str(export(cell, share, cell.corpus(arguments.corpus))), "--train-file", str(train),
            "--eval-file", str(dev), *given["fine_tuning"], "--seed", str(cell.seed), "--output-dir", str(fine_tuned(cell, share).parent),
        ]  # fmt: skip
    with open(f"{cell.run}.log", "a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        return subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)


def klue_files(folder: Path) -> list[Path]:
    """The file to train on and the one to evaluate on. Raises UserError unless there is one of each."""
    found = [sorted(folder.glob(f"*{name}*.json")) for name in ("train", "dev")]
    for name, files in zip(("train", "dev"), found, strict=True):
        if len(files) != 1:
            found_names = ", ".join(file.name for file in files) or "none"
            raise UserError(f"--klue {folder}: expected one *{name}*.json, found {found_names}; name a folder that has one")
    return [file for (file,) in found]


def ingredients(cell: Cell, arguments: argparse.Namespace) -> dict[str, str]:
    """By content, what the cell is made of besides its definition. The corpus has a fingerprint of its own."""
    train, dev = klue_files(arguments.klue)
    files = {"lexicon": arguments.lexicon, "klue_train": train, "klue_dev": dev}
    return {"corpus": Corpus.open(cell.corpus(arguments.corpus)).fingerprint, **{name: sha256_of(file) for name, file in files.items()}}


def note_origin(cell: Cell, given: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Beside the run: the cell's definition, what it is made of, the processor, and at each start the last commit that changed code, marked
    where files differ from it. Raises OtherExperimentError when what stands there was begun under another definition or of other things."""
    commit, made_of = origins.commit(), ingredients(cell, arguments)
    if not cell.origin.is_file():
        origin = {**definition(cell, given), **made_of, "processor": origins.processor(), "commits": []}
    else:
        origin = json.loads(cell.origin.read_text(encoding="utf-8"))
        refuse_other({**definition(cell, given), **made_of}, origin, str(cell.run))
    if commit not in origin["commits"]:
        origin["commits"].append(commit)
        aside.write_text(cell.origin, json.dumps(origin))


def definition(cell: Cell, given: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run or a record to be the cell's."""
    return {**{key: getattr(cell, key) for key in DEFINES}, **({"fine_tuning": given["fine_tuning"]} if cell.klue else {})}


def refuse_other(wanted: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Raise OtherExperimentError unless `found` agrees in all that it says of what is wanted."""
    differing = [key for key, value in wanted.items() if found.get(key, value) != value]
    if differing:
        raise OtherExperimentError(f"{where} is of another {' and '.join(differing)}; move it away, or fix {TABLE}")


def fine_tuned(cell: Cell, share: float) -> Path:
    return cell.run / f"klue_re-{share}" / "report.json"


def export(cell: Cell, share: float, corpus: Path) -> Path:
    """The model after that share of the steps, as a folder."""
    if share == 1:
        return cell.run / "model"
    folder = cell.run / f"model-{share}"
    if not (folder / "config.json").is_file():  # while the checkpoints are there
        steps = max((int(path.name.removeprefix("step-")) for path in (cell.run / "checkpoints").glob("step-*[0-9]")), default=0)
        if not steps:
            raise FileNotFoundError(f"the checkpoints of {cell.run} are gone, so that nothing can be scored at {share} of its tokens")
        words = ["-m", "trainer.export", "--checkpoint", str(cell.run / "checkpoints" / f"step-{round(share * steps)}")]
        subprocess.run([sys.executable, *words, "--corpus", str(corpus), "--output-dir", str(folder)], check=True)
    return folder


def finished(cell: Cell) -> bool:
    return (cell.run / "model" / "config.json").is_file() and all(fine_tuned(cell, share).is_file() for share in cell.klue)


def recorded(cell: Cell, given: dict[str, Any]) -> bool:
    """Is there a record, with a score for each share that is asked for? Raises OtherExperimentError."""
    if not cell.record.is_file():
        return False
    record = json.loads(cell.record.read_text(encoding="utf-8"))
    refuse_other(definition(cell, given), record, str(cell.record))
    return {row["tokens"] for row in record["klue_re"]} >= {share * cell.tokens for share in cell.klue}


def keep(cell: Cell, arguments: argparse.Namespace) -> None:
    """Write the cell's record from its run folder, and remove the checkpoints, which are large; what they showed, an earlier record has."""
    rows = [json.loads(line) for line in (cell.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    curve = [[row["step"], row["stage"], round(row["valid_loss"], 5)] for row in rows if "valid_loss" in row]
    earlier = json.loads(cell.record.read_text(encoding="utf-8")) if cell.record.is_file() else {}
    origin = json.loads(cell.origin.read_text(encoding="utf-8"))
    record = {**asdict(cell), **origin, "steps": rows[-1]["step"], "tokens_per_second": speeds[len(speeds) // 2], "curve": curve}
    figures = ("micro_f1", "auprc", "accuracy", "num_examples", "training_seconds")
    reports = {share: json.loads(fine_tuned(cell, share).read_text(encoding="utf-8")) for share in cell.klue}
    record["klue_re"] = [{"tokens": share * cell.tokens, **{key: report[key] for key in figures}} for share, report in reports.items()]
    valid = Corpus.open(cell.corpus(arguments.corpus)).manifest["splits"]["valid"]
    record["tokens_per_character"] = round(valid["tokens"] / valid["characters"], 5)
    record["test_loss"] = round(test_loss(cell.run / "model", cell.corpus(arguments.corpus)), 5)
    if (cell.run / "checkpoints").is_dir():
        record["probes"] = probe(cell.run, arguments.lexicon)
    elif "probes" in earlier:
        record["probes"] = earlier["probes"]
    aside.write_text(cell.record, json.dumps(record, ensure_ascii=False) + "\n")
    shutil.rmtree(cell.run / "checkpoints", ignore_errors=True)
    if arguments.commit:
        commit_record(cell)


def commit_record(cell: Cell) -> None:
    """The record alone. Another runner in this tree may hold git's lock for a moment."""
    add = ["git", "add", str(cell.record)]
    for words in (add, ["git", "commit", "--quiet", "--message", f"Record of {cell.label}", "--", str(cell.record)]):
        for left in range(9, -1, -1):
            if subprocess.run(words, check=not left).returncode == 0:
                break
            time.sleep(1)


class Runner:
    """What is left to do, and what runs. A cell's trouble is told and counted, and is not the others'."""

    def __init__(self, given: dict[str, Any], left: list[Cell], arguments: argparse.Namespace) -> None:
        self.given, self.left, self.arguments = given, left, arguments
        self.running: dict[Cell, subprocess.Popen] = {}
        self.failed = 0
        self.ending = False

    def begin(self) -> None:
        """Start as many cells as run at a time."""
        while self.left and len(self.running) < self.arguments.jobs:
            self._try(self._begin, self.left.pop(0))

    def end(self) -> None:
        """Ask what runs to stop and save; nothing more is begun."""
        self.ending = True
        self.left.clear()
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)

    def collect(self) -> None:
        """See which processes have ended, and keep the records of the cells that are finished with them."""
        for cell, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[cell]
            if process.returncode and not self.ending:
                self.failed += 1
                print(f"{cell.label}: failed with status {process.returncode}; see {cell.run}.log", flush=True)
            elif finished(cell):
                self._try(self._keep, cell)
            elif not self.ending:
                self.left.insert(0, cell)  # post-trained; now the fine-tuning

    def _try(self, work: Callable[[Cell], None], cell: Cell) -> None:
        try:
            work(cell)
        except (OtherExperimentError, UserError, OSError, LookupError, ValueError, subprocess.CalledProcessError) as error:
            self.failed += 1
            print(f"{cell.label}: {type(error).__name__}: {error}", flush=True)

    def _begin(self, cell: Cell) -> None:
        if recorded(cell, self.given):
            shutil.rmtree(cell.run / "checkpoints", ignore_errors=True)  # of a kill just after the record was written
        elif finished(cell):
            self._keep(cell)
        else:
            self.running[cell] = start(cell, self.given, self.arguments)
            print(f"{time.strftime('%H:%M')} {cell.label}: started; {len(self.left)} more to do", flush=True)

    def _keep(self, cell: Cell) -> None:
        keep(cell, self.arguments)
        print(f"{time.strftime('%H:%M')} {cell.label}: done", flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Run what is left; returns how many cells failed."""
    given, cells = read_cells()
    left = [cell for cell in cells if cell.label.startswith(arguments.only)]
    if not left:
        raise UserError(f"--only {arguments.only}: no cell of {TABLE} begins so; `list` names them")
    klue_files(arguments.klue)
    deadline = time.monotonic() + 60 * arguments.minutes
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    runner = Runner(given, left, arguments)
    try:
        while runner.left or runner.running:
            if asked or time.monotonic() > deadline:
                runner.end()
            runner.begin()
            time.sleep(2)
            runner.collect()
    finally:  # a defect of this program leaves nobody behind that trains on unseen
        for process in runner.running.values():
            process.terminate()
    return runner.failed


def show() -> None:
    given, cells = read_cells()
    for cell in cells:
        metrics = cell.run / "metrics.jsonl"
        try:
            done = recorded(cell, given)
            state = "done" if done else f"at {metrics.read_text().count(chr(10))} rows" if metrics.is_file() else "to do"
        except OtherExperimentError as error:
            state = str(error)
        print(f"{cell.label:<34}{cell.tokens / 1e6:>8.1f}M tokens   {state}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    runner = commands.add_parser("run")
    runner.add_argument("--corpus", type=Path, required=True)
    runner.add_argument("--klue", type=Path, required=True)
    runner.add_argument("--lexicon", type=Path, required=True)
    runner.add_argument("--only", default="", help="cells whose label begins so")
    runner.add_argument("--minutes", type=float, default=100)
    runner.add_argument("--jobs", type=int, default=2, help="cells at a time")
    runner.add_argument("--commit", action="store_true", help="commit each record as its cell ends")
    arguments = parser.parse_args()
    if arguments.command == "list":
        show()
    else:
        sys.exit(1 if run(arguments) else 0)


if __name__ == "__main__":
    run_command(main)
