"""Fine-tuning and evaluation end to end on a tiny BERT made here: learning, interruption, the saved folder, the commands, bad input."""

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from data_tools.errors import RunError, UserError
from trainer import finetune
from trainer.classifier import (
    length_limit,
    load_classifier,
    new_classifier,
    padded_batch,
    predict_probabilities,
    quiet_transformers,
    save_classifier,
)
from trainer.comparison import compare, named_models
from trainer.evaluation import evaluate
from trainer.finetune import epoch_batches, learning_rate, split_hold_out, train
from trainer.journal import read_rows
from trainer.markers import EncodedRelations
from trainer.relations import LABELS, NO_RELATION, read_relations
from trainer.scores import score_relations
from trainer.settings import Settings, load_recipe

REPOSITORY = Path(__file__).parent.parent
PEOPLE, PLACES, FILLERS = ("가람", "나래", "다솔"), ("라온", "마루", "바다"), ("그리고", "어제", "정말", "또", "한때")


@pytest.fixture(autouse=True)
def one_quiet_thread():
    quiet_transformers()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def trained(work) -> Path:
    quiet_transformers()
    train(settings(work, work / "D"))
    return work / "D"


def without_speed(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "examples_per_second"} for row in rows]


def test_learns_and_the_folder_reproduces_its_scores(work, trained):
    rows = read_rows(trained / "metrics.jsonl")
    assert [row["epoch"] for row in rows if "eval_micro_f1" in row] == [1, 2, 3, 4] and rows[-1]["step"] == 48
    assert rows[-1]["eval_micro_f1"] > 95 and rows[-1]["loss"] < rows[0]["loss"]
    assert list((trained / "tensorboard").iterdir()) and not (trained / "checkpoints").exists()
    report = evaluate(str(trained), work / "dev.jsonl", work / "out" / "R.json", work / "out" / "P.jsonl")
    assert json.loads((work / "out" / "R.json").read_text(encoding="utf-8")) == report
    assert {key: report[key] for key in ("micro_f1", "auprc", "accuracy")} == {
        key: rows[-1][f"eval_{key}"] for key in ("micro_f1", "auprc", "accuracy")
    }
    lines = [json.loads(line) for line in (work / "out" / "P.jsonl").read_text(encoding="utf-8").splitlines()]
    given = invented_rows(41, 2)
    assert [(p["guid"], p["label"]) for p in lines] == [(row["guid"], row["label"]) for row in given]
    probabilities = np.array([p["probabilities"] for p in lines])
    assert np.allclose(probabilities.sum(1), 1) and [LABELS[n] for n in probabilities.argmax(1)] == [p["prediction"] for p in lines]
    again = score_relations(np.array([LABELS.index(p["label"]) for p in lines]), probabilities)
    assert again == {key: report[key] for key in again}


def test_saved_folder_is_plain_hugging_face(trained):
    model = BertForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.config.id2label[14] == "per:place_of_birth" and model.config.num_labels == 30 and model.dtype == torch.float32
    assert len(tokenizer) == len(model.bert.embeddings.word_embeddings.weight) and tokenizer.tokenize("<subj>가람")[0] == "<subj>"
    logits = model(**tokenizer("<subj> 가람</subj> <obj> 라온</obj> 태어났다", return_tensors="pt")).logits
    assert model.config.id2label[int(logits.argmax())] == "per:place_of_birth"


def interrupted_at(call: int) -> Callable[..., Any]:
    """finetune._update that breaks off, once, at that call of it."""
    update, calls = finetune._update, count(1)

    def dying_update(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return update(*arguments)

    return dying_update


@pytest.mark.parametrize("killed_at", [13, 20, 47])  # an epoch has 12 steps
def test_interrupted_run_ends_as_the_uninterrupted_one(work, trained, tmp_path, monkeypatch, killed_at):
    update = finetune._update
    run = settings(work, tmp_path / "D")
    monkeypatch.setattr(finetune, "LOG_STEPS", 5)
    monkeypatch.setattr(finetune, "_update", interrupted_at(killed_at + 1))
    with pytest.raises(KeyboardInterrupt):
        train(run)
    saved = killed_at // 12 * 12
    assert [path.name for path in (tmp_path / "D" / "checkpoints").iterdir()] == [f"step-{saved}"]
    assert not (tmp_path / "D" / "config.json").exists()  # nothing that looks like a finished model
    monkeypatch.setattr(finetune, "_update", update)
    train(run)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "D", trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    rows = without_speed(read_rows(tmp_path / "D" / "metrics.jsonl"))
    steps = [row["step"] for row in rows]
    assert steps == sorted({*range(5, 49, 5), 12, 24, 36, 48})  # each once, those after the last checkpoint too
    assert [row["eval_auprc"] for row in rows if "eval_auprc" in row] == [
        row["eval_auprc"] for row in read_rows(trained / "metrics.jsonl") if "eval_auprc" in row
    ]


def test_killed_while_the_model_is_saved(work, trained, tmp_path, monkeypatch):
    save = finetune.save_classifier

    def dying_save(classifier, folder):
        classifier.model.save_pretrained(folder / "model.partial")
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "save_classifier", dying_save)
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D"))
    with pytest.raises(UserError, match=r"config\.json"):
        load_classifier(str(tmp_path / "D"))
    monkeypatch.setattr(finetune, "save_classifier", save)
    train(settings(work, tmp_path / "D"))
    assert not (tmp_path / "D" / "model.partial").exists()
    assert load_file(tmp_path / "D" / "model.safetensors").keys() == load_file(trained / "model.safetensors").keys()
    report = json.loads((tmp_path / "D" / "report.json").read_text(encoding="utf-8"))
    assert report["auprc"] == json.loads((trained / "report.json").read_text(encoding="utf-8"))["auprc"]


