"""Tokenizers with the vocabulary that a test asks for."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

ROLES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def tokenizer_of(roles: dict[str, str], pieces: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {piece: number for number, piece in enumerate([*roles.values(), *pieces])}
    special = {f"{role}_token": piece for role, piece in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=roles["unk"])), **special)
