"""Tiny seeds, tokenizers and corpora on disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


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


def make_seed(folder: Path, kind: str, pad_id: int = 1, headless: bool = False) -> torch.nn.Module:
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
        model = RobertaForMaskedLM(RobertaConfig(**common, max_position_embeddings=20 + tokenizer.pad_token_id + 1, type_vocab_size=1))
    else:
        model = (BertModel if headless else BertForMaskedLM)(BertConfig(**common, max_position_embeddings=20))
    with torch.no_grad():
        for parameter in model.parameters():  # LayerNorms and biases too, so that a copy can be told from a default
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
