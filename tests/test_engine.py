"""Stage changes under ZeRO-2, against plain single-process PyTorch: the claim that the project exists for."""

import errno
import gc
import json
import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from tests.distributed import run_on_ranks
from tests.tiny import final_weights
from trainer import shared_memory
from trainer.architecture import architecture_of
from trainer.blocks import MaskedBatch
from trainer.checkpoint import Checkpoint
from trainer.recipe import Optimizer, Recipe, Stage
from trainer.stages import split_parts, trainable
from trainer.state import Saver, TrainState, save_seed

VOCAB, LENGTH, BATCH = 48, 12, 8
SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
OPTIMIZER = Optimizer(weight_decay=0.1, gradient_clipping=0.5, eps=1e-6)
TWO_STAGES = [["embeddings", "itl", "head"], ["all"]]
REFREEZE = [["embeddings", "itl"], ["encoder[1:]", "head"], ["encoder", "itl"]]
TOP_DOWN = [["head"], ["head", "itl"], ["head", "itl", "encoder[1:]"], ["head", "itl", "encoder"], ["all"]]
BOTTOM_UP = [["embeddings"], ["embeddings", "itl"], ["embeddings", "itl", "encoder[:1]"], ["embeddings", "itl", "encoder"], ["all"]]


@dataclass(frozen=True)
class Case:
    kind: str
    micro: int
    stages: list[list[str]]
    moments: str = "carry"
    clipping: float = OPTIMIZER.gradient_clipping
    network: bool = False
    """Ranks of one host that do not find shared memory, as those of several hosts do not."""


# Pairs of architecture, accumulation, order of stages and moments; accumulation is BATCH / (ranks x micro).
CASES = {
    1: [Case("roberta", 8, REFREEZE), Case("bert", 2, TOP_DOWN, "fresh", clipping=0.0)],
    2: [
        Case("bert", 4, TWO_STAGES),
        Case("roberta", 1, REFREEZE, "fresh"),
        Case("roberta", 4, BOTTOM_UP),
        Case("bert", 1, TOP_DOWN, network=True),
    ],
    4: [Case("bert", 1, TWO_STAGES), Case("roberta", 2, TOP_DOWN), Case("roberta", 2, BOTTOM_UP, "fresh")],
}


def make_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if kind == "bert":
        return BertForMaskedLM(BertConfig(**SHAPE, max_position_embeddings=32))
    return RobertaForMaskedLM(RobertaConfig(**SHAPE, max_position_embeddings=34, pad_token_id=1))


