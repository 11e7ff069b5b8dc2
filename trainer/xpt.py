"""Cross-lingual post-training: an English encoder becomes a Korean one.

On the GPUs of a lab, the paper's recipe:
    deepspeed --hostfile hostfiles/lab trainer/xpt.py
On one machine without an ssh server, 2 CPU ranks:
    OMP_NUM_THREADS=1 deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 trainer/xpt.py \
        --recipe recipes/minilm.yaml --ds-config ds_configs/zero2_cpu.json
What it would do, without doing it: add --dry-run. Interrupted? The same command goes on.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, NoReturn

import numpy as np
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from trainer import accelerator  # before DeepSpeed is imported

# isort: split
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_tools import lock
from data_tools.corpus import Corpus
from data_tools.errors import RunError, UserError
from trainer import cpu_kernels, lifeline, run_folder, surgery
from trainer import engine as engines
from trainer.blocks import Blocks, MaskedBatch, corpus_tokenizer, open_blocks, samples_of
from trainer.checkpoint import Checkpoint
from trainer.ds_config import DeepSpeedConfig
from trainer.engine import StageEngine
from trainer.export import export
from trainer.flops import peak_flops
from trainer.installation import digest_of, installed
from trainer.journal import Journal, perplexity
from trainer.launcher import check_launch
from trainer.masking import dropout_seed
from trainer.memory import give_back_freed_memory, keep_freed_memory
from trainer.metrics_log import read_rows
from trainer.mlm import MaskedLanguageModel
from trainer.plan import Plan, begun_config
from trainer.ranks import RankParser, Ranks, Stopped, StopRequest, run_on_ranks, set_environment
from trainer.recipe import Recipe, load_recipe
from trainer.schedule import learning_rate
from trainer.stages import trainable
from trainer.state import Saver, TrainState, save_seed, save_weights
from trainer.storage import Storage
from trainer.watchdog import Watchdog

CHECKED_BLOCKS = 16
"""Validation blocks that `forward_check` scores. In bf16 two correct kernels differ by up to 1e-3 on 16 of 128 tokens, by 2.6e-3 on one."""


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.disable_progress_bar()
    set_environment()
    accelerator.refuse_unseen_gpus()
    accelerator.repeat_exactly()
    engines.start()
    ranks = Ranks.current()
    if ranks.device.type == "cpu":
        keep_freed_memory()
    lifeline.tie(ranks.rank, ranks.world_size, ranks.gather)
    check_launch(ranks.world_size)
    recipe = load_recipe(
        arguments.recipe, arguments.set, corpus=arguments.corpus, seed_model=arguments.seed_model, output_dir=arguments.output_dir
    )
    config = DeepSpeedConfig.load(arguments.ds_config)
    run = open_run(recipe, config, ranks)
    if arguments.dry_run:
        ranks.on_main(lambda: check_start(run, arguments.resume, arguments.init_from))
        if ranks.is_main:
            plan = run.plan.describe(
                num_blocks=run.train_blocks.num_blocks, world_size=ranks.world_size, device=ranks.device, dtype=config.dtype,
                accumulation=run.accumulation, micro_batch=config.micro_batch,
                whole_gradient=config.sums_gradients(ranks.device, run.accumulation), peak=run.peak,
            )  # fmt: skip
            print(plan, flush=True)
        return
    checkpoint = first_checkpoint(run, ranks, arguments.resume, arguments.init_from)
    post_train(run, ranks, checkpoint)


def parse_arguments() -> argparse.Namespace:
    parser = RankParser(description="Cross-lingual post-training of an encoder.")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/paper.yaml"), help="the run's settings (default: the paper's)")
    parser.add_argument("--ds-config", type=Path, default=Path("ds_configs/zero2_bf16.json"), help="micro-batch, precision, ZeRO")
    parser.add_argument("--corpus", type=str, help="folder made by data_tools.prepare; replaces the recipe's")
    parser.add_argument("--seed-model", help="folder, hub id or package:NAME/PATH; replaces the recipe's")
    parser.add_argument("--output-dir", type=str, help="the run folder; replaces the recipe's")
    parser.add_argument("--resume", choices=("auto", "never", "must"), default="auto", help="what to do about a run that stands there")
    parser.add_argument("--init-from", type=Path, metavar="CHECKPOINT", help="a new run starts from these weights instead of the seed's")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="change a recipe entry, e.g. every.log=10"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it; LOCAL_RANK says the same
    return parser.parse_args()


@dataclass(frozen=True)
class Run:
    """Everything about a run that does not change while it goes on."""

    recipe: Recipe
    config: DeepSpeedConfig
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    train_blocks: Blocks
    valid_blocks: Blocks
    validation: list[MaskedBatch]
    """This rank's: the same at every evaluation."""
    accumulation: int
    peak: float
    """FLOP/s of all ranks together."""

    @property
    def folder(self) -> Path:
        return self.recipe.output_dir

    @property
    def corpus_identity(self) -> dict[str, str]:
        return {"corpus_fingerprint": self.corpus.fingerprint, "tokenizer_sha256": self.corpus.tokenizer_sha256}

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.global_batch_size * self.recipe.sequence_length


