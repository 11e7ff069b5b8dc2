"""Fine-tuning on KLUE-RE beside Hugging Face's Trainer, with the same model, rows, ids, batch size, learning rate, bf16 and dropout.

    OMP_NUM_THREADS=1 python -m benchmarks.klue_speed --model runs/real/full-dictionary/model --train-file T --eval-file E

Measured: rows per second and rows per second of CPU time. On one thread the two agree on a quiet machine; the second holds on a busy one,
too. Only the training loop is timed, ours with its checkpoint at the end of the epoch, theirs without one. The two sides alternate. Their
side is `Trainer` as its documentation has it: dynamic padding (DataCollatorWithPadding to a multiple of 8), length grouping
(train_sampling_strategy), bf16 and fused AdamW; with eager attention, as ours, which on CPU is faster than its default. A third arm pads
to 256 tokens and runs for --padded-steps steps. Prints a table, and writes the record with every pair to --record.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.origin import commit, processor
from trainer import finetune
from trainer.classifier import Classifier, encode_rows, new_classifier, predict_probabilities, quiet_transformers
from trainer.evaluation import evaluate
from trainer.memory import keep_freed_memory
from trainer.relations import read_relations
from trainer.scores import micro_f1
from trainer.settings import Settings

BATCH, RATE, WARMUP = 32, 2e-4, 0.1
RATES = ("rows_per_second", "rows_per_cpu_second")


class Rows(Dataset):
    """Encoded rows as Trainer wants them."""

    def __init__(self, ids: list[list[int]], labels: list[int]) -> None:
        self.items = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": label} for row, label in zip(ids, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict:
        return self.items[place]


class Stopwatch:
    """Seconds, and seconds of CPU time, of what stands under it."""

    def __enter__(self) -> "Stopwatch":
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._end = time.perf_counter(), time.process_time()

    def rates(self, rows: int) -> dict[str, float]:
        seconds, cpu_seconds = (end - begin for begin, end in zip(self._begin, self._end, strict=True))
        return {"rows_per_second": rows / seconds, "rows_per_cpu_second": rows / cpu_seconds}


def ours(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """A fine-tuning by trainer/klue_re.py; its epochs alone are timed, as only `train` of theirs is."""
    settings = Settings(
        model=arguments.model, train_file=arguments.train_file, output_dir=folder, epochs=arguments.epochs, batch_size=BATCH,
        learning_rate=RATE, warmup=WARMUP, seed=seed,
    )  # fmt: skip
    watch, run_epochs = Stopwatch(), finetune._run_epochs

    def watched(*given: Any) -> Any:
        with watch:
            return run_epochs(*given)

    finetune._run_epochs = watched
    finetune.train(settings)
    finetune._run_epochs = run_epochs
    score = evaluate(str(folder), arguments.eval_file)["micro_f1"]
    return {**watch.rates(len(read_relations(arguments.train_file)) * arguments.epochs), "f1": score}


def theirs(arguments: argparse.Namespace, seed: int, folder: Path, padded_steps: int = 0) -> dict[str, float]:
    """padded_steps: pad to 256 tokens, for so many steps, without a score."""
    rows, held = read_relations(arguments.train_file), read_relations(arguments.eval_file)
    ours, _ = new_classifier(arguments.model, "untyped", 256, seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        arguments.model, num_labels=30, dtype=torch.float32, attn_implementation="eager"
    )
    model.resize_token_embeddings(len(ours.tokenizer), mean_resizing=False)
    classifier = Classifier(model, ours.tokenizer, "untyped", 256)
    data = Rows(encode_rows(classifier, rows, "train").input_ids, [row.label for row in rows])
    settings = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, num_train_epochs=arguments.epochs, max_steps=padded_steps or -1,
        learning_rate=RATE, warmup_steps=WARMUP, bf16=True, use_cpu=True, seed=seed, train_sampling_strategy="group_by_length",
        save_strategy="no", report_to="none", logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    padding = {"padding": "max_length", "max_length": 256} if padded_steps else {"pad_to_multiple_of": 8}
    trainer = Trainer(model, settings, DataCollatorWithPadding(classifier.tokenizer, **padding), data)
    with Stopwatch() as watch:
        trainer.train()
    if padded_steps:
        return watch.rates(padded_steps * BATCH)
    probabilities = predict_probabilities(classifier, encode_rows(classifier, held, "held"))
    score = micro_f1(np.array([row.label for row in held]), probabilities.argmax(axis=1))
    return {**watch.rates(len(rows) * arguments.epochs), "f1": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-file", type=Path, required=True)
    parser.add_argument("--eval-file", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--padded-steps", type=int, default=6)
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/klue_speed.json"))
    arguments = parser.parse_args()
    quiet_transformers()
    keep_freed_memory()
    pairs = []
    for seed in range(arguments.pairs):
        folder = Path(tempfile.mkdtemp())
        sides = {"ours": ours, "theirs": theirs}
        found = {name: sides[name](arguments, seed, folder / name) for name in (sides if seed % 2 == 0 else reversed(sides))}
        found["padded"] = theirs(arguments, seed, folder / "padded", arguments.padded_steps)
        shutil.rmtree(folder)
        pairs.append(found)
        print(json.dumps(found), flush=True)
    ratios = {f"{side}, {key}": [pair["ours"][key] / pair[side][key] for pair in pairs] for side in ("theirs", "padded") for key in RATES}
    record = {
        "threads": torch.get_num_threads(), "cpu": f"{os.cpu_count()} x {processor()}", "commit": commit(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "rows": len(read_relations(arguments.train_file)), "epochs": arguments.epochs, "pairs": pairs, "ratios": ratios,
    }  # fmt: skip
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    print("| | rows/s, median | ours over it, median (smallest to largest) | of CPU time | micro-F1 |\n|---|---|---|---|---|")
    for side, title in (("ours", "ours"), ("theirs", "Trainer, dynamic padding, length grouping"), ("padded", "Trainer, padded to 256")):
        speed = np.median([pair[side]["rows_per_second"] for pair in pairs])
        found = [ratios[f"{side}, {key}"] for key in RATES] if side != "ours" else []
        over = [f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in found] or ["", ""]
        scores = [pair[side]["f1"] for pair in pairs if "f1" in pair[side]]
        score = f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else ""
        print(f"| {title} | {speed:.1f} | {' | '.join(over)} | {score} |")


if __name__ == "__main__":
    main()
