"""Fine-tuning on KLUE-RE: one process, one device, exact resumption.

    D/settings.json        what the run was started with; another start must agree
    D/metrics.jsonl        one object a logged step; at the end of an epoch with the scores on the evaluation file and the hold-out
    D/tensorboard/         the same
    D/checkpoints/         newest state (weights, Adam moments, step); removed when the model is done
    D/config.json, model.safetensors, tokenizer.json ...   the fine-tuned model; config.json comes last
    D/report.json          its scores, when there is an evaluation file; D/predictions.jsonl, what it says of every row

The model is that of the last epoch, or, with a hold-out, of the epoch that scored best on rows taken out of the training file. Nothing
is ever selected on the evaluation file. Until the end the best epoch stays as a checkpoint of its own: a state is three times the
weights on disk, two of them stay, and a third is there while it is written. Batch order is a function of (seed, epoch), dropout of
(seed, step), so that there is no generator state to save.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools import aside, lock
from data_tools.digest import sha256_of
from data_tools.errors import RunError, UserError
from trainer import checkpoint as checkpoints
from trainer.accelerator import has_bf16
from trainer.classifier import (
    Classifier,
    encode_rows,
    new_classifier,
    padded_batch,
    pick_device,
    predict_probabilities,
    save_classifier,
)
from trainer.diary import Diary
from trainer.evaluation import is_scored_on, report_on, score, summary, write_predictions, write_report
from trainer.markers import EncodedRelations
from trainer.masking import dropout_seed
from trainer.metrics_log import read_rows
from trainer.relation_board import draw_evaluation
from trainer.relations import LABELS, Relation, conflicting_rows, read_relations
from trainer.schedule import linear_with_warmup
from trainer.scores import score_relations
from trainer.settings import Settings, check_output, claim_output

# KLUE's official values, the same for every run.
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
GROUPED_BATCHES = 32  # batches whose rows are sorted by length together: little padding, and still a different order every epoch
LOG_STEPS = 50
SAVE_SECONDS = 600  # a checkpoint at the next logged step after this time, and at the end of every epoch


@dataclass(frozen=True)
class _Data:
    """Rows of a file, as they are and as the model reads them."""

    rows: list[Relation]
    encoded: EncodedRelations

    @property
    def labels(self) -> np.ndarray:
        return np.array([row.label for row in self.rows])


def train(settings: Settings) -> None:
    """Fine-tune, or go on where an interrupted run of the same settings was. Raises UserError for what the user must fix."""
    output = settings.output_dir
    train_rows = read_relations(settings.train_file)
    conflicting = conflicting_rows(train_rows)
    contradicting = {id(train_rows[number]) for number in conflicting}
    held_rows: list[Relation] = []
    if settings.hold_out is not None:  # of all rows, so that runs with and without those that contradict each other hold out the same
        train_rows, held_rows = split_hold_out(train_rows, settings.hold_out)
    if settings.conflicts == "drop":
        train_rows = [row for row in train_rows if id(row) not in contradicting]
        if not train_rows:
            raise UserError(f"--conflicts drop: {settings.train_file}: every row contradicts another; keep them, or give another file")
    eval_rows = read_relations(settings.eval_file) if settings.eval_file else []
    eval_sha256 = sha256_of(settings.eval_file) if settings.eval_file else ""
    check_output(settings)
    if (output / "config.json").is_file():
        print(f"{output}: already finished with these settings; nothing to train")
        shutil.rmtree(output / "checkpoints", ignore_errors=True)  # of a run that was killed at its very end
        if settings.eval_file and not is_scored_on(output, settings.eval_file):
            _score_finished(output, settings.eval_file)
        return
    classifier, fresh = new_classifier(settings.model, settings.input_format, settings.max_length, settings.seed, settings.head)
    device = pick_device()
    classifier.model.to(device)  # type: ignore[arg-type]
    train_data = _encode(train_rows, classifier, str(settings.train_file))
    held_data = _encode(held_rows, classifier, f"{settings.train_file}, hold-out") if held_rows else None
    eval_data = _encode(eval_rows, classifier, str(settings.eval_file)) if settings.eval_file else None
    selection = f"best of {settings.epochs} epochs on a hold-out of {len(held_rows)} rows" if held_rows else "last epoch"
    _forget_other_scores(output, eval_sha256)
    claim_output(settings, selection, eval_sha256, _precision(device))  # only now: a start that failed above leaves nothing behind
    parameters = sum(p.numel() for p in classifier.model.parameters())
    print(_plan(settings, classifier, fresh, parameters, device, len(train_rows)), flush=True)
    counts = np.bincount(train_data.labels, minlength=len(LABELS)).tolist()
    rows = {"number": len(train_rows), "labels": counts, "conflicting": len(conflicting), "conflicts": settings.conflicts}
    classifier.training = {"selection": selection, "epoch": settings.epochs, "training_rows": rows}
    best, probabilities, step, seconds = _run_epochs(settings, classifier, train_data, held_data, eval_data)
    classifier.training["training_seconds"] = seconds
    if best:
        classifier.training |= {"epoch": best["epoch"], "hold_out_micro_f1": best["micro_f1"]}
    tail = f"{selection}: {classifier.training['epoch']}"
    if probabilities is not None:
        assert settings.eval_file and eval_data
        data = (settings.eval_file, eval_sha256)
        report = report_on(classifier, str(output), data, eval_data.labels, probabilities, eval_data.encoded.num_cut)
        report["predictions_sha256"] = write_predictions(output / "predictions.jsonl", eval_rows, probabilities)
        write_report(output / "report.json", report)
        draw_evaluation(output / "tensorboard", best["step"] if best else step, eval_rows, probabilities, report)
        tail += f"; on {settings.eval_file}: micro-F1 {report['micro_f1']:.2f}, AUPRC {report['auprc']:.2f}"
    save_classifier(classifier, output)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    lock.release(output)
    print(f"model in {output}; {tail}")


def _score_finished(output: Path, eval_file: Path) -> None:
    """Write the scores on a file that the finished run was not scored on."""
    rows, probabilities, report = score(str(output), eval_file)
    report["predictions_sha256"] = write_predictions(output / "predictions.jsonl", rows, probabilities)
    logged = read_rows(output / "metrics.jsonl")
    write_report(output / "report.json", report)
    draw_evaluation(output / "tensorboard", logged[-1]["step"] if logged else 0, rows, probabilities, report)
    print(summary(report))


def _forget_other_scores(output: Path, eval_sha256: str) -> None:
    """Take the scores on another evaluation file out of an interrupted run's metrics.jsonl, and say so: they would look like one curve."""
    path, metrics = output / "settings.json", output / "metrics.jsonl"
    theirs = json.loads(path.read_text(encoding="utf-8")).get("eval_sha256") if path.is_file() else None
    if not theirs or not eval_sha256 or theirs == eval_sha256:
        return
    rows = [{key: value for key, value in row.items() if not key.startswith("eval_")} for row in read_rows(metrics)]
    aside.write_text(metrics, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{output}: begun with another --eval-file; its scores are taken out of metrics.jsonl, TensorBoard's until here are of that file")


def split_hold_out(rows: Sequence[Relation], share: float) -> tuple[list[Relation], list[Relation]]:
    """(rows to train on, rows held out), each in the file's order: that share of the distinct sentences, with all their rows.

    Which ones depends on the sentences alone and not on a run's seed, so that every run of a comparison holds out the same.
    Raises UserError where one side would be empty.
    """
    by_chance = sorted({row.sentence for row in rows}, key=lambda sentence: hashlib.sha256(f"hold-out 0\0{sentence}".encode()).digest())
    held = set(by_chance[: round(share * len(by_chance))])
    if not held or len(held) == len(by_chance):
        raise UserError(
            f"--hold-out {share:g}: expected a share with sentences on both sides, found {len(held)} of the training file's "
            f"{len(by_chance)} held out; give another share, or a larger training file"
        )
    return [row for row in rows if row.sentence not in held], [row for row in rows if row.sentence in held]


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of every batch of an epoch: all rows once, rows of like length together, the last batch may be smaller."""
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches = []
    for begin in range(0, len(rows), batch_size * GROUPED_BATCHES):
        group = rows[begin : begin + batch_size * GROUPED_BATCHES]
        group = group[np.argsort(-sizes[group], kind="stable")]
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return [batches[place] for place in generator.permutation(len(batches))]


def _run_epochs(
    settings: Settings, classifier: Classifier, data: _Data, held_out: _Data | None, evaluation: _Data | None
) -> tuple[dict[str, Any] | None, np.ndarray | None, int, float]:
    """The training loop; leaves the chosen epoch's weights in the model.

    Returns the best epoch (step, epoch, micro_f1), None without a hold-out; the chosen epoch's probabilities (rows, 30), None where
    there is no evaluation file; the last step; the seconds of training.
    """
    lengths = [len(ids) for ids in data.encoded.input_ids]
    labels = torch.tensor(classifier.class_of)[torch.from_numpy(data.labels)].to(next(classifier.model.parameters()).device)
    steps_per_epoch = math.ceil(len(lengths) / settings.batch_size)
    total_steps = settings.epochs * steps_per_epoch
    warmup_steps = math.ceil(settings.warmup * total_steps)
    optimizer = torch.optim.AdamW(classifier.model.parameters(), lr=0.0, weight_decay=WEIGHT_DECAY, fused=True)
    step, best = _restore(settings.output_dir, classifier, optimizer)
    saved = {step}
    diary = Diary(settings.output_dir, step, total_steps, settings.batch_size)
    probabilities: np.ndarray | None = None
    saved_at, losses = time.monotonic(), []
    for epoch in range(step // steps_per_epoch, settings.epochs):
        batches = epoch_batches(lengths, settings.batch_size, settings.seed, epoch)
        for rows in batches[step - epoch * steps_per_epoch :]:
            rate = linear_with_warmup(settings.learning_rate, step, warmup_steps, total_steps)
            torch.manual_seed(dropout_seed(settings.seed, step, 0))  # a hash: torch's CPU generator reads 32 bits of a seed
            inputs = padded_batch(classifier, data.encoded, rows)
            loss, grad_norm = _update(classifier, optimizer, rate, inputs, labels[torch.from_numpy(rows)])
            step += 1
            losses.append(loss)
            diary.advance(len(rows))
            at_end = step % steps_per_epoch == 0
            if not at_end and step % LOG_STEPS:
                continue
            row = {"step": step, "epoch": epoch + 1, "loss": torch.stack(losses).mean().item(), "lr": rate, "grad_norm": grad_norm.item()}
            losses = []
            # the last update's harm shows in no loss
            if not math.isfinite(row["loss"]) or (at_end and not all(p.isfinite().all() for p in classifier.model.parameters())):
                raise _diverged(settings, step)
            row |= diary.lap()
            if at_end and held_out:
                row |= _scores("hold_out", held_out, predict_probabilities(classifier, held_out.encoded))
                if best is None or row["hold_out_micro_f1"] > best["micro_f1"]:
                    best = {"step": step, "epoch": epoch + 1, "micro_f1": row["hold_out_micro_f1"]}
            if at_end and evaluation:
                probabilities = predict_probabilities(classifier, evaluation.encoded)
                row |= _scores("eval", evaluation, probabilities)
            diary.record(row)
            if at_end or time.monotonic() - saved_at > SAVE_SECONDS:
                _save(settings.output_dir, classifier, optimizer, step, best, saved)
                saved_at = time.monotonic()
            diary.start_clock()
    diary.close()
    if best and best["step"] != step:
        folder = settings.output_dir / "checkpoints"
        try:
            _put_weights(classifier, checkpoints.Checkpoint.open(folder / f"step-{best['step']}"))
        except UserError as error:
            raise UserError(f"{error}; it held the best epoch: delete {folder} and give the command again to train anew") from None
        probabilities = None
    if evaluation and probabilities is None:  # another epoch's, or none: killed between the last checkpoint and the end
        probabilities = predict_probabilities(classifier, evaluation.encoded)
    return best, probabilities, step, diary.seconds


def _diverged(settings: Settings, step: int) -> RunError:
    return RunError(
        f"--learning-rate {settings.learning_rate:g}: loss or weights are no longer finite at step {step}; "
        "give a lower rate, and another --output-dir"
    )


def _scores(prefix: str, data: _Data, probabilities: np.ndarray) -> dict[str, float]:
    """What of the scores goes into metrics.jsonl."""
    scores = score_relations(data.labels, probabilities)
    return {f"{prefix}_{key}": scores[key] for key in ("micro_f1", "auprc", "accuracy")}


def _update(
    classifier: Classifier, optimizer: torch.optim.Optimizer, rate: float, inputs: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step on a batch: loss and gradient norm before clipping, both scalars still on the device."""
    model = classifier.model
    model.train()
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=has_bf16(labels.device)):
        logits = model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), grad_norm