def test_an_interrupted_run_has_no_curve_of_two_evaluation_files(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "_update", interrupted_at(14))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D", epochs=2))
    assert "eval_micro_f1" in read_rows(tmp_path / "D" / "metrics.jsonl")[-1]
    (tmp_path / "other.json").write_text(json.dumps(invented_rows(30, 9)), encoding="utf-8")
    capsys.readouterr()
    train(settings(work, tmp_path / "D", epochs=2, eval_file=tmp_path / "other.json"))
    rows = read_rows(tmp_path / "D" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_micro_f1" in row] == [24] and {12, 24} <= {row["step"] for row in rows}
    assert "begun with another --eval-file" in capsys.readouterr().out


def test_saves_within_an_epoch_when_it_is_long(work, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "SAVE_SECONDS", -1)
    monkeypatch.setattr(finetune, "LOG_STEPS", 7)
    update = finetune._update
    monkeypatch.setattr(finetune, "_update", interrupted_at(16))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D"))
    assert (tmp_path / "D" / "checkpoints" / "step-14").is_dir()
    monkeypatch.setattr(finetune, "_update", update)
    train(settings(work, tmp_path / "D"))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "D", trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_finished_run_is_left_alone_and_other_settings_are_refused(work, trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    (trained / "checkpoints" / "step-48").mkdir(parents=True)  # killed at its very end
    train(settings(work, trained))
    assert not (trained / "checkpoints").exists()
    assert "already finished" in capsys.readouterr().out and (trained / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"others \(epochs: 4 there, 5 now; seed: 5 there, 4 now\)"):
        train(settings(work, trained, epochs=5, seed=4))
    (copied(work / "seed", work / "again") / "report.json").write_text("{}")  # scored, which makes no other model of it
    train(settings(work, trained, model=str(work / "again")))
    with pytest.raises(UserError, match=r"others \(train_file: contents \w+ there"):
        train(settings(work, trained, train_file=work / "dev.jsonl"))
    with pytest.raises(UserError, match=r"--output-dir .*expected a new or empty folder"):
        train(settings(work, work / "seed"))


def test_a_run_does_not_go_on_with_another_vocabulary(work, tmp_path, monkeypatch):
    seed = copied(work / "seed", tmp_path / "seed")
    (seed / "vocab.txt").write_text("가\n", encoding="utf-8")
    monkeypatch.setattr(finetune, "_update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D", model=str(seed)))
    (seed / "vocab.txt").write_text("나\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"others \(model: contents"):
        train(settings(work, tmp_path / "D", model=str(seed)))


def test_dropout_is_of_seed_and_step(work, tmp_path, monkeypatch):
    drawn: dict[int, list[tuple[float, ...]]] = {}

    def update(*_):
        drawn.setdefault(seed, []).append(tuple(torch.rand(3).tolist()))
        return torch.tensor(1.0), torch.tensor(1.0)

    monkeypatch.setattr(finetune, "_update", update)
    for seed in (0, 1):
        train(settings(work, tmp_path / f"{seed}", seed=seed, epochs=1))
    assert [len(of_seed) for of_seed in drawn.values()] == [12, 12] and len({*drawn[0], *drawn[1]}) == 24


def test_an_update_is_adamw_with_dropout_at_the_scheduled_rate(work, tmp_path, monkeypatch):
    seen: list[dict] = []
    update = finetune._update

    def updated(classifier, optimizer, rate, inputs, labels):
        before = {name: value.detach().clone() for name, value in classifier.model.named_parameters()}
        found = update(classifier, optimizer, rate, inputs, labels)
        (group,) = optimizer.param_groups
        dropping = [module.training for module in classifier.model.modules() if isinstance(module, torch.nn.Dropout)]
        moved = any(not value.equal(before[name]) for name, value in classifier.model.named_parameters())
        kept = {key: group[key] for key in ("lr", "weight_decay", "betas", "eps")}
        seen.append({**kept, "dropping": all(dropping) and bool(dropping), "moved": moved, "rows": len(labels)})
        return found

    monkeypatch.setattr(finetune, "_update", updated)
    train(settings(work, tmp_path / "D", epochs=2, warmup=0.25))
    assert [step["lr"] for step in seen] == [finetune.learning_rate(1e-2, step, 24, 0.25) for step in range(24)]
    assert len({step["lr"] for step in seen}) > 12 and all(step["dropping"] and step["moved"] and step["rows"] == 8 for step in seen)
    # KLUE's own fine-tuning: no weight decay, eps 1e-8
    assert {(step["weight_decay"], step["betas"], step["eps"]) for step in seen} == {(0.0, (0.9, 0.999), 1e-8)}


def test_a_seed_is_its_own_head_and_its_own_order(work):
    heads = [new_classifier(str(work / "seed"), "untyped", 64, seed)[0].model.classifier.weight for seed in (0, 0, 1)]
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    orders = [np.concatenate(finetune.epoch_batches([9] * 96, 8, seed, epoch)).tolist() for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_hold_out_takes_whole_sentences_and_always_the_same(work):
    rows = read_relations(work / "train.json")
    kept, held = split_hold_out(rows, 0.3)
    sentences = {row.sentence for row in rows}
    assert len(sentences) < len(rows) == len(kept) + len(held)  # some stand there twice
    assert not {row.sentence for row in kept} & {row.sentence for row in held}
    assert len({row.sentence for row in held}) == round(0.3 * len(sentences))
    assert split_hold_out(rows[::-1], 0.3) == (kept[::-1], held[::-1])
    assert split_hold_out(rows[:40] + rows[:40], 0.3)[1] == split_hold_out(rows[:40], 0.3)[1] * 2  # copies change nothing


@pytest.mark.parametrize("killed_at", [None, 23, 33])  # an epoch has 10 steps
def test_best_epoch_on_the_hold_out_is_kept(work, tmp_path, monkeypatch, killed_at):
    """The second of four epochs scores best there, the third on the evaluation file, which must not matter."""
    scores, predict, update, weights, trained_on, calls = finetune._scores, predict_probabilities, finetune._update, [], [], 0
    num_held = len(split_hold_out(read_relations(work / "train.json"), 0.25)[1])

    def watched_prediction(classifier, data):
        if len(data.input_ids) == num_held:
            weights.append({name: p.detach().clone() for name, p in classifier.model.named_parameters()})
        return predict(classifier, data)

    def scripted_scores(prefix, data, probabilities):
        scripted = (50.0, 90.0, 90.0, 70.0)[len(weights) - 1] if prefix == "hold_out" else 95.0 * (len(weights) == 3)
        return scores(prefix, data, probabilities) | {f"{prefix}_micro_f1": scripted}

    def dying_update(classifier, optimizer, rate, inputs, labels):
        nonlocal calls
        calls += 1
        if killed_at and calls == killed_at + 1:
            raise KeyboardInterrupt
        trained_on.append(len(labels))
        return update(classifier, optimizer, rate, inputs, labels)

    monkeypatch.setattr(finetune, "predict_probabilities", watched_prediction)
    monkeypatch.setattr(finetune, "_scores", scripted_scores)
    monkeypatch.setattr(finetune, "_update", dying_update)
    run = settings(work, tmp_path / "D", hold_out=0.25, learning_rate=1e-3)
    if killed_at:
        with pytest.raises(KeyboardInterrupt):
            train(run)
        kept = {f"step-{step}" for step in {20, killed_at // 10 * 10}}
        assert {path.name for path in (tmp_path / "D" / "checkpoints").iterdir()} == kept
    train(run)
    assert len(weights) == 4 and sum(trained_on[:10]) == 96 - num_held
    saved = load_file(tmp_path / "D" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights[1].items())
    assert not all(torch.equal(saved[name], value) for name, value in weights[2].items())
    report = json.loads((tmp_path / "D" / "report.json").read_text(encoding="utf-8"))
    chosen = {"selection": f"best of 4 epochs on a hold-out of {num_held} rows", "epoch": 2, "hold_out_micro_f1": 90.0}
    again = evaluate(str(tmp_path / "D"), work / "dev.jsonl")
    assert {key: report[key] for key in chosen} == {key: again[key] for key in chosen} == chosen
    assert report["auprc"] == again["auprc"] and report["num_cut"] == again["num_cut"]
    assert json.loads((tmp_path / "D" / "settings.json").read_text(encoding="utf-8"))["selection"] == chosen["selection"]
    rows = read_rows(tmp_path / "D" / "metrics.jsonl")
    assert [row["hold_out_micro_f1"] for row in rows if "hold_out_micro_f1" in row] == [50, 90, 90, 70]
    by_epoch = [row["eval_auprc"] for row in rows if "eval_auprc" in row]
    assert report["auprc"] == by_epoch[1] != by_epoch[3]


def test_run_of_before_there_were_heads_and_hold_outs_goes_on(work, trained, tmp_path, capsys):
    old = copied(trained, tmp_path / "D")
    fields = json.loads((old / "settings.json").read_text(encoding="utf-8"))
    assert fields.pop("selection") == "last epoch" and fields.pop("head") == "cls" and fields.pop("hold_out") is None
    (old / "settings.json").write_text(json.dumps(fields), encoding="utf-8")
    train(settings(work, old))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"others \(head: cls there, entities now; hold_out: None there, 0\.1 now\)"):
        train(settings(work, old, head="entities", hold_out=0.1))


def test_head_on_the_entities_learns_and_lies_beside_a_plain_base_model(work, tmp_path):
    train(settings(work, tmp_path / "D", head="entities", input_format="none"))
    report = json.loads((tmp_path / "D" / "report.json").read_text(encoding="utf-8"))
    assert report["micro_f1"] > 95 and report["head"] == "entities" and report["selection"] == "last epoch" and report["epoch"] == 4
    again = evaluate(str(tmp_path / "D"), work / "dev.jsonl")
    assert again == {key: value for key, value in report.items() if key != "predictions_sha256"}
    base, loading = AutoModel.from_pretrained(tmp_path / "D", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    classifier = load_classifier(str(tmp_path / "D"))
    data = EncodedRelations([[2, 5, 8, 14, 3]], [(2, 1)], 0)
    states = base(input_ids=torch.tensor(data.input_ids)).last_hidden_state[0]
    dense, out = classifier.model.head["dense"], classifier.model.head["out"]
    logits = out(torch.tanh(dense(torch.cat([states[2], states[1]]))))  # the subject first, wherever it stands
    assert torch.allclose(classifier.model.eval()(**padded_batch(classifier, data, [0])).logits[0], logits, atol=1e-5)
    assert base.config.klue_re["head"] == "entities" and base.config.architectures == ["BertModel"]
    save_file({"dense.weight": torch.zeros(2, 2)}, tmp_path / "D" / "entity_head.safetensors")
    with pytest.raises(UserError, match=r"expected entity_head\.safetensors beside the model, with a head of its width, found: "):
        load_classifier(str(tmp_path / "D"))


def test_batches_cover_every_row_once_and_group_lengths():
    lengths = np.random.default_rng(0).integers(5, 200, 1000).tolist()
    first, second, other = (epoch_batches(lengths, 32, 0, 0), epoch_batches(lengths, 32, 0, 1), epoch_batches(lengths, 32, 1, 0))
    for batches in (first, second, other):
        assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
        assert sorted(map(len, batches))[0] == 1000 % 32 and len(batches) == 32
    assert all(np.array_equal(a, b) for a, b in zip(first, epoch_batches(lengths, 32, 0, 0), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    sizes = np.array(lengths)
    padded = sum(sizes[batch].max() * len(batch) for batch in first)
    assert padded < 1.05 * sizes.sum() < 0.7 * 1000 * 200


def test_learning_rate_by_hand():
    rates = [learning_rate(1.0, step, 20, 0.1) for step in range(20)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and rates[-1] == pytest.approx(1 / 18) and max(rates) == rates[2]
    assert [learning_rate(1.0, step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_padding_and_row_order_do_not_change_a_probability(work, trained):
    classifier = load_classifier(str(trained))
    data = EncodedRelations([[2, 5, 8, 3], [2, 6, 9, 11, 12, 17, 3], [2, 3]], [(0, 1)] * 3, 0)
    inputs = padded_batch(classifier, data, [0, 1, 2])
    assert (
        inputs["input_ids"].shape == (3, 8)
        and inputs["attention_mask"].sum(1).tolist() == [4, 7, 2]
        and inputs["input_ids"][0, 4:].sum() == 0
    )
    together = predict_probabilities(classifier, data)
    alone = np.concatenate([predict_probabilities(classifier, EncodedRelations([ids], [(0, 1)], 0)) for ids in data.input_ids])
    assert np.allclose(together, alone, atol=0.02)  # bf16


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


def copied(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without, "tensorboard"))
    return target


Making = Callable[[Path, Path], object]
"""Makes what is bad, given the place it belongs at and the model folder to start from."""


def nothing(at: Path, model: Path) -> None:
    """What the flag names is not there."""


def folder(at: Path, model: Path) -> None:
    at.mkdir()


def content(data: bytes) -> Making:
    return lambda at, model: at.write_bytes(data)


def row(field: str, value: object) -> Making:
    """Three rows, the second with another value."""

    def make(at: Path, model: Path) -> None:
        rows = invented_rows(3, 0)
        *parent, key = field.split(".")
        (rows[1][parent[0]] if parent else rows[1])[key] = value
        at.write_text(json.dumps(rows), encoding="utf-8")

    return make


def marker(at: Path, model: Path) -> None:
    row("sentence", invented_rows(3, 0)[1]["sentence"] + " </obj>")(at, model)


def model_with(name: str, data: bytes) -> Making:
    return lambda at, model: (copied(model, at) / name).write_bytes(data)


def model_without(pattern: str) -> Making:
    return lambda at, model: copied(model, at, pattern)


def configured(**fields: object) -> Making:
    def make(at: Path, model: Path) -> None:
        path = copied(model, at) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return make


def unpadded(at: Path, model: Path) -> None:
    configured(pad_token_id=None)(at, model)
    path = at / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in fields.items() if key != "pad_token"}), encoding="utf-8")


def unmarked(at: Path, model: Path) -> None:
    AutoTokenizer.from_pretrained(model.parent / "seed").save_pretrained(copied(model, at))


def headless(at: Path, model: Path) -> None:
    tensors = load_file(copied(model, at) / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(kept, at / "model.safetensors", {"format": "pt"})


def not_finite(at: Path, model: Path) -> None:
    tensors = load_file(copied(model, at) / "model.safetensors")
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] * float("nan")}, at / "model.safetensors", {"format": "pt"})


# (command, flag and value, how the bad thing is made, what the message says); {bad} is the place of the bad thing.
BAD_INPUT: list[tuple[str, Making, tuple[str, ...]]] = [
    ("train --train-file {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("train --train-file {bad}", folder, ("{bad}: expected a KLUE-RE file, found a folder", "name the file")),
    ("train --train-file {bad}", content(b""), ("{bad}: the file is empty", "expected KLUE-RE rows")),
    ("train --train-file {bad}", content(b"[]"), ("{bad}: expected KLUE-RE rows, found none", "give a JSON array")),
    ("train --train-file {bad}", content(b"guid,label"), ("{bad}: not JSON", "found: line 1", "give KLUE's JSON")),
    ("train --train-file {bad}", content(b"[{}"), ("{bad}: expected a JSON array", "found text that is not JSON", "repair")),
    ("train --train-file {bad}", content(b"\xff"), ("{bad}: expected UTF-8", "found byte 0xff at 0", "convert")),
    ("train --train-file {bad}", content(b"[3]"), ("{bad}: 1 problem", "row 1: expected an object", "found 3", "Correct")),
    ("train --train-file {bad}", row("label", "x"), ("{bad}", "row 2 (guid g1), label: expected one of", 'found "x"', "Correct")),
    ("train --train-file {bad}", row("sentence", ""), ("row 2 (guid g1), sentence: expected text", 'found ""', "Correct")),
    ("train --train-file {bad}", row("sentence", "\ud800"), ("sentence: expected valid Unicode", "found a lone surrogate", "Correct")),
    ("train --train-file {bad}", row("subject_entity", []), ("subject_entity: expected an object with word", "found []", "Correct")),
    ("train --train-file {bad}", row("subject_entity.type", "CITY"), ("type: expected one of PER", 'found "CITY"', "Correct")),
    ("train --train-file {bad}", row("subject_entity.word", "가"), ("expected the word", "end inclusive", "found", "Correct")),
    ("train --train-file {bad}", row("object_entity.end_idx", 999), ("expected 0 <= start_idx", "-999", "Correct")),
    ("train --train-file {bad}", row("object_entity.end_idx", "2"), ("end_idx: expected a whole number", 'found "2"', "Correct")),
    ("train --train-file {bad}", marker, ("row 2 (guid g1), sentence: expected no entity marker", "found '</obj>'", "take it out")),
    ("train --eval-file {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("train --epochs 0", nothing, ("--epochs: expected at least 1, found 0; give",)),
    ("train --batch-size -1", nothing, ("--batch-size: expected at least 1, found -1; give",)),
    ("train --learning-rate nan", nothing, ("--learning-rate: expected a number above 0, found nan; give",)),
    ("train --seed -1", nothing, ("--seed: expected 0 to", "found -1; give")),
    ("train --max-length 7", nothing, ("--max-length: expected at least 8, found 7", "two marked entities")),
    ("train --hold-out 1.5", nothing, ("--hold-out: expected a share", "found 1.5; give one such as 0.1")),
    ("train --hold-out 0.0001", nothing, ("--hold-out 0.0001: expected", "found 0 of the training file's", "give another share")),
    ("train --warmup 1", nothing, ("--warmup: expected a share of the steps", "found 1.0; give one such as 0.1")),
    ("train --recipe {bad}", nothing, ("--recipe {bad}: no such file", "recipes/ has klue_re_paper.yaml")),
    ("train --recipe {bad}", content(b"- 3"), ("--recipe {bad}: expected `key: value` lines, found list", "see recipes/")),
    ("train --recipe {bad}", content(b"epochs: many\nlr: 3"), ("epochs: Input should be", "(found 'many')", "lr: unknown key", "mend")),
    ("train --output-dir {bad}", model_without("D"), ("--output-dir {bad}: expected a new or empty", "found other files", "give another")),
    ("train --output-dir {bad}", content(b""), ("--output-dir {bad}: expected a new or empty folder", "found other files", "give another")),
    ("train --output-dir {bad}/x", content(b""), ("--output-dir {bad}/x: cannot be written", "give another")),
    ("train --output-dir {bad}", model_with("settings.json", b"{}"), ("expected a run of the same settings, found others", "give another")),
    ("train --output-dir {bad}", model_with("settings.json", b"[1]"), ("{bad}/settings.json: expected", "found something else", "give")),
    ("train --model {bad}", nothing, ("--model {bad}: no such folder", "give a Hugging Face model folder")),
    ("train --model {bad}", content(b""), ("--model {bad}: expected a model folder", "found a file", "give the folder")),
    ("train --model {bad}", model_without("config.json"), ("expected a model folder with config.json, found none", "give")),
    ("train --model {bad}", model_with("config.json", b"{"), ("--model {bad}: expected a model folder", "found none that loads", "give")),
    ("train --model {bad}", configured(model_type="none"), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("train --model {bad}", model_without("tokenizer*"), ("expected a tokenizer beside the model", "found none", "save the tokenizer")),
    ("train --model {bad}", model_with("tokenizer.json", b"{"), ("--model {bad}: expected a tokenizer that", "found: ", "save it anew")),
    (
        "train --model {bad}",
        unpadded,
        ("--model {bad}: expected a tokenizer with a padding or an end token", "found neither", "set pad_token"),
    ),
    ("train --model {bad}", model_with("model.safetensors", b"short"), ("expected a model", "safetensors, found: ", "save it anew")),
    ("train --model {bad}", model_without("model.safetensors"), ("--model {bad}: expected a model", "found: ", "save it anew")),
    ("eval --data {bad}", nothing, ("{bad}: no such file", "expected KLUE-RE rows")),
    ("eval --data {bad}", row("label", None), ("{bad}: 1 problem", "label: expected text, found null", "Correct")),
    ("eval --report {bad}", folder, ("--report {bad}: expected a file to write, found a folder", "name a file")),
    ("eval --predictions {bad}", folder, ("--predictions {bad}: expected a file to write, found a folder", "name a file")),
    (
        "eval --predictions {bad}",
        lambda at, model: at.symlink_to(model.parent / "dev.jsonl"),
        ("--predictions {bad}: expected a file of its own", "found that of --data", "name another"),
    ),
    ("eval --report {bad}/R", content(b""), ("{bad}/R: cannot be written", "name another place")),
    ("eval --model {bad}", nothing, ("--model {bad}: no such folder", "give a Hugging Face model folder")),
    (
        "eval --model {bad}",
        configured(id2label=dict.fromkeys("01", "x")),
        ("--model {bad}: expected a head with", "found 2 labels", "fine-tune"),
    ),
    ("eval --model {bad}", configured(id2label={n: f"R{n}" for n in range(30)}), ("found 30 labels, among them R0", "fine-tune")),
    ("eval --model {bad}", unmarked, ("markers of the format 'untyped', found none of <subj>", "give a model")),
    ("eval --model {bad}", configured(klue_re=7), ("config.json, klue_re: expected input_format", "found 7", "fine-tune it anew")),
    (
        "eval --model {bad}",
        configured(klue_re={"input_format": "untyped", "max_length": 20, "head": "entities"}),
        ("{bad}: expected entity_head.safetensors beside the model", "found: ", "copy it there, or fine-tune anew"),
    ),
    ("eval --model {bad}", configured(hidden_size="x"), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("eval --model {bad}", configured(id2label=[1]), ("--model {bad}: expected a model", "found none that loads", "give another")),
    ("eval --model {bad}", not_finite, ("41 of 41 rows have no finite probabilities", "damaged", "give a lower rate")),
    ("eval --model {bad}", headless, ("--model {bad}: expected a fine-tuned classifier, found none of the weights cla", "fine-tune")),
]


@pytest.mark.parametrize("number", range(len(BAD_INPUT)))
def test_bad_input_is_told_in_one_message(number, work, trained, tmp_path, monkeypatch, capsys):
    given_badly, make, words = BAD_INPUT[number]
    command, flag, value = given_badly.split()
    bad = tmp_path / "bad"
    make(bad, work / "seed" if command == "train" else trained)
    before = sorted(tmp_path.rglob("*"))
    given: dict[str, object] = {"--model": trained, "--data": work / "dev.jsonl", "--report": tmp_path / "R.json"}
    if command == "train":
        given = {"--model": work / "seed", "--train-file": work / "train.json", "--output-dir": tmp_path / "D", "--epochs": 1}
    given[flag] = value.replace("{bad}", str(bad))
    monkeypatch.setattr(sys, "argv", ["klue_re.py", command, *(str(part) for pair in given.items() for part in pair)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("error: ") == 1 and "Traceback" not in error, error
    assert all(word.replace("{bad}", str(bad)) in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind, so that the corrected command may use the folder


def test_a_run_that_another_process_holds_is_left_to_it(work, tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.lock.WAIT_SECONDS", 0.3)
    output = tmp_path / "D"
    output.mkdir()
    hold = "import sys; from data_tools import lock; from pathlib import Path; lock.hold(Path(sys.argv[1])); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, output], stdin=-1, stdout=-1, cwd=REPOSITORY) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(UserError, match=f"process {other.pid} .* is at work there"):
            train(settings(work, output))
        (output / "lock").write_text("process 1 on another-host\n")  # NFS 3 keeps the lock of a host that died
        monkeypatch.setattr("data_tools.lock.FAR_SECONDS", 0.4)
        monkeypatch.setattr("data_tools.lock.WAIT_SECONDS", 99.0)
        with pytest.raises(UserError, match=rf"process 1 on another-host is at work there.*if that host is down, remove {output}/lock"):
            train(settings(work, output))
        assert [entry.name for entry in output.iterdir()] == ["lock"]
        other.kill()
    train(settings(work, output, epochs=1))
    assert (output / "report.json").is_file()


def test_blanks_are_filled_and_mistakes_told(work, tmp_path, monkeypatch, capsys):
    seed = work / "seed"
    broken = copied(seed, tmp_path / "bad")
    (broken / "tokenizer.json").write_text("{")

    def fill(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fill_mask.py", *map(str, arguments)])
        try:
            runpy.run_path(str(REPOSITORY / "trainer" / "fill_mask.py"), run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    assert fill("--model", seed, "--top", 1000, "[MASK] 태어났다") == 0
    assert capsys.readouterr().out.count("%") == len(AutoTokenizer.from_pretrained(seed))
    text, tokenizer, model = (
        "[MASK] 가람 [MASK] 태어났다",
        AutoTokenizer.from_pretrained(seed),
        BertForMaskedLM.from_pretrained(seed).eval(),
    )
    assert fill("--model", seed, "--top", 1, text) == 0
    given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    best = model(**given).logits[0].argmax(-1)[given["input_ids"][0] == tokenizer.mask_token_id]
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == tokenizer.convert_ids_to_tokens(best.tolist()) and len(said) == 2
    tuned = tmp_path / "tuned"
    save_classifier(new_classifier(str(seed), "untyped", 64, 0)[0], tuned)  # no masked language model any more
    for words, arguments in (
        ("expected a masked language model", ("--model", tuned, "[MASK] 태어났다")),
        ("--top -1", ("--model", seed, "--top", -1, "[MASK]")),
        ("--model", ("--model", broken, "[MASK]")),
        ("expected [MASK]", ("--model", seed, "태어났다")),
        ("at most 20 tokens", ("--model", seed, "[MASK] " * 30)),
        ("expected UTF-8", ("--model", seed, "[MASK] \udcff")),
    ):
        assert fill(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and "Traceback" not in error, error


def test_diverging_loss_is_told(work, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "_update", lambda *_: (torch.tensor(float("nan")), torch.tensor(1.0)))
    with pytest.raises(RunError, match=r"--learning-rate 0\.01: loss or weights are no longer finite at step 12; .*another --output-dir"):
        train(settings(work, tmp_path / "D"))
    assert not (tmp_path / "D" / "checkpoints").exists()

    def last_update(classifier, *_):  # its loss is of the weights before it
        torch.nn.init.constant_(next(classifier.model.parameters()), float("inf"))
        return torch.tensor(1.0), torch.tensor(1.0)

    monkeypatch.setattr(finetune, "_update", last_update)
    with pytest.raises(RunError, match=r"weights are no longer finite at step 3"):
        train(settings(work, tmp_path / "E", eval_file=None, epochs=1, batch_size=32))
    assert not (tmp_path / "E" / "config.json").exists()


def test_full_disk_and_no_rows_are_told(work, tmp_path, monkeypatch):
    rows = invented_rows(2, 0)
    rows[1] |= {key: rows[0][key] for key in ("sentence", "subject_entity", "object_entity")}
    for row, label in zip(rows, ("per:place_of_birth", "per:place_of_death"), strict=True):
        row["label"] = label
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"--conflicts drop: .*every row contradicts another"):
        train(settings(work, tmp_path / "D", train_file=tmp_path / "train.json", conflicts="drop"))
    assert not (tmp_path / "D").exists()

    def full(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", full)
    with pytest.raises(RunError, match=r"D.model\.partial could not be written .*make room"):
        train(settings(work, tmp_path / "D", epochs=1))
    monkeypatch.setattr(finetune.checkpoints, "write_alone", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"a checkpoint of .*E could not be written \(No space left on device\)"):
        train(settings(work, tmp_path / "E", epochs=1))


def test_comparison_makes_a_table_and_goes_on(work, tmp_path):
    recipe = {"train_file": work / "train.json", "eval_file": work / "dev.jsonl", "epochs": 1, "batch_size": 32, "learning_rate": 1e-2}
    models_ = named_models([f"a={work / 'seed'}", f"b={work / 'seed'}"])
    recipe["train_file"] = tmp_path / "train.json"
    rows = invented_rows(96, 0)
    rows[7] |= {"guid": "again", "label": "per:place_of_death"} | {
        key: rows[3][key] for key in ("sentence", "subject_entity", "object_entity")
    }
    recipe["train_file"].write_text(json.dumps(rows), encoding="utf-8")
    (copied(work / "seed", tmp_path / "broken") / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="broken"):  # before the first is trained
        compare({"a": str(work / "seed"), "b": str(tmp_path / "broken")}, [0], tmp_path / "B", recipe)
    assert not (tmp_path / "B").exists()
    written = compare(models_, [0, 1], tmp_path / "C", recipe, both_conflicts=True)
    table = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))
    assert list(table["models"]) == ["a", "a without conflicts", "b", "b without conflicts"]
    runs = {name: [(run["seed"], run["micro_f1"], run["auprc"]) for run in model["runs"]] for name, model in table["models"].items()}
    assert runs["a"] == runs["b"] != runs["a without conflicts"] and [run[0] for run in runs["a"]] == [0, 1]
    for folder, number in (("seed-0", 96), ("without-conflicts/seed-0", 94)):
        report = json.loads((tmp_path / "C" / "a" / folder / "report.json").read_text(encoding="utf-8"))
        assert (report["training_rows"]["number"], report["training_rows"]["conflicting"]) == (number, 2)
    values = [run[2] for run in runs["a"]]
    assert f"{np.mean(values):.2f} ± {abs(values[0] - values[1]) / 2**0.5:.2f}" in written
    by_pair = {(d["first"], d["second"]): d for d in table["differences"]}
    assert len(by_pair) == 6 and [by_pair["a", "b"][key] for key in ("micro_f1", "low", "high")] == [0, 0, 0]
    said = {name: np.mean([run[1] for run in found]) for name, found in runs.items()}
    found = by_pair["a", "a without conflicts"]
    assert (
        found["micro_f1"] == pytest.approx(said["a"] - said["a without conflicts"]) and found["low"] <= found["micro_f1"] <= found["high"]
    )
    latex = (tmp_path / "C" / "table.tex").read_text(encoding="utf-8")
    assert f"${found['micro_f1']:+.2f}$" in latex and "\\_" not in latex.replace("dev.jsonl", "") and latex.count("\\begin{table}") == 2
    assert (tmp_path / "C" / "table.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "C" / "table.json").unlink()
    shutil.rmtree(tmp_path / "C" / "b")
    compare(models_, [0, 1], tmp_path / "C", recipe, both_conflicts=True)
    again = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))
    assert again["models"]["a"] == table["models"]["a"] and again["differences"] == table["differences"]
    # the same path with other labels: finished models are scored anew, not trained
    weights = tmp_path / "C" / "a" / "seed-0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    other = read_rows(work / "dev.jsonl")
    for row in other:
        row["label"] = "no_relation"
    recipe["eval_file"] = tmp_path / "dev.jsonl"
    recipe["eval_file"].write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    anew = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))["models"]["a"]["runs"][0]
    assert anew["micro_f1"] == 0 and weights.stat().st_mtime_ns == before
    said = [row["prediction"] for row in read_rows(tmp_path / "C" / "a" / "seed-0" / "predictions.jsonl")]
    assert anew["accuracy"] == pytest.approx(100 * said.count("no_relation") / len(other))
    assert anew["training_seconds"] == table["models"]["a"]["runs"][0]["training_seconds"]
    # a report of this file beside the predictions of another
    evaluate(str(tmp_path / "C" / "a" / "seed-0"), work / "dev.jsonl", tmp_path / "C" / "a" / "seed-0" / "report.json")
    recipe["eval_file"] = work / "dev.jsonl"
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    scored = [row["label"] for row in read_rows(tmp_path / "C" / "a" / "seed-0" / "predictions.jsonl")]
    assert scored == [row["label"] for row in read_rows(work / "dev.jsonl")]
    recipe["eval_file"] = tmp_path / "dev.jsonl"
    for folder in ("a/seed-0", "b/seed-0"):  # as an earlier version left them: no digest, and the seconds in the report only
        run_folder = tmp_path / "C" / folder
        for name, drop in (("report.json", "data_sha256"), ("config.json", "training_seconds")):
            content = json.loads((run_folder / name).read_text(encoding="utf-8"))
            (content["klue_re"] if name == "config.json" else content).pop(drop)
            (run_folder / name).write_text(json.dumps(content), encoding="utf-8")
    compare(models_, [0], tmp_path / "C", recipe, both_conflicts=True)
    assert not list((tmp_path / "C").rglob("lock"))
    again = json.loads((tmp_path / "C" / "table.json").read_text(encoding="utf-8"))["models"]["a"]["runs"][0]
    assert again["training_seconds"] == pytest.approx(anew["training_seconds"])
    for given, words in ((["x"], "expected NAME="), (["x=y", "x=z"], "twice"), (["../x=y"], "expected NAME=")):
        with pytest.raises(UserError, match=words):
            named_models(given)


def test_recipes_say_what_the_sources_say_and_flags_come_first(work, tmp_path):
    paper, official = (load_recipe(REPOSITORY / "recipes" / f"klue_re_{name}.yaml") for name in ("paper", "official"))
    assert [paper[key] for key in ("batch_size", "learning_rate", "epochs", "head")] == [32, 1e-5, 15, "cls"]
    assert [official[key] for key in ("batch_size", "learning_rate", "epochs", "warmup")] == [32, 5e-5, 3, 0.1]
    (tmp_path / "r.yaml").write_text("epochs: 7\nlearning_rate: 1e-2\nwarmup: 0.5\n", encoding="utf-8")
    result = run("train", "--model", work / "seed", "--train-file", work / "train.json", "--output-dir", tmp_path / "D", "--recipe",
                 tmp_path / "r.yaml", "--epochs", 1)  # fmt: skip
    assert result.returncode == 0, result.stderr
    used = json.loads((tmp_path / "D" / "settings.json").read_text(encoding="utf-8"))
    assert [used[key] for key in ("epochs", "learning_rate", "warmup", "batch_size")] == [1, 0.01, 0.5, 32]


def test_tensorboard_shows_the_evaluation(work, trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"evaluation/confusion", "evaluation/calibration", "evaluation/f1_per_relation"} <= set(tags["images"])
    assert {"precision_recall/per:place_of_birth", "precision_recall/no_relation", "evaluation/confident_mistakes/text_summary"} <= set(
        tags["tensors"]
    )
    report = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert [event.value for event in events.Scalars("eval/micro_f1")][-1] == pytest.approx(report["micro_f1"], rel=1e-5)
    again = shutil.copytree(trained, tmp_path / "D")  # finished, and asked for another file's scores
    (tmp_path / "other.json").write_text(json.dumps(invented_rows(30, 9)), encoding="utf-8")
    train(settings(work, again, eval_file=tmp_path / "other.json"))
    later = EventAccumulator(str(again / "tensorboard"), size_guidance={"images": 0})
    later.Reload()
    assert [len(board.Images("evaluation/confusion")) for board in (events, later)] == [1, 2]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "trainer/klue_re.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def test_train_command(work, tmp_path):
    result = run("train", "--model", work / "seed", "--train-file", work / "train.json", "--output-dir", tmp_path / "D", "--epochs", 2,
                 "--batch-size", 8, "--learning-rate", 1e-2)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "newly initialised: bert.pooler.dense, classifier" in result.stdout
    assert "step 24/24" in result.stdout and result.stderr == ""  # not a terminal: lines, and no bars
    assert load_classifier(str(tmp_path / "D")).input_format == "untyped"


def test_eval_command(work, trained, tmp_path, monkeypatch, capsys):
    arguments = ["eval", "--model", trained, "--data", work / "dev.jsonl", "--report", tmp_path / "R.json"]
    monkeypatch.setattr(sys, "argv", ["klue_re.py", *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    report = json.loads((tmp_path / "R.json").read_text(encoding="utf-8"))
    assert f"micro-F1 {report['micro_f1']:.2f}" in capsys.readouterr().out and report["num_examples"] == 41


def test_a_file_name_that_is_not_utf8(work, trained, tmp_path, monkeypatch, capsys):
    data = tmp_path / os.fsdecode(b"dev\xff.jsonl")
    shutil.copy(work / "dev.jsonl", data)
    monkeypatch.setattr(
        sys, "argv", ["klue_re.py", *map(str, ("eval", "--model", trained, "--data", data, "--report", tmp_path / "R.json"))]
    )
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert "dev\\udcff.jsonl" in capsys.readouterr().out
    assert json.loads((tmp_path / "R.json").read_text(encoding="utf-8"))["data"] == str(data)


def test_predict_asks_for_the_types_that_the_model_reads(work, tmp_path, monkeypatch, capsys):
    save_classifier(new_classifier(str(work / "seed"), "typed", 64, 0)[0], tmp_path)
    sentence = [
        "klue_re.py",
        "predict",
        "--model",
        str(tmp_path),
        "--sentence",
        "가람 라온 태어났다",
        "--subject",
        "가람",
        "--object",
        "라온",
    ]
    monkeypatch.setattr(sys, "argv", sentence)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: --types: the model reads the entities' types")
    monkeypatch.setattr(sys, "argv", [*sentence, "--types", "PER", "LOC"])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("(가람, ")
    rows = [{**row, "label": None, "guid": None} for row in invented_rows(2, 0)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*sentence[:4], "--data", str(tmp_path / "rows.json")])
    runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert capsys.readouterr().out.count("\t") == 2
    monkeypatch.setattr(sys, "argv", [*sentence, "--data", str(tmp_path / "rows.json")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "trainer" / "klue_re.py"), run_name="__main__")
    assert "found both" in capsys.readouterr().err


def test_command_with_bad_rows(work, tmp_path):
    rows = invented_rows(3, 0)
    rows[1]["label"] = "per:birthplace"
    rows[2]["object_entity"]["end_idx"] += 1
    (tmp_path / "bad.json").write_text(json.dumps(rows), encoding="utf-8")
    result = run("train", "--model", work / "seed", "--train-file", tmp_path / "bad.json", "--output-dir", tmp_path / "D")
    assert result.returncode == 2 and "Traceback" not in result.stderr and not (tmp_path / "D").exists()
    assert result.stderr.startswith("error: ") and "2 problems" in result.stderr and "row 2 (guid g1), label" in result.stderr
