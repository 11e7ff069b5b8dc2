"""Checkpoints of random numbers, and what can happen to their files."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.checkpoint import seal, settle, write_entries

SHAPES = {"a.weight": (40, 30), "a.bias": (40,), "b.weight": (30, 40)}


def make_checkpoint(run: Path, step: int, seed: int = 0) -> Path:
    """A whole checkpoint of two ranks and a frozen parameter."""
    generator = torch.Generator().manual_seed(seed * 1000 + step)
    partial = run / "checkpoints" / f"step-{step}.partial"
    partial.mkdir(parents=True)
    files, records = {}, {}
    for stem, names, trained in (("0", ["a.weight"], True), ("1", ["a.bias"], True), ("frozen", ["b.weight"], False)):
        values = {name: torch.randn(SHAPES[name], generator=generator) for name in names}
        entries = [(name, value, (value * 2, value * value) if trained else None) for name, value in values.items()]
        found, written = write_entries(partial, stem, {name: SHAPES[name] for name in names}, set(names) if trained else set(), entries)
        settle(written)
        files |= found
        records |= {name: {"shape": SHAPES[name], "file": stem, "adam_step": step if trained else 0} for name in names}
    return seal(partial, {"step": step, "seed": seed, "parameters": records}, files)


def truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def grow(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(rng.randrange(1, 9)))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def zero_the_end(path: Path, rng: random.Random) -> None:
    """What a power cut leaves of a file whose size was written before its data."""
    data = path.read_bytes()
    keep = rng.randrange(len(data) - 8)
    path.write_bytes(data[:keep] + bytes(len(data) - keep))


def edit_json(path: Path, rng: random.Random) -> None:
    """Valid JSON with an entry changed, taken out, or another thing altogether."""
    if path.suffix != ".json":
        flip_a_bit(path, rng)
        return
    content = json.loads(path.read_text())
    key = rng.choice(sorted(content))
    choice = rng.randrange(4)
    if choice == 0:
        del content[key]
    elif choice == 1:
        content[key] = rng.choice([None, [], 7, {}])
    elif choice == 2:
        content["new-" + key] = content.pop(key)
    path.write_text(json.dumps(content if choice < 3 else rng.choice([[], {}, None, "x"])))


DAMAGES: list[Callable[[Path, random.Random], None]] = [truncate, flip_a_bit, grow, remove, zero_the_end, edit_json]
