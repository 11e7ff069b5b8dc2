"""A tiny BERT, its rows and its settings, which the tests of fine-tuning share."""

import random
import shutil
from pathlib import Path

from transformers import BertConfig

from trainer.relations import NO_RELATION
from trainer.settings import Settings

REPOSITORY = Path(__file__).parent.parent.parent
PEOPLE, PLACES, FILLERS = ("가람", "나래", "다솔"), ("라온", "마루", "바다"), ("그리고", "어제", "정말", "또", "한때")


def invented_rows(number: int, seed: int) -> list[dict]:
    """A relation there is where the verb says so: learnable from one word."""
    rng = random.Random(seed)
    rows = []
    for n in range(number):
        person, place, born = rng.choice(PEOPLE), rng.choice(PLACES), rng.random() < 0.5
        start = " ".join(rng.choices(FILLERS, k=rng.randint(0, 4)))
        sentence = f"{start} {person} {place} {'태어났다' if born else '떠났다'}".strip()
        subject, obj = sentence.index(person), sentence.index(place)
        rows.append(
            {
                "guid": f"g{n}",
                "sentence": sentence,
                "subject_entity": {"word": person, "start_idx": subject, "end_idx": subject + len(person) - 1, "type": "PER"},
                "object_entity": {"word": place, "start_idx": obj, "end_idx": obj + len(place) - 1, "type": "LOC"},
                "label": "per:place_of_birth" if born else NO_RELATION,
            }
        )
    return rows


def tiny_config(vocab_size: int, **fields: object) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, initializer_range=0.2, **fields,
    )  # fmt: skip


def settings(work: Path, output: Path, **changes: object) -> Settings:
    given = {
        "model": str(work / "seed"), "train_file": work / "train.json", "eval_file": work / "dev.jsonl", "output_dir": output,
        "epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "seed": 5,
    }  # fmt: skip
    return Settings(**(given | changes))


def copied(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without, "tensorboard"))
    return target
