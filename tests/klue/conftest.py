"""A model folder with rows to train on, and the run that trained on them."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from tests.klue.invented import FILLERS, PEOPLE, PLACES, invented_rows, settings, tiny_config
from trainer.classifier import quiet_transformers
from trainer.finetune import train


@pytest.fixture(autouse=True)
def one_quiet_thread():
    quiet_transformers()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """seed/ (a tiny MLM with its tokenizer), train.json, dev.jsonl"""
    folder = tmp_path_factory.mktemp("klue")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PEOPLE, *PLACES, *FILLERS, "태어났다", "떠났다"]
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    tokenizer.save_pretrained(folder / "seed")
    torch.manual_seed(0)
    BertForMaskedLM(tiny_config(len(tokens))).save_pretrained(folder / "seed")
    (folder / "train.json").write_text(json.dumps(invented_rows(96, 1)), encoding="utf-8")
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in invented_rows(41, 2)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(work) -> Path:
    quiet_transformers()
    train(settings(work, work / "D"))
    return work / "D"