def _save(
    output: Path, classifier: Classifier, optimizer: torch.optim.Optimizer, step: int, best: dict[str, Any] | None, saved: set[int]
) -> None:
    """A checkpoint; of the earlier ones that of the best epoch stays. saved: the step that this run began from and those it saved."""
    parameters = dict(classifier.model.named_parameters())
    moments = {name: (state["exp_avg"], state["exp_avg_sq"]) for name, p in parameters.items() if (state := optimizer.state.get(p))}
    try:
        checkpoints.write_alone(output, step, "0", parameters, moments, {"step": step, "best": best})
    except OSError as error:
        raise RunError(
            f"a checkpoint of {output} could not be written ({error.strerror}); make room, then give the command again"
        ) from None
    saved.add(step)
    kept = {step, best["step"]} if best else {step}
    checkpoints.prune(output, saved, keep_last=0, keep_steps=kept)


def _restore(output: Path, classifier: Classifier, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any] | None]:
    """Put the newest good checkpoint into model and optimizer. Returns its step, 0 when there is none, and the best epoch until then."""
    newest, problems = checkpoints.newest(output)
    for problem in problems:
        print(f"passed over: {problem}")
    if newest is None and problems:
        raise UserError(f"{problems[0]}; fix it, or delete {output / 'checkpoints'} to train anew")
    if newest is None:
        return 0, None
    _put_weights(classifier, newest)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for place, (name, _, adam) in enumerate(newest.entries(dict(classifier.model.named_parameters()))):
        if adam:
            step = torch.tensor(float(newest.adam_steps[name]))
            moments[place] = {"step": step, "exp_avg": adam[0].clone(), "exp_avg_sq": adam[1].clone()}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    print(f"goes on from step {newest.state['step']}")
    return int(newest.state["step"]), newest.state.get("best")


