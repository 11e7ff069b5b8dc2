"""The portable state of a run: safetensors and JSON, keyed by parameter name, the same for any number of ranks.

    RUN/checkpoints/step-N/
        weights-N-R.safetensors   fp32 values of the parameters that rank R was the owner of, whole, under their own names
        moments-N-R.safetensors   NAME.exp_avg, NAME.exp_avg_sq of the same
        weights-M-S.safetensors, moments-M-S.safetensors   files of an earlier step M with parameters that are frozen since; hard links
        state.json                step, recipe, corpus, model configuration, forward check; per parameter: shape, file (N-R), Adam step
        complete.json             size and XXH3-128 of every file above; written last

A checkpoint is written to step-N.partial and renamed. No pickle anywhere.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open

from data_tools.aside import flush
from data_tools.errors import UserError

FORMAT = 2
Moments = tuple[torch.Tensor, torch.Tensor]
Entry = tuple[str, torch.Tensor, Moments | None]
"""A parameter's name, fp32 value and, if it ever trained, Adam moments (exp_avg, exp_avg_sq)."""


class _TensorWriter:
    """Writes one safetensors file tensor by tensor, so that no rank needs room for all of them; hashes as it writes."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        header, offset = {}, 0
        for name, shape in shapes.items():
            size = 4 * int(np.prod(shape))
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        self.path, self._shapes, self._size, self._hash = path, iter(shapes.items()), 0, xxhash.xxh3_128()
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115
        self._put(memoryview(len(text).to_bytes(8, "little") + text))

    def _put(self, data: memoryview) -> None:
        self.file.write(data)
        self._hash.update(data)
        self._size += data.nbytes

    def add(self, tensor: torch.Tensor) -> None:
        """The next tensor of `shapes`."""
        name, shape = next(self._shapes)
        assert tuple(tensor.shape) == tuple(shape) and tensor.dtype == torch.float32, name
        self._put(memoryview(tensor.detach().cpu().contiguous().numpy().reshape(-1)).cast("B"))  # type: ignore[arg-type]

    def end(self) -> dict[str, Any]:
        """Hand everything to the operating system, not yet to the disk; returns the file's size and checksum."""
        assert next(self._shapes, None) is None, f"{self.path} lacks tensors"
        self.file.flush()
        return {"size": self._size, "xxh3": self._hash.hexdigest()}


def write_entries(
    directory: Path, stem: str, shapes: Mapping[str, tuple[int, ...]], trained: set[str], entries: Iterable[Entry]
) -> tuple[dict[str, Any], list[BinaryIO]]:
    """Write weights-STEM and moments-STEM (of the names in `trained`); entries come in the order of `shapes`.

    Returns size and checksum of each file, and the files, still open: on NFS closing waits for the server. They are readable on this host
    now, on others and safe from a power cut after `settle`.
    """
    weights = _TensorWriter(directory / f"weights-{stem}.safetensors", shapes)
    moments = _TensorWriter(
        directory / f"moments-{stem}.safetensors",
        {f"{name}.{kind}": shape for name, shape in shapes.items() if name in trained for kind in ("exp_avg", "exp_avg_sq")},
    )
    for name, value, state in entries:
        weights.add(value)
        if name in trained:
            assert state is not None, name
            moments.add(state[0])
            moments.add(state[1])
    return {writer.path.name: writer.end() for writer in (weights, moments)}, [weights.file, moments.file]


def settle(files: list[BinaryIO]) -> None:
    """Wait until what was written is on the disk, and close."""
    for file in files:
        os.fsync(file.fileno())
        file.close()


def _write_json(path: Path, content: Any) -> dict[str, Any]:
    data = json.dumps(content, ensure_ascii=False, indent=1).encode()
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}


def seal(partial: Path, state: dict[str, Any], files: dict[str, Any]) -> Path:
    """Write state.json and the completeness marker, then give the folder its final name. Returns that. `files` are on the disk already."""
    files = {**files, "state.json": _write_json(partial / "state.json", {"format": FORMAT, **state})}
    _write_json(partial / "complete.json", files)
    final = partial.with_name(partial.name.removesuffix(".partial"))
    if final.exists():  # saved before an interruption, now reached again
        shutil.rmtree(final)
    partial.rename(final)
    flush(final.parent)
    return final


def write_alone(
    run: Path, step: int, stem: str, parameters: Mapping[str, torch.Tensor], moments: Mapping[str, Moments], state: dict[str, Any]
) -> Path:
    """A checkpoint that one process writes, on the disk when this returns. Returns its folder.

    moments: of the parameters that trained, each `step` Adam steps. state: what state.json holds besides the parameters.
    """
    partial = run / "checkpoints" / f"step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    entries = ((name, value.detach(), moments.get(name)) for name, value in parameters.items())
    files, written = write_entries(partial, stem, shapes, set(moments), entries)
    settle(written)
    records = {name: {"shape": shape, "file": stem, "adam_step": step if name in moments else 0} for name, shape in shapes.items()}
    return seal(partial, {**state, "parameters": records}, files)


