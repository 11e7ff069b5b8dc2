"""Fine-tuning end to end on a tiny BERT made here: learning, interruption, what an epoch and an update are, what goes wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForSequenceClassification

from data_tools.errors import RunError, UserError
from tests.klue.invented import REPOSITORY, copied, invented_rows, settings
from trainer import finetune
from trainer.classifier import load_classifier, new_classifier, padded_batch, predict_probabilities
from trainer.evaluation import evaluate
from trainer.finetune import epoch_batches, split_hold_out, train
from trainer.markers import EncodedRelations
from trainer.metrics_log import read_rows
from trainer.relations import LABELS, read_relations
from trainer.schedule import linear_with_warmup
from trainer.scores import score_relations
from trainer.settings import check_output


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
    update = finetune._update
    monkeypatch.setattr(finetune, "_update", interrupted_at(14))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D", epochs=2))
    assert "eval_micro_f1" in read_rows(tmp_path / "D" / "metrics.jsonl")[-1]
    (tmp_path / "other.json").write_text(json.dumps(invented_rows(30, 9)), encoding="utf-8")
    monkeypatch.setattr(finetune, "_update", interrupted_at(1))
    with pytest.raises(KeyboardInterrupt):  # a start without an evaluation file does not make it forgotten whose scores they are
        train(settings(work, tmp_path / "D", epochs=2, eval_file=None))
    monkeypatch.setattr(finetune, "_update", update)
    capsys.readouterr()
    train(settings(work, tmp_path / "D", epochs=2, eval_file=tmp_path / "other.json"))
    rows = read_rows(tmp_path / "D" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_micro_f1" in row] == [24] and {12, 24} <= {row["step"] for row in rows}
    assert "begun with another --eval-file" in capsys.readouterr().out


def test_where_no_checkpoint_is_good_nothing_begins_anew(work, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "_update", interrupted_at(14))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D", epochs=2))
    for path in (tmp_path / "D" / "checkpoints").glob("*/state.json"):
        path.unlink()
    before = sorted((tmp_path / "D").rglob("*")), (tmp_path / "D" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="to train anew"):
        train(settings(work, tmp_path / "D", epochs=2))
    assert (sorted((tmp_path / "D").rglob("*")), (tmp_path / "D" / "metrics.jsonl").read_bytes()) == before


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
    begun = work / "begun"
    begun.mkdir()
    for name in ("lock", "settings.json.partial"):  # killed at its very start
        (begun / name).touch()
    check_output(settings(work, begun))


def test_a_run_does_not_go_on_with_another_vocabulary(work, tmp_path, monkeypatch):
    seed = copied(work / "seed", tmp_path / "seed")
    (seed / "vocab.txt").write_text("가\n", encoding="utf-8")
    monkeypatch.setattr(finetune, "_update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings(work, tmp_path / "D", model=str(seed)))
    (seed / "vocab.txt").write_text("나\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"others \(model: contents"):
        train(settings(work, tmp_path / "D", model=str(seed)))


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
    assert [step["lr"] for step in seen] == [linear_with_warmup(1e-2, step, 6, 24) for step in range(24)]
    assert len({step["lr"] for step in seen}) > 12 and all(step["dropping"] and step["moved"] and step["rows"] == 8 for step in seen)
    # KLUE's own fine-tuning: no weight decay, eps 1e-8
    assert {(step["weight_decay"], step["betas"], step["eps"]) for step in seen} == {(0.0, (0.9, 0.999), 1e-8)}


def test_a_seed_is_its_own_head(work):
    heads = [new_classifier(str(work / "seed"), "untyped", 64, seed)[0].model.classifier.weight for seed in (0, 0, 1)]
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])


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


def test_a_run_of_other_settings_is_told_which(work, trained, tmp_path):
    old = copied(trained, tmp_path / "D")
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
    for another in (second, other):
        assert not all(np.array_equal(a, b) for a, b in zip(first, another, strict=True))
    sizes = np.array(lengths)
    padded = sum(sizes[batch].max() * len(batch) for batch in first)
    assert padded < 1.05 * sizes.sum() < 0.7 * 1000 * 200


def test_learning_rate_by_hand():
    rates = [linear_with_warmup(1.0, step, 2, 20) for step in range(20)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and rates[-1] == pytest.approx(1 / 18) and max(rates) == rates[2]
    assert [linear_with_warmup(1.0, step, 0, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


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
