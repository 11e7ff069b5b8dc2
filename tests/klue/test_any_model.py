"""Models and tokenizers of every kind that AutoModelForSequenceClassification loads, tiny and random: train, save, load, classify."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BigBirdConfig,
    DebertaV2Config,
    ElectraConfig,
    FNetConfig,
    GPT2Config,
    MT5Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from data_tools.errors import UserError
from tests.klue.invented import invented_rows
from trainer import classifier as classifiers
from trainer import finetune
from trainer.classifier import encode_rows, load_classifier, new_classifier, predict_probabilities
from trainer.evaluation import evaluate
from trainer.finetune import train
from trainer.markers import EncodedRelations, marker_tokens
from trainer.metrics_log import read_rows
from trainer.relations import read_relations
from trainer.settings import Settings

LIMIT = 40  # positions of the models that count them


def rows_of_all_lengths(seed: int) -> list[dict]:
    """Short and long ones, some beyond LIMIT, one that spells the tokenizers' own tokens, one that ends outside the basic plane."""
    rows = invented_rows(24, seed)
    for row, more in zip(rows, (" 그리고" * 60, " </s> [SEP] <|endoftext|> <pad>", " 어제 😀", " 정말" * 9), strict=False):
        row["sentence"] += more
    return rows


def wordpiece(framed: bool) -> PreTrainedTokenizerFast:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | ({"cls_token": "[CLS]", "sep_token": "[SEP]"} if framed else {})
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=list(names.values()), show_progress=False)
    tokenizer.train_from_iterator([row["sentence"] for row in invented_rows(24, 0)], trainer)
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def unigram(template: str) -> PreTrainedTokenizerFast:
    """SentencePiece's kind, with a word start after every marker, as XLM-R's and T5's. template: where <s> and </s> stand."""
    # Not trained: of tokenizers' trainer comes another vocabulary each time.
    found = Counter(
        word[start:end]
        for row in invented_rows(24, 0)
        for word in (f"▁{word}" for word in row["sentence"].split())
        for start in range(len(word))
        for end in range(start + 1, min(len(word), start + 4) + 1)
    )
    pieces = sorted(found, key=lambda piece: (len(piece) > 1, -found[piece] * len(piece), piece))[:76]
    specials = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>", "<s>")]
    tokenizer = Tokenizer(models.Unigram([*specials, *((piece, math.log(found[piece] / found.total())) for piece in pieces)], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([name for name, _ in specials])
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 3), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>")


def byte_level(framed: bool) -> PreTrainedTokenizerFast:
    """RoBERTa's and BART's, or GPT-2's: nothing around the text, and no token but the end of text."""
    specials = ["<pad>", "</s>", "<unk>", "<s>"] if framed else ["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([row["sentence"] for row in invented_rows(24, 0)], trainer)
    if not framed:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0], bos_token=specials[0], unk_token=specials[0])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)


ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": LIMIT,
    "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": LIMIT, "init_std": 0.3, "initializer_range": 0.3,
    "bos_token_id": 3, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "initializer_factor": 3.0,  # at 1 a marker's state says next to nothing of its sentence
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FNET = {key: value for key, value in ENCODER.items() if key != "num_attention_heads"}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LIMIT, "initializer_range": 0.3}
KINDS = {
    "bert": (BertConfig, ENCODER, lambda: wordpiece(True)),
    "bert, no [CLS]": (BertConfig, ENCODER, lambda: wordpiece(False)),
    "roberta": (RobertaConfig, ENCODER, lambda: byte_level(True)),
    "xlm-roberta": (XLMRobertaConfig, ENCODER, lambda: unigram("<s> $A </s>")),
    "electra": (ElectraConfig, ENCODER | {"embedding_size": 8}, lambda: wordpiece(True)),
    "albert": (AlbertConfig, ENCODER | {"embedding_size": 8}, lambda: unigram("<s> $A </s>")),
    # Sparse beyond 14 tokens, if it were left to itself.
    "big bird": (BigBirdConfig, ENCODER | {"block_size": 2, "num_random_blocks": 1}, lambda: unigram("<s> $A </s>")),
    "deberta": (DebertaV2Config, ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, lambda: unigram("<s> $A </s>")),
    "gpt2": (GPT2Config, GPT2, lambda: byte_level(False)),
    "bart": (BartConfig, BART, lambda: byte_level(True)),
    "bart, tokenizer without an end": (BartConfig, BART, lambda: unigram("$A")),
    "mt5": (MT5Config, T5, lambda: unigram("$A </s>")),
    "fnet": (FNetConfig, FNET, lambda: unigram("<s> $A </s>")),  # has no attention mask: reads padding
    "t5": (T5Config, T5, lambda: unigram("$A </s>")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    for module in (classifiers, finetune):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)


def make_model(folder: Path, config: type[PretrainedConfig], fields: dict, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random base model, as one finds them, without a head; its token table is larger than its vocabulary by three rows."""
    torch.manual_seed(0)
    AutoModel.from_config(config(vocab_size=len(tokenizer) + 3, **fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one(data: EncodedRelations, number: int) -> EncodedRelations:
    return EncodedRelations([data.input_ids[number]], [data.starts[number]], 0)


@pytest.mark.parametrize("head", ["cls", "entities"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_loads_and_reads_rows_alone_as_in_a_batch(kind, head, tmp_path, monkeypatch):
    config, fields, tokenizer = KINDS[kind]
    make_model(tmp_path / "seed", config, fields, tokenizer())
    for name, seed in (("train", 1), ("dev", 2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows_of_all_lengths(seed)), encoding="utf-8")
    dev, in_memory = read_relations(tmp_path / "dev.json"), []

    def watched_save(classifier, folder):
        in_memory.append(predict_probabilities(classifier, encode_rows(classifier, dev, "dev")))
        save(classifier, folder)

    save = finetune.save_classifier
    monkeypatch.setattr(finetune, "save_classifier", watched_save)
    given = {"model": str(tmp_path / "seed"), "train_file": tmp_path / "train.json", "output_dir": tmp_path / "D", "head": head}
    train(
        Settings(**given, eval_file=tmp_path / "dev.json", epochs=6 if "t5" in kind else 2, batch_size=4, learning_rate=4e-3, max_length=60)
    )
    first, *_, last = (row["loss"] for row in read_rows(tmp_path / "D" / "metrics.jsonl"))
    assert last < first - 0.1

    report = evaluate(str(tmp_path / "D"), tmp_path / "dev.json", None, tmp_path / "P.jsonl")
    lines = (tmp_path / "P.jsonl").read_text(encoding="utf-8").splitlines()
    loaded = np.array([json.loads(line)["probabilities"] for line in lines])
    assert np.abs(loaded - in_memory[0]).max() < 1e-5 and report["head"] == head
    assert np.ptp(loaded, axis=0).max() > 1e-3  # rows differ by far more than the 1e-5 below

    classifier = load_classifier(str(tmp_path / "D"))
    data = encode_rows(classifier, dev, "dev")
    assert len({len(ids) for ids in data.input_ids}) > 3 and data.num_cut == report["num_cut"] >= 1
    alone = np.concatenate([predict_probabilities(classifier, one(data, number)) for number in range(len(dev))])
    assert np.abs(alone - loaded).max() < 1e-5

    limit = LIMIT - 1 if "roberta" in kind else 60 if "t5" in kind else LIMIT  # RoBERTa's begin behind the padding row
    assert classifier.max_length == limit == max(map(len, data.input_ids))
    opening, closing = "<subj>", "</subj>"
    for row, ids, (subject, obj) in zip(dev, data.input_ids, data.starts, strict=True):
        tokens = classifier.tokenizer.convert_ids_to_tokens(ids)
        assert all(tokens.count(marker) == 1 for marker in marker_tokens("untyped"))
        assert tokens[subject] == opening and tokens[obj] == "<obj>"
        assert classifier.tokenizer.decode(ids[subject + 1 : tokens.index(closing)]).strip() == row.subject.word
        if classifier.model.config.is_encoder_decoder:
            assert ids.count(classifier.model.config.eos_token_id) == 1 and ids[-1] == classifier.model.config.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "D").pad_token_id == classifier.model.config.pad_token_id is not None


def test_big_bird_attends_fully_so_that_a_row_does_not_depend_on_its_batch(tmp_path):
    folder = make_model(tmp_path, *KINDS["big bird"][:2], KINDS["big bird"][2]())
    assert json.loads((folder / "config.json").read_text())["attention_type"] == "block_sparse"
    classifier, _ = new_classifier(str(folder), "untyped", 256, 0)
    assert classifier.model.bert.attention_type == classifier.model.config.attention_type == "original_full"


def test_models_without_a_usable_end_or_padding_token_are_refused(tmp_path):
    clash = make_model(tmp_path / "a", BartConfig, BART | {"pad_token_id": 1}, byte_level(True))
    with pytest.raises(UserError, match="expected an encoder-decoder with an end token that is not its padding, found eos_token_id 1 and"):
        new_classifier(str(clash), "untyped", 256, 0)
    tokenizer = byte_level(False)
    tokenizer.eos_token = None
    bare = make_model(tmp_path / "b", GPT2Config, GPT2 | {"eos_token_id": None, "bos_token_id": None}, tokenizer)
    with pytest.raises(UserError, match=f"--model {bare}: expected a tokenizer with a padding or an end token, found neither"):
        new_classifier(str(bare), "untyped", 256, 0)
    size = json.loads((bare / "config.json").read_text())["vocab_size"]
    GPT2Config(**GPT2, vocab_size=size, pad_token_id=7).save_pretrained(bare)  # the configuration may name it instead
    assert new_classifier(str(bare), "untyped", 256, 0)[0].tokenizer.pad_token_id == 7