def link_files(partial: Path, previous: "Checkpoint", stems: set[str]) -> dict[str, Any]:
    """Hard-link the files of an earlier checkpoint that have these stems; copies where the file system has no links.

    They hold more than the parameters that are still wanted of them, at most once per stage; it costs neither time nor space. Returns
    their sizes and checksums.
    """
    names = [f"{kind}-{stem}.safetensors" for stem in sorted(stems) for kind in ("weights", "moments")]
    for name in names:
        try:
            os.link(previous.path / name, partial / name)
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(previous.path / name, partial / name)
            flush(partial / name)
    return {name: previous.files[name] for name in names}


_WAY_OUT = "give another step-N, or copy this one anew from where it is whole"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Tensors are mapped from the files, not held."""

    path: Path
    """Its folder; of one that is still being saved, the folder with the suffix .partial."""
    state: dict[str, Any]
    files: dict[str, Any]

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> "Checkpoint":
        """Open and verify sizes and checksums. Raises UserError that names the damaged file."""
        try:
            files = json.loads((path / "complete.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            if not path.is_dir():
                raise UserError(f"checkpoint {path}: no such folder; give RUN/checkpoints/step-N") from None
            raise UserError(f"checkpoint {path}: complete.json is missing, so the checkpoint was not finished; {_WAY_OUT}") from None
        except ValueError:
            raise UserError(f"checkpoint {path}: complete.json is not readable as JSON; {_WAY_OUT}") from None
        if not isinstance(files, dict) or "state.json" not in files:
            raise UserError(f"checkpoint {path}: complete.json does not describe state.json; {_WAY_OUT}")
        for name, expected in files.items() if verify else ():
            _verify(path / name, expected)
        state = json.loads((path / "state.json").read_bytes())
        if state.get("format") != FORMAT:
            raise UserError(f"checkpoint {path}: format {state.get('format')}, this version reads {FORMAT}; use the version that wrote it")
        for stem in {record["file"] for record in state["parameters"].values()}:
            for name in (f"weights-{stem}.safetensors", f"moments-{stem}.safetensors"):
                if name not in files:
                    raise UserError(f"checkpoint {path}: complete.json does not describe {name}; {_WAY_OUT}")
        return cls(path, state, files)

    def expect_post_training(self) -> None:
        """Raises UserError when it is of a fine-tuning run, which keeps its state in the same form."""
        if "model_config" not in self.state:
            raise UserError(f"checkpoint {self.path}: expected one of a post-training run (trainer/xpt.py), found a fine-tuning's")

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        return self.state["parameters"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(record["shape"]) for name, record in self.parameters.items()}

    @property
    def adam_steps(self) -> dict[str, int]:
        """Adam steps behind each parameter that ever trained."""
        return {name: record["adam_step"] for name, record in self.parameters.items() if record["adam_step"]}

    def entries(self, names: Iterable[str]) -> Iterator[Entry]:
        """The named parameters, mapped, in the given order."""
        with ExitStack() as stack:
            opened: dict[str, Any] = {}

            def tensor(kind: str, stem: str, key: str) -> torch.Tensor:
                file = f"{kind}-{stem}.safetensors"
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(self.path / file, framework="pt"))
                return opened[file].get_tensor(key)

            for name in names:
                record = self.parameters[name]
                moments = None
                if record["adam_step"]:
                    moments = (
                        tensor("moments", record["file"], f"{name}.exp_avg"),
                        tensor("moments", record["file"], f"{name}.exp_avg_sq"),
                    )
                yield name, tensor("weights", record["file"], name), moments


def _verify(path: Path, expected: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["size"]:
            raise UserError(f"checkpoint file {path}: {size} bytes, expected {expected['size']}; it was cut or altered; {_WAY_OUT}")
        checksum = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while data := file.read(1 << 24):
                checksum.update(data)
        if checksum.hexdigest() != expected["xxh3"]:
            raise UserError(f"checkpoint file {path}: its checksum is not the one in complete.json, so it was altered; {_WAY_OUT}")
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
    except FileNotFoundError:
        raise UserError(f"checkpoint file {path} is missing; {_WAY_OUT}") from None
    except (KeyError, TypeError):
        raise UserError(f"checkpoint {path.parent}: complete.json does not describe {path.name}; {_WAY_OUT}") from None
    except SafetensorError as error:
        raise UserError(f"checkpoint file {path}: not a safetensors file: {error}; {_WAY_OUT}") from None


def checkpoint_paths(run: Path) -> list[Path]:
    """Finished-looking checkpoints of a run, newest first."""
    steps = [(int(p.name[5:]), p) for p in (run / "checkpoints").glob("step-*") if p.name[5:].isdigit()]
    return [path for _, path in sorted(steps, reverse=True)]


def newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a run, and what is wrong with each newer one."""
    problems: list[str] = []
    for path in checkpoint_paths(run):
        try:
            return Checkpoint.open(path), problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


def prune(run: Path, good: set[int], keep_last: int, keep_steps: set[int]) -> None:
    """Remove unfinished checkpoints; later ones than `good`'s first that are not among them; of the others, but for those at `keep_steps`,
    all but the last `keep_last`.

    good: the step that the run began from, and those that it saved since. What else stands beyond the first was passed over: damaged.
    """
    for path in (run / "checkpoints").glob("step-*.partial"):
        shutil.rmtree(path)
    found = {int(path.name[5:]): path for path in checkpoint_paths(run)}
    whole = [number for number in found if number in good or number < min(good)]
    others = [number for number in whole if number not in keep_steps]
    for number, path in found.items():
        if number not in whole or number in others[keep_last:]:
            shutil.rmtree(path)