def _put_weights(classifier: Classifier, checkpoint: checkpoints.Checkpoint) -> None:
    parameters = dict(classifier.model.named_parameters())
    with torch.no_grad():
        for name, value, _ in checkpoint.entries(parameters):
            parameters[name].copy_(value)


def _encode(rows: list[Relation], classifier: Classifier, source: str) -> _Data:
    encoded = encode_rows(classifier, rows, source)
    mean = np.mean([len(ids) for ids in encoded.input_ids])
    cut = f"{encoded.num_cut:,} cut to {classifier.max_length} around their entities"
    print(f"{source}: {len(rows):,} rows, {mean:.0f} tokens each on average, {cut}")
    return _Data(rows, encoded)


def _precision(device: torch.device) -> str:
    return "bf16 autocast" if has_bf16(device) else "fp32"


def _plan(settings: Settings, classifier: Classifier, fresh: list[str], parameters: int, device: torch.device, num_rows: int) -> str:
    new = ", ".join(sorted({name.rsplit(".", 1)[0] for name in fresh})) or "nothing"
    steps = settings.epochs * math.ceil(num_rows / settings.batch_size)
    return (
        f"{settings.model}: {parameters / 1e6:.1f}M parameters; newly initialised: {new}\n"
        f"{settings.epochs} epochs, {steps:,} steps of {settings.batch_size} rows, learning rate {settings.learning_rate:g}, "
        f"format {settings.input_format}, head {settings.head}, {device} in {_precision(device)}, seed {settings.seed}"
        + (f"\nthis model reads padding: every row is padded to {classifier.max_length} tokens" if classifier.padding_counts else "")
    )
