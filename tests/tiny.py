"""Tiny seeds, tokenizers and corpora on disk, and what two runs of them must have in common to be the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from data_tools.corpus import FORMAT_VERSION, fingerprint_of
from data_tools.digest import sha256_of
from data_tools.mmididx import write_dataset
from trainer.checkpoint import newest
from trainer.metrics_log import read_rows

RECIPE = """
name: tiny
seed_model: {root}/seed
corpus: {root}/corpus
output_dir: {root}/run
sequence_length: 16
global_batch_size: {batch}
validation_blocks: 200
surgery: {surgery}
stages:
- {{name: one, train: [embeddings, itl, head], steps: {steps[0]}, learning_rate: 1.0e-2, warmup_steps: {warmup}}}
- {{name: two, train: [all], steps: {steps[1]}, learning_rate: 1.0e-2, warmup_steps: {warmup}}}
every: {{log: 1, evaluate: 20, checkpoint: 8}}
"""
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
EXACT = ("step", "stage", "loss", "lr", "grad_norm", "tokens", "valid_loss")


def make_tokenizer(specials: dict[str, int], num_words: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with these special pieces (role -> id) and words w0, w1, ... on the other ids."""
    by_id = {index: f"<{role}>" for role, index in specials.items()}
    size = len(specials) + num_words
    words = iter(f"w{i}" for i in range(num_words))
    vocabulary = {by_id.get(index) or next(words): index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {f"{role}_token": f"<{role}>" for role in specials}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, cls_token="<bos>", sep_token="<eos>")


KOREAN = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4}


def make_seed(folder: Path, kind: str, pad_id: int = 1, headless: bool = False, positions: int = 20) -> torch.nn.Module:
    """A pretrained-looking English model of random weights, saved to `folder`."""
    torch.manual_seed(5)
    specials = (
        {"bos": 0, "pad": pad_id, "eos": 1 if pad_id == 2 else 2, "unk": 3, "mask": 4}
        if pad_id
        else {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "mask": 4}
    )
    tokenizer = make_tokenizer(specials, 35)
    common = {**SHAPE, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3}
    if kind == "roberta":
        model = RobertaForMaskedLM(
            RobertaConfig(**common, max_position_embeddings=positions + tokenizer.pad_token_id + 1, type_vocab_size=1)
        )
    else:
        model = (BertModel if headless else BertForMaskedLM)(BertConfig(**common, max_position_embeddings=positions))
    with torch.no_grad():
        for parameter in model.parameters():  # LayerNorms and biases too, so that a copy can be told from a default
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def make_corpus(folder: Path, num_words: int = 60, sentences: int = 4000, seed: int = 0) -> Path:
    """A corpus as data_tools.prepare leaves it: words follow Zipf's law, half of them are decided by the word before."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(KOREAN, num_words)
    tokenizer.save_pretrained(folder / "tokenizer")
    rng = np.random.default_rng(seed)
    follower = rng.permutation(num_words)
    shares = 1 / np.arange(1, num_words + 1)
    draws = iter(rng.choice(num_words, 20 * (sentences * 2), p=shares / shares.sum()).tolist())
    splits = {}
    for split, count in (("train", sentences), ("valid", sentences // 8), ("test", 16)):
        ids, sizes = [], []
        for _ in range(count):
            word = next(draws)
            sizes.append(int(rng.integers(4, 20)))
            for _ in range(sizes[-1]):
                ids.append(word + len(KOREAN))
                word = int(follower[word]) if rng.random() < 0.5 else next(draws)
        with write_dataset(folder / split, np.uint16) as writer:
            writer.add_documents(np.array(ids), np.array(sizes), np.diff([*range(0, count, 5), count]))
        splits[split] = {"documents": count // 5, "sentences": count, "tokens": len(ids), "characters": 3 * len(ids)}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    outputs = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
    manifest = {"format_version": FORMAT_VERSION, "outputs": outputs, "fingerprint": fingerprint_of(outputs)}
    manifest |= {"vocab_size": len(tokenizer), "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_recipe(
    path: Path, root: Path, surgery: str = "{dropout: 0.1}", batch: int = 32, steps: tuple[int, int] = (30, 50), warmup: int = 5
) -> None:
    """A recipe of two stages with the seed and the corpus in `root`."""
    path.write_text(RECIPE.format(root=root, surgery=surgery, batch=batch, steps=steps, warmup=warmup))


def final_weights(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint, which must be good, and of that step."""
    checkpoint, problems = newest(run)
    found = checkpoint.state["step"] if checkpoint else "none"
    assert checkpoint and not problems and step in (None, found), (
        f"{run}: expected a good checkpoint of step {step}, found {found} {problems}"
    )
    return {name: value.clone() for name, value, _ in checkpoint.entries(checkpoint.parameters)}


def exact_rows(run: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what differs from run to run."""
    return [{key: row[key] for key in EXACT if key in row} for row in read_rows(run / "metrics.jsonl")]