def open_run(recipe: Recipe, config: DeepSpeedConfig, ranks: Ranks) -> Run:
    """Open and check everything that a run needs, before anything is computed or written."""
    if recipe.expect_world_size not in (None, ranks.world_size):
        raise UserError(f"expect_world_size is {recipe.expect_world_size}, but {ranks.world_size} rank(s) were started; check the hostfile")
    if config.dtype == torch.bfloat16 and ranks.device.type == "cuda" and not accelerator.has_bf16(ranks.device):
        raise UserError(f"{torch.cuda.get_device_name()} computes bf16 by emulation; take --ds-config ds_configs/zero2_fp16.json")
    run_folder.refuse_file(recipe.output_dir)
    accumulation = config.accumulation(recipe.global_batch_size, ranks.world_size)
    corpus = Corpus.open(recipe.corpus)
    settings = {"recipe": digest_of(recipe.as_dict()), "ds_config": digest_of(config.settings)}
    ranks.agree({**installed(), **settings, "corpus": corpus.fingerprint, "the corpus's data": corpus.sample_digest()})
    tokenizer = corpus_tokenizer(corpus)
    begun = next(filter(None, ranks.gather(begun_config(recipe))), None)
    planned = Plan.of(recipe, tokenizer, begun)
    train, valid = open_blocks(recipe, corpus, tokenizer)
    scored = min(recipe.validation_blocks, valid.num_blocks)  # evenly spread: a split begins with what was the input's first file
    mine = (np.arange(scored) * valid.num_blocks // scored)[ranks.rank :: ranks.world_size]
    validation = [valid.validation(mine[start : start + config.micro_batch]) for start in range(0, len(mine), config.micro_batch)]
    if not ranks.sum(float(sum(len(batch.labels) for batch in validation)))[0]:
        raise UserError(
            f"corpus {recipe.corpus}: its validation blocks have nothing to predict, every token is unknown to its tokenizer; "
            "prepare it with another --tokenizer, or without"
        )
    tokens = config.micro_batch * recipe.sequence_length
    peak = peak_flops(ranks.device, config.dtype, tokens, planned.model_config.hidden_size, planned.model_config.intermediate_size)
    return Run(recipe, config, corpus, tokenizer, planned, train, valid, validation, accumulation, sum(ranks.sum(peak)))


def check_start(run: Run, resume: str, init_from: Path | None) -> None:
    """Raises UserError where `first_checkpoint` would, without computing anything."""
    found, _ = run_folder.find(run.recipe, run.corpus, resume, init_from)
    if init_from and not found:
        run_folder.refuse_other_model(run.recipe, run.corpus, run.plan.shapes, Checkpoint.open(init_from))
    elif not found:
        surgery.check_ingredients(run.recipe.seed_model, run.recipe.surgery)


def first_checkpoint(run: Run, ranks: Ranks, resume: str, init_from: Path | None) -> Checkpoint:
    """The checkpoint to go on from: the newest good one of this run, or the one that surgery makes, or the weights of `init_from`."""

    def prepare() -> str:
        if run.folder.is_dir():
            lock.hold(run.folder)
        found, problems = run_folder.find(run.recipe, run.corpus, resume, init_from)
        for problem in problems:
            print(f"WARNING: passed over: {problem}", flush=True)
        if found:
            run_folder.write_recipe(run.recipe)
            return str(found.path)
        if init_from:
            source = Checkpoint.open(init_from)
            run_folder.refuse_other_model(run.recipe, run.corpus, run.plan.shapes, source)
            print(f"weights of {init_from} (step {source.state['step']}) ...", flush=True)
            run_folder.claim(run.recipe)
            return str(save_weights(run.folder, run.recipe, run.corpus_identity, source))
        print(f"surgery on {run.recipe.seed_model} ({run.recipe.surgery.embedding_init} embeddings) ...", flush=True)
        model, report = surgery.operate(surgery.load_seed(run.recipe.seed_model), run.recipe, run.tokenizer, run.corpus)
        run_folder.claim(run.recipe)
        rounded: Any = copy.deepcopy(model.eval())
        rounded.to(run.config.dtype)  # as the engine will have it
        if ranks.device.type == "cuda":  # in 16 bits most CPUs beside GPUs would take minutes
            rounded.float()
        forward = forward_check(run, lambda batch: MaskedLanguageModel(rounded).loss(batch, model.device), model.device)
        return str(save_seed(run.folder, run.recipe, run.corpus_identity, model, report, forward))

    def refuse(checkpoint: Checkpoint) -> None:
        run_folder.refuse_other_run(run.recipe, run.corpus, checkpoint)

    storage = Storage(run.folder, ranks)
    storage.level(refuse)
    path = ranks.gather(ranks.on_main(prepare))[0]
    storage.level(refuse)
    give_back_freed_memory()
    return Checkpoint.open(Path(path), verify=False)


def post_train(run: Run, ranks: Ranks, checkpoint: Checkpoint) -> None:
    """Stage after stage from `checkpoint` to the export."""
    recipe, state = run.recipe, TrainState.of(checkpoint)
    exported = run.folder / "model"
    already_done, patient = state.step == recipe.total_steps, recipe.on_save_failure == "warn"
    journal = Journal(run.folder, ranks, state.step, recipe.total_steps, run.tokens_per_step, patient)
    if ranks.device.type == "cpu" and not cpu_kernels.available():
        journal.say("no CPU kernels of these sources for this processor: slower; install a C++ compiler, then the package again")
    if state.step:
        journal.say(f"going on from {checkpoint.path}")
    saver, stop, watchdog = Saver(run.folder, recipe, ranks, checkpoint, journal.say), StopRequest(), Watchdog(ranks, recipe.hang_seconds)
    while (index := recipe.stage_at(state.step)[0]) < len(recipe.stages):
        train_stage(run, ranks, journal, state, saver, index, stop)
    saver.finish()
    watchdog.close()
    journal.catch_up()
    if ranks.is_main and not (already_done and (exported / "config.json").is_file()):  # keeps edits made to a finished export
        # no row where only the checkpoints were kept
        validations = [row for row in read_rows(run.folder / "metrics.jsonl") if "valid_loss" in row]
        scores = {key: validations[-1][key] for key in ("valid_loss", "valid_perplexity")} if validations else {}
        export(saver.last, run.corpus, exported, scores)
    journal.say(f"done: {exported}")
    journal.close()


def train_stage(run: Run, ranks: Ranks, journal: Journal, state: TrainState, saver: Saver, index: int, stop: StopRequest) -> None:
    """From the last checkpoint to the end of stage `index` and the checkpoint there."""
    recipe, stage = run.recipe, run.recipe.stages[index]
    begin = time.perf_counter()
    ranks.beat(f"building the engine of stage {stage.name}")
    stage_start = state.step - recipe.stage_at(state.step)[1]
    stage_end = stage_start + stage.steps
    train, checkpoint = trainable(stage, run.plan.parts), saver.last
    engine = StageEngine(
        checkpoint, train, run.config, recipe.optimizer, recipe.surgery.dropout, recipe.global_batch_size, ranks.device,
        fresh_moments=recipe.optimizer.moments == "fresh" and state.step == stage_start,
    )  # fmt: skip
    engine.load_loss_scaler(checkpoint.state.get("loss_scaler", {}))
    check_forward(run, ranks, engine, checkpoint)
    journal.say(
        f"stage {stage.name}: {len(train)} of {len(run.plan.shapes)} tensors train; {engine.describe()}; engine built in "
        f"{time.perf_counter() - begin:.1f} s"
    )
    if state.step == 0:
        nothing = dict.fromkeys(("loss", "lr", "grad_norm", "tokens_per_second", "mfu"))
        journal.record({"step": 0, "stage": stage.name, "tokens": 0, **nothing, **validate(run, ranks, engine)})
    speed, skipped = Speed(run, index), 0
    while state.step < stage_end:
        ranks.beat(f"reading batch {state.batch}")
        batches, num_selected, signal, saved = draw(run, ranks, state.batch, stop, saver)
        if saved:
            saver.finish()
            speed.restart()
        if signal:
            end_on_signal(signal, run, journal, state, saver, engine)
        rate = learning_rate(stage, state.step - stage_start)
        engine.set_learning_rate(rate)
        loss_sum = train_step(run, ranks, engine, state.batch, batches, num_selected)
        state.batch += 1
        state.tokens += run.tokens_per_step
        if engine.skipped:
            skipped += 1
            engine.traffic.take()
            speed.restart()
            tell_skipped(skipped, run, journal, state, saver)
            continue
        skipped = 0
        state.step += 1
        speed.count(engine.traffic.take())
        journal.advance(run.tokens_per_step, stage.name)

        done = state.step == stage_end
        row: dict[str, Any] = {"step": state.step, "stage": stage.name}
        evaluating = done or (recipe.every.evaluate and state.step % recipe.every.evaluate == 0)
        if evaluating or state.step % recipe.every.log == 0:
            loss = ranks.sum(float(loss_sum))[0] / num_selected
            row |= {"loss": loss, "lr": rate, "grad_norm": engine.gradient_norm, "tokens": state.tokens, **speed.figures()}
        if evaluating:
            row |= validate(run, ranks, engine)
            engine.check_frozen()
        if len(row) > 2:
            journal.record(row)
            speed.restart()
        if done or (recipe.every.checkpoint and state.step % recipe.every.checkpoint == 0):
            ranks.beat(f"saving step {state.step}")
            saver.save(state, engine, forward_check(run, engine.evaluate, engine.device), needed=done)
            speed.restart()
    engine.close()


def end_on_signal(signal: int, run: Run, journal: Journal, state: TrainState, saver: Saver, engine: StageEngine) -> NoReturn:
    """Save what was done, and raise Stopped."""
    if saver.last.state["step"] != state.step:  # batches skipped since are drawn, and skipped, again
        saver.save(state, engine, forward_check(run, engine.evaluate, engine.device), needed=True)
    saver.finish()
    journal.say(f"asked to stop: step {saver.good.state['step']} is saved; the same command goes on from there")
    journal.close()
    raise Stopped(signal)


def tell_skipped(in_a_row: int, run: Run, journal: Journal, state: TrainState, saver: Saver) -> None:
    """The last batch's gradient was not finite. Raises RunError when that is `max_skipped` times in a row."""
    recipe, first = run.recipe, (state.batch - 1) * run.recipe.global_batch_size
    stage = recipe.stages[recipe.stage_at(state.step)[0]].name
    where = f"step {state.step + 1} of stage {stage}, samples {first} to {first + recipe.global_batch_size - 1}"
    journal.say(f"{where}: a gradient was not finite; skipped ({in_a_row} in a row)")
    if in_a_row == recipe.max_skipped:
        raise RunError(
            f"{where}: {in_a_row} steps in a row had a gradient that was not finite; {saver.good.path} is the last good checkpoint"
        )


def draw(run: Run, ranks: Ranks, batch_number: int, stop: StopRequest, saver: Saver) -> tuple[list[MaskedBatch], float, int, bool]:
    """This rank's micro-batches of a global batch, and what the ranks agree on: the number of selected tokens of all, the signal to end by
    (0: none), and whether a checkpoint has reached all disks."""
    size, micro = run.recipe.global_batch_size, run.config.micro_batch
    samples = samples_of(batch_number, size, micro, run.accumulation, ranks.rank, ranks.world_size)
    batches = [run.train_blocks.training(numbers) for numbers in samples]
    signal = stop.signal
    asked = [float(signal == number) for number in (SIGINT, SIGTERM)]
    num_selected, interrupt, terminate, saved = ranks.sum(sum(len(batch.labels) for batch in batches), *asked, float(saver.ready))
    num_selected = max(1.0, num_selected)  # of a small batch perhaps none; then its loss is 0
    return batches, num_selected, SIGINT if interrupt else SIGTERM if terminate else 0, saved == ranks.world_size


def train_step(
    run: Run, ranks: Ranks, engine: StageEngine, batch_number: int, batches: list[MaskedBatch], num_selected: float
) -> torch.Tensor:
    """One global batch; returns this rank's summed cross-entropy."""
    loss_sum = torch.zeros((), device=ranks.device)
    for micro, batch in enumerate(batches):
        ranks.beat(f"training on batch {batch_number}, micro-batch {micro}")
        # Dropout follows from where we are: nothing to save, and a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(dropout_seed(run.recipe.seed, batch_number, micro * ranks.world_size + ranks.rank))
        loss_sum += engine.backward(batch, num_selected)
    return loss_sum


def validate(run: Run, ranks: Ranks, engine: StageEngine) -> dict[str, float]:
    """Loss per selected token over the validation blocks, shared out over the ranks."""
    loss_sum, num_selected = 0.0, 0
    ranks.beat("validating")
    for batch in run.validation:
        ranks.beat("validating")
        loss_sum += float(engine.evaluate(batch))
        num_selected += len(batch.labels)
    total, selected = ranks.sum(loss_sum, num_selected)
    return {"valid_loss": total / selected, "valid_perplexity": perplexity(total / selected)}


def forward_check(run: Run, loss: Callable[[MaskedBatch], torch.Tensor], device: torch.device) -> dict[str, Any]:
    """What a model makes of the first validation blocks: kept with its weights, to know them by when they are loaded."""
    blocks = np.arange(min(CHECKED_BLOCKS, run.valid_blocks.num_blocks))
    with torch.no_grad():
        batch = run.valid_blocks.validation(blocks)
        loss_sum = float(loss(batch))
    found = {"loss_sum": loss_sum, "dtype": str(run.config.dtype), "device": device.type, "num_selected": len(batch.labels)}
    return found if np.isfinite(loss_sum) else {}


def check_forward(run: Run, ranks: Ranks, engine: StageEngine, checkpoint: Checkpoint) -> None:
    """Raises RunError on all ranks when any of them does not compute with the loaded weights what was computed with the saved ones."""
    before = checkpoint.state["forward"]
    if not before:  # another run's weights
        return
    now = forward_check(run, engine.evaluate, engine.device)
    # Another machine adds in another order; of few tokens one that differs weighs more.
    rounding = (
        1e-5 if {before["dtype"], now.get("dtype")} == {"torch.float32"} else 2e-3 * max(1.0, 100 / max(1, now.get("num_selected", 1)))
    )
    if before["device"] != engine.device.type:  # what surgery made is computed on the CPU; not run on a GPU
        rounding *= 5
    close = abs(now.get("loss_sum", np.inf) - before["loss_sum"]) <= rounding * abs(before["loss_sum"])
    if ranks.sum(float(not close))[0]:
        raise RunError(
            f"checkpoint {checkpoint.path}: the loss of its weights on the first validation blocks is {now.get('loss_sum', np.nan):.6g}, "
            f"and was {before['loss_sum']:.6g} when saved: a parameter went astray, or the libraries compute otherwise than they did; "
            "take the versions that it was made with, or remove it to go on from the one before"
        )


class Speed:
    """Tokens per second and model FLOPs utilisation since the last row; since later, where something else than steps came between:
    validation, saving, a skipped step."""

    def __init__(self, run: Run, stage: int) -> None:
        self._flops, self._peak, self._tokens_per_step = run.plan.flops_per_token(stage), run.peak, run.tokens_per_step
        self.restart()

    def restart(self) -> None:
        self._begin, self._steps, self._sent = time.perf_counter(), 0, 0.0

    def count(self, sent: float) -> None:
        """One step. sent: bytes that this rank sent in it."""
        self._steps += 1
        self._sent += sent

    def figures(self) -> dict[str, float]:
        rate = self._steps * self._tokens_per_step / (time.perf_counter() - self._begin)
        return {"tokens_per_second": rate, "mfu": rate * self._flops / self._peak, "bytes_sent_per_step": self._sent / max(1, self._steps)}


if __name__ == "__main__":
    run_on_ranks(main)
