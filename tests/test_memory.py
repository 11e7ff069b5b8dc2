"""What a rank holds: the formula of ZeRO-2, no copy of the whole state on its way, and nothing that stays after a stage change."""

import gc
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.distributed import run_on_ranks
from tests.test_engine import OPTIMIZER, TWO_STAGES, make_recipe, part, write_ds_config
from trainer.architecture import architecture_of
from trainer.checkpoint import Checkpoint, newest
from trainer.memory import give_back_freed_memory, keep_freed_memory
from trainer.plan import memory_per_rank
from trainer.stages import split_parts, trainable
from trainer.state import Saver, TrainState, save_seed

SHAPE = {"vocab_size": 8000, "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 512}
CHANGES = 20
SHARED = "/dev/shm/xpt-"


def held_bytes() -> int:
    """Bytes of all distinct tensor storages that are alive, without those that lie in a mapped file."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line.split() for line in lines if line.endswith(".safetensors") or SHARED in line]
    mapped = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps]
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and not any(low <= tensor.untyped_storage().data_ptr() < high for low, high in mapped):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def shared_bytes() -> int:
    """Bytes of the buffers of all ranks that this one has mapped."""
    lines = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if SHARED in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in lines)


def resident_bytes() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def change_stages(run: Path, ds_config: Path) -> None:
    """On every rank: CHANGES stages of one step in two micro-batches."""
    from trainer import engine as engines
    from trainer.ranks import Ranks

    keep_freed_memory()
    engines.start()
    ranks, config, recipe = Ranks.current(), engines.DeepSpeedConfig.load(ds_config), make_recipe((TWO_STAGES * CHANGES)[:CHANGES], 1)
    checkpoint = newest(run)[0]
    assert checkpoint is not None
    state, saver, before = TrainState.of(checkpoint), Saver(run, recipe, ranks, checkpoint, print), held_bytes()
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 8, "both")
    sizes = {name: torch.Size(shape).numel() for name, shape in checkpoint.shapes.items()}
    tokens, rows = torch.arange(96).reshape(8, 12), config.micro_batch
    on_the_way: list[int] = []
    entries = Checkpoint.entries

    def watched(self: Checkpoint, names: Iterator[str]) -> Iterator[object]:
        for number, entry in enumerate(entries(self, names)):
            if number % 40 == 39:
                on_the_way.append(held_bytes() - before)
            yield entry

    resident = []
    for number, stage in enumerate(recipe.stages):
        train = trainable(stage, parts)
        with mock.patch.object(Checkpoint, "entries", watched if number < 2 else entries):
            engine = engines.StageEngine(saver.last, train, config, OPTIMIZER, 0.0, 8, ranks.device)
        training = sum(sizes[name] for name in train)
        frozen = sum(sizes.values()) - training
        at_rest = 2 * frozen + 2 * training + 12 * training / ranks.world_size
        largest = 4 * max(sizes.values())
        assert not on_the_way or max(on_the_way) < at_rest + 3 * largest, (number, max(on_the_way), at_rest, largest)
        on_the_way.clear()
        for micro in range(2):
            first = (2 * micro + ranks.rank) * rows if ranks.world_size == 2 else micro * rows
            engine.backward(part(tokens, tokens, slice(first, first + rows)), 96)
            if number < 2:
                alone = ranks.world_size == 1  # else gradients and new weights lie in memory that the ranks share
                assert held_bytes() - before == pytest.approx(at_rest + 4 * training * alone, rel=0.05), (number, micro)
                assert shared_bytes() / ranks.world_size == pytest.approx(0 if alone else (4 + 2 / 2) * training, rel=0.05)
        state.step += 1
        saver.save(state, engine, {}, needed=True)
        engine.close()
        resident.append(resident_bytes())
    assert held_bytes() - before < 10_000 and not shared_bytes(), "tensors of old engines are alive"
    smallest_engine = (2 * sum(sizes.values()) + 12 * 1_500_000) / ranks.world_size
    assert resident[-1] - resident[9] < smallest_engine, resident  # ten changes later; until then the allocator still finds its size


@pytest.mark.parametrize("world_size", [1, 2])
def test_memory(tmp_path: Path, world_size: int) -> None:
    torch.manual_seed(0)
    corpus = {"corpus_fingerprint": "", "tokenizer_sha256": ""}
    save_seed(tmp_path / "run", make_recipe(TWO_STAGES, 1), corpus, BertForMaskedLM(BertConfig(**SHAPE)), {}, {})
    run_on_ranks(change_stages, world_size, tmp_path, tmp_path / "run", write_ds_config(tmp_path, 4 // world_size, "bf16"))


def test_memory_formula() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, False, gpu) == 2 * 1100 + 4 * 100 / 2 + 12 * 100 / 2
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, True, gpu) == 2 * 1100 + 4 * 100 + 12 * 100 / 2
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, True, cpu) == 2 * 1100 + 4 * 100 + 14 * 100 / 2
    assert memory_per_rank(100, 1000, 1, torch.bfloat16, True, cpu) == 2 * 1100 + 4 * 100 + 12 * 100


def give_back_what_was_freed() -> list[int]:
    keep_freed_memory()
    last = [torch.ones(1 << 20) for _ in range(64)][-1]  # 256 MiB, of which the end of the heap stays in use
    kept = resident_bytes()
    give_back_freed_memory()
    return [kept, resident_bytes(), len(last)]


def test_what_surgery_took_is_given_back() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # the C library's settings stay with a process
        kept, left, _ = pool.apply(give_back_what_was_freed)
    assert kept - left > 200 << 20