def make_recipe(stages: list[list[str]], steps: int) -> Recipe:
    rows = [Stage(name=f"s{i}", train=tuple(t), steps=steps, learning_rate=3e-3, schedule="constant") for i, t in enumerate(stages)]
    return Recipe(name="t", seed_model="x", corpus="x", output_dir="x", global_batch_size=BATCH, sequence_length=LENGTH,
                  optimizer=OPTIMIZER, stages=tuple(rows))  # fmt: skip


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels (BATCH, LENGTH); -100 where nothing is asked. Rows differ much in how many positions they select."""
    rng = np.random.default_rng(step)
    tokens, labels = rng.integers(5, VOCAB, (BATCH, LENGTH)), rng.integers(5, VOCAB, (BATCH, LENGTH))
    chosen = rng.random((BATCH, LENGTH)) < np.linspace(0.05, 0.6, BATCH)[:, None]
    return torch.from_numpy(tokens), torch.from_numpy(np.where(chosen, labels, -100))


def part(tokens: torch.Tensor, labels: torch.Tensor, rows: slice) -> MaskedBatch:
    flat = labels[rows].reshape(-1)
    selected = torch.nonzero(flat != -100).reshape(-1)
    return MaskedBatch(tokens[rows], selected, flat[selected])


def reference(
    kind: str, stages: list[list[str]], steps: int, moments: str = "carry", clipping: float = OPTIMIZER.gradient_clipping
) -> dict[str, torch.Tensor]:
    """The same training in plain PyTorch: whole batches, one AdamW per stage, moments carried by hand."""
    model = make_model(kind).eval()  # no dropout
    parameters = dict(model.named_parameters())
    recipe = make_recipe(stages, steps)
    parts = split_parts(parameters, architecture_of(model.config), 4, "both")
    memory: dict[str, dict[str, torch.Tensor]] = {}
    number = 0
    for stage in recipe.stages:
        train = trainable(stage, parts)
        for name, p in parameters.items():
            p.requires_grad_(name in train)
        groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for name, p in parameters.items() if name in train]
        adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.eps)
        for name in train & set(memory) if moments == "carry" else ():
            adamw.state[parameters[name]] = memory[name]
        for _ in range(steps):
            tokens, labels = global_batch(number)
            positions = torch.arange(LENGTH)[None] + (2 if kind == "roberta" else 0)
            logits = model(input_ids=tokens, position_ids=positions).logits
            functional.cross_entropy(logits.reshape(-1, VOCAB), labels.reshape(-1)).backward()
            torch.nn.utils.clip_grad_norm_([parameters[name] for name in train], clipping or math.inf)
            adamw.step()
            adamw.zero_grad()
            number += 1
        memory |= {name: adamw.state[parameters[name]] for name in train}
    return {name: p.detach().clone() for name, p in parameters.items()}


def write_ds_config(folder: Path, micro: int, precision: str) -> Path:
    path = folder / f"ds-{micro}-{precision}.json"
    zero = {"stage": 2, "reduce_bucket_size": 10000, "allgather_bucket_size": 10000}
    config = {"train_micro_batch_size_per_gpu": micro, "zero_optimization": zero}
    if precision == "bf16":
        config |= {"bf16": {"enabled": True}}
    path.write_text(json.dumps(config))
    return path


def run_cases(folder: Path, cases: list[Case], steps: int, by_deepspeed: bool = False) -> None:
    """On every rank: each case in its folder, with its ds_config. by_deepspeed: gradients are summed as on a GPU with one micro-batch."""
    from trainer import engine as engines

    engines.start()
    if by_deepspeed:
        engines.DeepSpeedConfig.sums_gradients = lambda *_: False  # type: ignore[method-assign]
    own = shared_memory.FOLDER
    for number, case in enumerate(cases):
        shared_memory.FOLDER = Path("/nonexistent") if case.network else own
        run_stages(folder / str(number), folder / f"ds-{case.micro}-fp32.json", case.stages, steps, case.moments, case.clipping)


def run_stages(
    run: Path, ds_config: Path, stages: list[list[str]], steps: int, moments: str = "carry",
    clipping: float = OPTIMIZER.gradient_clipping,
) -> None:  # fmt: skip
    """On every rank: the stages from the newest checkpoint of `run` on, one checkpoint after each."""
    from trainer import engine as engines
    from trainer.checkpoint import newest
    from trainer.ranks import Ranks

    if not torch.distributed.is_initialized() or not engines.deepspeed.comm.is_initialized():
        engines.start()
    ranks, recipe, config = Ranks.current(), make_recipe(stages, steps), engines.DeepSpeedConfig.load(ds_config)
    checkpoint, _ = newest(run)
    assert checkpoint is not None
    state, saver = TrainState.of(checkpoint), Saver(run, recipe, ranks, checkpoint, print)
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 4, "both")
    while (index := recipe.stage_at(state.step)[0]) < len(stages):
        train = trainable(recipe.stages[index], parts)
        fresh = moments == "fresh"
        optimizer = OPTIMIZER.model_copy(update={"gradient_clipping": clipping})
        engine = engines.StageEngine(saver.last, train, config, optimizer, 0.0, BATCH, ranks.device, fresh_moments=fresh)
        for broken in [False, True, *[False] * (steps - 1)]:  # a step that is not finite on one rank leaves no trace
            engine.set_learning_rate(3e-3)
            tokens, labels = global_batch(state.step)
            micro = config.micro_batch
            for a in range(engine.accumulation):
                first = (a * ranks.world_size + ranks.rank) * micro
                count = math.nan if broken and ranks.rank == ranks.world_size - 1 else int((labels != -100).sum())
                engine.backward(part(tokens, labels, slice(first, first + micro)), count)
            assert engine.skipped == broken
            state.step += not broken
        engine.check_trainable(train)
        engine.check_frozen()
        saver.save(state, engine, {}, needed=True)
        gone = weakref.ref(engine._zero)
        engine.close()
        del engine
        gc.collect()
        assert gone() is None, "the old engine is still alive after the stage change"
    saver.finish()


def start_run(folder: Path, kind: str, stages: list[list[str]], steps: int) -> Path:
    save_seed(folder, make_recipe(stages, steps), {"corpus_fingerprint": "", "tokenizer_sha256": ""}, make_model(kind), {}, {})
    return folder


@pytest.mark.parametrize(("world_size", "by_deepspeed"), [(1, False), (2, False), (4, False), (2, True)])
def test_stages_equal_plain_adamw(tmp_path: Path, world_size: int, by_deepspeed: bool) -> None:
    cases = [case for case in CASES[world_size] if not by_deepspeed or case.micro * world_size == BATCH]
    for number, case in enumerate(cases):
        start_run(tmp_path / str(number), case.kind, case.stages, 8)
        write_ds_config(tmp_path, case.micro, "fp32")
    run_on_ranks(run_cases, world_size, tmp_path, tmp_path, cases, 8, by_deepspeed)
    for number, case in enumerate(cases):
        expected, found = reference(case.kind, case.stages, 8, case.moments, case.clipping), final_weights(tmp_path / str(number))
        assert set(found) == set(expected)
        start = dict(make_model(case.kind).named_parameters())
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-5, (case, name)
        other = reference(case.kind, case.stages, 8, "fresh" if case.moments == "carry" else "carry", case.clipping)
        assert max((found[name] - value).abs().max() for name, value in other.items()) > 1e-3  # it is of the moments asked for
        moved = [name for name in expected if (expected[name] - start[name]).abs().max() > 1e-3]
        assert len(moved) > 0.9 * len(expected)


@pytest.mark.parametrize("by_deepspeed", [False, True])
def test_gradients_of_several_ranks_are_added_in_fp32(tmp_path: Path, by_deepspeed: bool) -> None:
    """In bf16, of one micro-batch on each of two ranks and of both on one: Adam's first moment after one step, which is the gradient but
    for a factor. By DeepSpeed's reduction, too, as on a GPU with one micro-batch a step."""
    from trainer.checkpoint import newest

    found = []
    for ranks in (1, 2):
        folder, micro = tmp_path / str(ranks), BATCH // 2
        start_run(folder / "0", "bert", [["all"]], 1)
        write_ds_config(folder, micro, "bf16").rename(folder / f"ds-{micro}-fp32.json")
        run_on_ranks(run_cases, ranks, tmp_path, folder, [Case("bert", micro, [["all"]])], 1, by_deepspeed and ranks == 2)
        checkpoint, _ = newest(folder / "0")
        assert checkpoint is not None and checkpoint.state["step"] == 1
        found.append({name: moments[0].clone() for name, _, moments in checkpoint.entries(checkpoint.parameters) if moments})
    one, two = (torch.cat([moment.flatten() for _, moment in sorted(moments.items())]) for moments in found)
    assert (two - one).norm() < 1e-5 * one.norm()


