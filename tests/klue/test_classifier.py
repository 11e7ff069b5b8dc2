"""The fine-tuned model: what is new in it, how long its input may be, what its folder is to others."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from tests.klue.invented import settings
from trainer.classifier import length_limit, load_classifier, new_classifier, padded_batch
from trainer.evaluation import evaluate
from trainer.finetune import train
from trainer.markers import EncodedRelations
from trainer.metrics_log import read_rows
from trainer.relations import LABELS


def test_saved_folder_is_plain_hugging_face(trained):
    model = BertForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.config.id2label[14] == "per:place_of_birth" and model.config.num_labels == 30 and model.dtype == torch.float32
    assert len(tokenizer) == len(model.bert.embeddings.word_embeddings.weight) and tokenizer.tokenize("<subj>가람")[0] == "<subj>"
    logits = model(**tokenizer("<subj> 가람</subj> <obj> 라온</obj> 태어났다", return_tensors="pt")).logits
    assert model.config.id2label[int(logits.argmax())] == "per:place_of_birth"


def test_padding_is_to_a_multiple_of_eight_and_masked(trained):
    classifier = load_classifier(str(trained))
    data = EncodedRelations([[2, 5, 8, 3], [2, 6, 9, 11, 12, 17, 3], [2, 3]], [(0, 1)] * 3, 0)
    inputs = padded_batch(classifier, data, [0, 1, 2])
    assert (
        inputs["input_ids"].shape == (3, 8)
        and inputs["attention_mask"].sum(1).tolist() == [4, 7, 2]
        and inputs["input_ids"][0, 4:].sum() == 0
    )


def test_new_classifier_names_what_is_new_and_respects_the_position_table(work):
    classifier, fresh = new_classifier(str(work / "seed"), "typed", 256, seed=0)
    assert {name.split(".")[0] if name.startswith("classifier") else "pooler" for name in fresh} == {"classifier", "pooler"}
    assert classifier.max_length == 20 and len(classifier.tokenizer) == 18 + 24
    same, _ = new_classifier(str(work / "seed"), "typed", 256, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(classifier.model.parameters(), same.model.parameters(), strict=True))


def test_roberta_positions_begin_behind_the_padding_row(work):
    fields = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "pad_token_id": 1,
    }
    model = RobertaForSequenceClassification(RobertaConfig(max_position_embeddings=20, **fields))
    limit = length_limit(model, AutoTokenizer.from_pretrained(work / "seed"))
    assert limit == 18 and model(torch.full((1, limit), 5)).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 5))


def test_labels_in_another_order_are_read_by_name(work, trained, tmp_path):
    expected = evaluate(str(trained), work / "dev.jsonl")
    model = BertForSequenceClassification.from_pretrained(trained)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label = {n: LABELS[order[n]] for n in range(30)}
    model.config.label2id = {name: n for n, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    assert evaluate(str(tmp_path), work / "dev.jsonl")["per_label"] == expected["per_label"]
    train(settings(work, tmp_path / "D", model=str(tmp_path), epochs=1, learning_rate=1e-12))  # goes on with what it knows
    report = json.loads((tmp_path / "D" / "report.json").read_text(encoding="utf-8"))
    assert report["per_label"] == expected["per_label"] and read_rows(tmp_path / "D" / "metrics.jsonl")[-1]["loss"] < 0.5