def spoil(folder: Path, ds_config: Path) -> None:
    """An engine whose frozen weights, gradients or trainable set are tampered with says so; it has looked itself when it was built. And it
    drops out by torch's generator in training, also after an evaluation, which does not."""
    from trainer import engine as engines
    from trainer.checkpoint import newest

    engines.start()
    checkpoint, _ = newest(folder)
    assert checkpoint is not None
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 4, "both")
    train = trainable(make_recipe(TWO_STAGES, 1).stages[0], parts)
    config, checked = engines.DeepSpeedConfig.load(ds_config), []
    for name in ("check_trainable", "_check_layout"):
        check = getattr(engines.StageEngine, name)
        setattr(engines.StageEngine, name, lambda *given, name=name, check=check: checked.append(name) or check(*given))
    engine = engines.StageEngine(checkpoint, train, config, OPTIMIZER, 0.5, BATCH, torch.device("cpu"))
    assert sorted(checked) == ["_check_layout", "check_trainable"]
    frozen = next(parameter for name, parameter in engine.parameters.items() if name not in train)
    engine.check_frozen()
    engine.check_trainable(train)
    bits = frozen.data.view(torch.int16)
    bits.view(-1)[3] ^= 1
    with pytest.raises(RuntimeError, match="frozen parameters changed"):
        engine.check_frozen()
    bits.view(-1)[3] ^= 1
    engine.check_frozen()
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(RuntimeError, match="hold gradients"):
        engine.check_frozen()
    frozen.grad = None
    with pytest.raises(RuntimeError, match="does not train what the stage names"):
        engine.check_trainable(train - {min(train)})
    frozen.requires_grad_(True)
    with pytest.raises(RuntimeError, match="does not train what the stage names"):
        engine.check_trainable(train)
    frozen.requires_grad_(False)
    batch, losses = part(*global_batch(0), slice(0, BATCH)), []
    assert engine.evaluate(batch) == engine.evaluate(batch)
    head = next(parameter for name, parameter in engine.parameters.items() if name.endswith("transform.dense.bias"))
    cut = engine._engine.module._modules  # a way round the head's first layer
    assert head.requires_grad and "_head" in cut
    real, engine._engine.module._forward = cut.pop("_head"), None
    object.__setattr__(engine._engine.module, "_head", real.predictions.decoder)
    with pytest.raises(RuntimeError, match=r"no gradient reaches what the stage trains: \['cls.predictions.transform"):
        engine.backward(batch, 9)
    object.__setattr__(engine._engine.module, "_head", real)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(engine.backward(batch, 9)))  # at a learning rate of 0
        engine.evaluate(batch)
    assert losses[0] == losses[2] != losses[1], losses
    engine._zero.round_robin_bit16_groups[0] = engine._zero.round_robin_bit16_groups[0][::-1]
    with pytest.raises(RuntimeError, match="in another order than their own"):
        engine._check_layout()
    engine.close()


def test_a_frozen_weight_that_moves_by_a_bit_and_a_set_that_is_another_are_seen(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", "bert", TWO_STAGES, 1)
    run_on_ranks(spoil, 1, tmp_path, run, write_ds_config(tmp_path, BATCH, "bf16"))


def fp16_stages(folder: Path, ds_config: Path, out: Path) -> None:
    """Two stages of five steps in fp16, which DeepSpeed thinks no CPU has; every step's (skipped, scale after it) into `out`."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from trainer import engine as engines
    from trainer.checkpoint import newest
    from trainer.ranks import Ranks

    CPU_Accelerator.is_fp16_supported = lambda _: True
    CPU_Accelerator.supported_dtypes = lambda _: [torch.float, torch.bfloat16, torch.float16]
    engines.start()
    ranks, recipe, config = Ranks.current(), make_recipe(TWO_STAGES, 5), engines.DeepSpeedConfig.load(ds_config)
    checkpoint, _ = newest(folder)
    assert checkpoint is not None
    state, saver, found = TrainState.of(checkpoint), Saver(folder, recipe, ranks, checkpoint, print), []
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 4, "both")
    while (index := recipe.stage_at(state.step)[0]) < 2:
        train = trainable(recipe.stages[index], parts)
        engine = engines.StageEngine(saver.last, train, config, OPTIMIZER, 0.0, BATCH, ranks.device)
        engine.load_loss_scaler(saver.last.state.get("loss_scaler", {}))
        while state.step < 5 * (index + 1) and len(found) < 40:
            engine.set_learning_rate(3e-3)
            tokens, labels = global_batch(state.step)
            for first in range(0, BATCH, config.micro_batch):
                engine.backward(part(tokens, labels, slice(first, first + config.micro_batch)), int((labels != -100).sum()))
            state.step, state.batch = state.step + (not engine.skipped), state.batch + 1
            found.append((engine.skipped, engine._zero.loss_scale))
        saver.save(state, engine, {}, needed=True)
        assert TrainState.of(saver.last) == state
        engine.close()
    saver.finish()
    out.write_text(json.dumps(found))


def test_fp16_loses_no_step_and_its_scale_goes_on_over_stages(tmp_path: Path) -> None:
    run, config = start_run(tmp_path / "run", "bert", TWO_STAGES, 5), json.loads(write_ds_config(tmp_path, 4, "fp32").read_text())
    config |= {"fp16": {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 3, "hysteresis": 1}}
    (tmp_path / "fp16.json").write_text(json.dumps(config))
    run_on_ranks(fp16_stages, 1, tmp_path, run, tmp_path / "fp16.json", tmp_path / "steps.json")
    found, power, since, steps = json.loads((tmp_path / "steps.json").read_text()), 20, 0, 0
    for skipped, scale in found:  # halved where a gradient is not finite, doubled by every third step after the first in a row, over stages
        since = 0 if skipped else since + 1
        power += -1 if skipped else since > 1 and since % 3 == 1
        steps += not skipped
        assert scale == 2.0**power, found
    assert steps == 10 < len(found), found
    expected = reference("bert", TWO_STAGES, 5)
    assert max((value - expected[name]).abs().max() for name, value in final_weights(run).items()) < 5e-3


def save_watched(folder: Path, ds_config: Path) -> None:
    """What a checkpoint is made of is on the disk before its marker, and before `save` returns when the next stage needs it."""
    from data_tools.errors import RunError
    from trainer import engine as engines
    from trainer.checkpoint import newest
    from trainer.ranks import Ranks

    engines.start()
    checkpoint, _ = newest(folder)
    assert checkpoint is not None
    recipe, ranks = make_recipe(TWO_STAGES, 9), Ranks.current()
    parts = split_parts(checkpoint.shapes, architecture_of(checkpoint.state["model_config"]), 4, "both")
    train, config = trainable(recipe.stages[0], parts), engines.DeepSpeedConfig.load(ds_config)
    engine = engines.StageEngine(checkpoint, train, config, OPTIMIZER, 0.0, BATCH, torch.device("cpu"))
    state, saver, fsync, full = TrainState.of(checkpoint), Saver(folder, recipe, ranks, checkpoint, print), os.fsync, False

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        if full and synced[-1].startswith("moments"):
            raise OSError(errno.ENOSPC, "no room")
        fsync(descriptor)

    os.fsync = watched
    for needed in (False, True):
        state.step, synced = state.step + 1, list[str]()
        files = [f"{kind}-{state.step}-0.safetensors" for kind in ("weights", "moments")]
        saver.save(state, engine, {}, needed=needed)
        assert not needed or synced == files
        saver.finish()
        assert synced[:4] == [*files, "state.json", "complete.json"], synced
    state.step, full = state.step + 1, True
    saver.save(state, engine, {}, needed=False)
    with pytest.raises(RunError, match=rf"step-{state.step} could not be written .*no room.*step-{state.step - 1} is the last good"):
        saver.finish()
    os.fsync = fsync
    engine.close()


def test_a_checkpoint_is_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", "bert", TWO_STAGES, 1)
    run_on_ranks(save_watched, 1, tmp_path, run, write_ds_config(tmp_path, BATCH, "fp32"))


def test_buckets_fit_the_model() -> None:
    from trainer.ds_config import fitting_buckets

    assert fitting_buckets({"stage": 2}, [100, 1]) == {"stage": 2, "reduce_bucket_size": 102, "allgather_bucket_size": 102}
    assert fitting_buckets({"allgather_bucket_size": 51}, [100])["allgather_bucket_size"] == 50  # DeepSpeed refuses odd ones
    given = {"reduce_bucket_size": 50, "allgather_bucket_size": 200}
    assert fitting_buckets(given, [61, 39]) == {"reduce_bucket_size": 50, "allgather_bucket_size": 100}
    overlapping = fitting_buckets(given | {"overlap_comm": True}, [61, 39])
    assert overlapping == {"overlap_comm": True, "reduce_bucket_size": 62, "allgather_bucket_size": 100}


def test_bf16_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    stages = [["embeddings", "itl"], ["all"]]
    run = start_run(tmp_path / "run", "bert", stages, 3)
    run_on_ranks(run_stages, 2, tmp_path, run, write_ds_config(tmp_path, 4, "bf16"), stages, 3)
    seed = dict(make_model("bert").named_parameters())
    parts = split_parts(seed, architecture_of({"model_type": "bert"}), 4, "both")
    after_first = Checkpoint.open(run / "checkpoints" / "step-3")
    for name, value, moments in after_first.entries(seed):
        if name in trainable(make_recipe(stages, 3).stages[0], parts):
            assert moments is not None and after_first.parameters[name]["adam_step"] == 3
        else:
            assert torch.equal(value, seed[name]) and moments is None, name
    encoder = Checkpoint.open(run / "checkpoints" / "step-6").adam_steps
    assert {encoder[name] for layer in parts.layers for name in layer} == {3}
    assert {encoder[name] for name in (*parts.embeddings, *parts.itl)} == {6}


def test_the_loss_scaler_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 does not run here: DeepSpeed's scaler itself, driven through overflows, saved as JSON in the middle and put into a new one."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from trainer.engine import StageEngine

    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)  # it asks before it logs

    def engine_with_scaler(window: int = 4, dynamic: bool = True) -> StageEngine:
        scaler = DynamicLossScaler(
            init_scale=2**16, scale_window=window, min_scale=1, delayed_shift=2, consecutive_hysteresis=False,
            raise_error_at_min_scale=False,
            dtype=torch.half,
        )  # fmt: skip
        engine: StageEngine = object.__new__(StageEngine)
        engine._engine = SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler, dynamic_loss_scale=dynamic))
        return engine

    def drive(engine: StageEngine, overflows: str) -> list[float]:
        scaler = engine._engine.optimizer.loss_scaler
        return [scaler.update_scale(flag == "x") or scaler.cur_scale for flag in overflows]

    overflows = "x..x.......x.....x..x........xx....."
    whole = drive(engine_with_scaler(), overflows)
    assert {2.0**15, 2.0**16, 2.0**17} == set(whole)
    for cut in range(len(overflows)):
        before, after = engine_with_scaler(), engine_with_scaler()
        first = drive(before, overflows[:cut])
        kept = json.loads(json.dumps(before.loss_scaler))
        after.load_loss_scaler({**kept, "raise_error_at_min_scale": True})  # as older checkpoints have it: max_skipped ends a run, not this
        assert after._engine.optimizer.loss_scaler.raise_error_at_min_scale is False
        assert first + drive(after, overflows[cut:]) == whole, cut
    # a ds_config that was mended counts
    mended, static = engine_with_scaler(window=9), engine_with_scaler(dynamic=False)
    for engine in (mended, static):
        engine.load_loss_scaler({**kept, "scale_window": 4, "cur_scale": 8.0})
    scaler = mended._engine.optimizer.loss_scaler
    assert (scaler.scale_window, scaler.cur_scale) == (9, 8.0) and static._engine.optimizer.loss_scaler.cur_scale == 2**16
    assert not static.loss_scaler
