"""The launched script itself: `deepspeed ... trainer/xpt.py` on two CPU ranks."""

import fcntl
import json
import math
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
import yaml
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_tools.corpus import Corpus
from data_tools.errors import RunError, UserError
from tests.tiny import exact_rows, final_weights, make_corpus, make_seed, write_recipe
from trainer.blocks import PACKINGS, SpecialIds
from trainer.checkpoint import Checkpoint, checkpoint_paths, newest, write_alone
from trainer.doctor import Findings, judge_hosts, judge_recipe
from trainer.ds_config import DeepSpeedConfig
from trainer.export import load_model, model_card
from trainer.host import facts
from trainer.metrics_log import read_rows
from trainer.recipe import load_recipe

ROOT = Path(__file__).parent.parent


def command(root: Path, *arguments: str, ranks: int = 2) -> list[str]:
    flags = ["--recipe", f"{root}/recipe.yaml", "--ds-config", str(ROOT / "ds_configs" / "zero2_cpu.json"), *arguments]
    if ranks == 1:
        return [sys.executable, "trainer/xpt.py", *flags]
    port = 20000 + os.getpid() % 20000
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", "hostfiles/localhost", "--no_ssh_check"]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(port), "trainer/xpt.py", *flags]


def launch(root: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, *arguments, ranks=ranks), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": path}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with seed, corpus, recipe and one uninterrupted run."""
    root = tmp_path_factory.mktemp("xpt")
    make_seed(root / "seed", "roberta")
    make_corpus(root / "corpus")
    write_recipe(root / "recipe.yaml", root)
    done = launch(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_the_run_folder_is_what_the_contract_says(finished: Path) -> None:
    rows = read_rows(finished / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(81))
    needed = {"step", "stage", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu"}
    assert all(needed <= set(row) for row in rows)
    assert [row["step"] for row in rows if "valid_loss" in row] == [0, 20, 30, 40, 60, 80]
    assert rows[30]["stage"] == "one" and rows[31]["stage"] == "two" and rows[80]["tokens"] == 80 * 32 * 16
    assert rows[80]["valid_loss"] < 3.9 < math.log(60) < rows[0]["valid_loss"]  # it learns more than to be even-handed
    assert [path.name for path in checkpoint_paths(finished / "run")] == [f"step-{n}" for n in (80, 72, 64, 30, 0)]
    assert list((finished / "run" / "tensorboard").glob("events*"))
    resolved = yaml.safe_load((finished / "run" / "recipe.yaml").read_text())
    assert resolved["seed"] == 0 and resolved["masking"]["rate"] == 0.15 and resolved["output_dir"] == str(finished / "run")
    for path in (finished / "run" / "checkpoints").rglob("*"):
        assert path.is_dir() or path.suffix in (".safetensors", ".json")


def test_tensorboard_shows_what_the_metrics_say(finished: Path) -> None:
    board = EventAccumulator(str(finished / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = read_rows(finished / "run" / "metrics.jsonl")
    tags = {
        "loss/train": "loss", "loss/valid": "valid_loss", "loss/valid_perplexity": "valid_perplexity", "optimizer/learning_rate": "lr",
        "optimizer/gradient_norm": "grad_norm", "speed/tokens_per_second": "tokens_per_second", "speed/mfu": "mfu",
    }  # fmt: skip
    assert sorted(board.Tags()["scalars"]) == sorted(tags)
    for tag, key in tags.items():
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        assert shown == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows if row.get(key) is not None], tag


def test_any_checkpoint_can_be_exported(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "run" / "checkpoints" / "step-30"
    words = ["--checkpoint", checkpoint, "--corpus", tmp_path / "corpus", "--output-dir", tmp_path / "model"]
    shutil.copytree(finished / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "tokenizer").chmod(0o555)  # read-only, as its files may be
    for status in (0, 2):  # what is there is not written over
        done = subprocess.run([sys.executable, "-m", "trainer.export", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert len(set(modes.values())) == 1 and (tmp_path / "model").stat().st_mode & 0o200, modes  # others may read the weights, too
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").state_dict()
    for name, value, _ in (opened := Checkpoint.open(checkpoint)).entries(opened.parameters):
        assert torch.equal(exported[name], value), name


def test_the_export_is_the_trained_model(finished: Path) -> None:
    folder = finished / "run" / "model"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("w1 w2 <mask> w3", return_tensors="pt")["input_ids"]
    trained = load_model(Checkpoint.open(finished / "run" / "checkpoints" / "step-80"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trained(ids).logits)
        model(tokenizer("w1 " * 999, truncation=True, return_tensors="pt")["input_ids"])  # has positions for all that the tokenizer leaves
    assert model.config.num_hidden_layers == 5 and model.config.hidden_dropout_prob == 0.1
    # not by our own means: the folder's model over the validation blocks has the loss that the run wrote down, in bf16 then
    recipe = load_recipe(finished / "recipe.yaml", [])
    split = Corpus.open(finished / "corpus").split("valid")
    blocks = PACKINGS[recipe.packing](split, recipe.sequence_length, SpecialIds.of(tokenizer), recipe.masking, recipe.seed)
    scored = min(recipe.validation_blocks, blocks.num_blocks)
    assert scored < blocks.num_blocks
    batch = blocks.validation(np.arange(scored) * blocks.num_blocks // scored)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits.reshape(-1, len(tokenizer))[batch.selected]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert loss == pytest.approx(read_rows(finished / "run" / "metrics.jsonl")[-1]["valid_loss"], rel=2e-3)
    card = (folder / "README.md").read_text()
    corpus = Corpus.open(finished / "corpus")
    for part in (
        "valid_perplexity",
        corpus.fingerprint,
        "embeddings, itl, head",
        "\nseed 0.",
        "## Licences",
        f"base_model: {finished}/seed",
        f"| valid_loss | {read_rows(finished / 'run' / 'metrics.jsonl')[-1]['valid_loss']:.4f} |",
    ):
        assert part in card, part
    card = model_card(Checkpoint.open(finished / "run" / "checkpoints" / "step-80"), corpus, {"valid_perplexity": None})
    assert "| valid_perplexity | not finite |" in card  # of a run that diverged
    control = Checkpoint.open(finished / "run" / "checkpoints" / "step-80")
    control.state["recipe"]["surgery"]["seed_weights"] = "random"
    card = model_card(control, corpus, {})
    assert "of random weights in place of" in card and "base_model" not in card and "terms of the seed model" not in card


def test_the_doctor_of_this_machine_alone_needs_no_ssh(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    words = ["--hostfile", str(ROOT / "hostfiles" / "localhost"), "--recipe", str(finished / "recipe.yaml")]
    words += ["--ds-config", str(ROOT / "ds_configs" / "zero2_cpu.json"), "--master-port", str(20000 + os.getpid() % 20000)]
    place = {**environment(), "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "trainer.doctor", *words], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0 and "--no_ssh_check --master_addr 127.0.0.1 trainer/xpt.py" in done.stdout, done.stdout + done.stderr
    assert "DS_ACCELERATOR=cpu" in (tmp_path / ".deepspeed_env").read_text()
    words += ["--set", "seed=1"]  # the folder holds seed 0's run
    done = subprocess.run([sys.executable, "-m", "trainer.doctor", *words], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED  localhost: " in done.stdout and "seed: 0 there, 1 now" in done.stdout, done.stdout


def test_the_doctor_asks_for_the_weights_that_a_run_begins_from(finished: Path, tmp_path: Path) -> None:
    """With --init-from the seed's configuration is enough."""
    before = load_recipe(finished / "recipe.yaml", [])
    shutil.copytree(before.seed_model, tmp_path / "seed", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = load_recipe(finished / "recipe.yaml", [f"output_dir={tmp_path / 'run'}", f"seed_model={tmp_path / 'seed'}"])
    weights, config = finished / "run" / "checkpoints" / "step-80", DeepSpeedConfig.load(ROOT / "ds_configs" / "zero2_cpu.json")
    for init_from, itl, problems in ((None, "both", 1), (weights, "both", 0), (weights, "input", 1)):
        changed, findings = recipe.model_copy(update={"surgery": recipe.surgery.model_copy(update={"itl": itl})}), Findings()
        asked = {"master": "127.0.0.1", "port": 0, "recipe": changed.as_dict(), "init_from": init_from and str(init_from)}
        hosts = {"localhost": {**facts(asked), "skew": 0.0, "keepalive": True}}
        judge_hosts(hosts, {"localhost": 1}, findings)
        judge_recipe(changed, config, hosts, {"localhost": 1}, init_from, findings)
        assert len(findings.failures) == problems, findings.failures


def test_killed_and_started_again_it_is_the_same_run_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", open(tmp_path / "log", "w")  # noqa: SIM115
    for kill_at, signal_sent in ((13, signal.SIGKILL), (45, signal.SIGTERM)):  # in each stage, off a checkpoint
        process = subprocess.Popen(
            command(finished, "--output-dir", str(run)), cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.time() + 120
        while len(read_rows(run / "metrics.jsonl")) < kill_at and process.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        if signal_sent == signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL)
            subprocess.run(["pkill", "-9", "-f", str(run)], check=False)  # the ranks stand in sessions of their own
        else:
            process.send_signal(signal_sent)
        process.wait(60)
        assert kill_at <= len(read_rows(run / "metrics.jsonl")) < 80, (tmp_path / "log").read_text()
    done = launch(finished, "--output-dir", str(run), "--resume", "must")  # waits for the ranks that are still saving
    told = (tmp_path / "log").read_text()
    saved = re.search(r"asked to stop: step (\d+) is saved", told)
    assert saved and int(saved[1]) >= 44 and "Traceback" not in told, told
    assert done.returncode == 0 and f"checkpoints/step-{saved[1]}\n" in done.stdout, done.stdout + done.stderr
    assert exact_rows(run) == exact_rows(finished / "run")
    first, second = final_weights(finished / "run", 80), final_weights(run, 80)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_lost_terminal_saves_and_ends_with_a_status(finished: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    words = command(finished, "--output-dir", str(tmp_path / "run"), ranks=1)
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_the_terminal)
    os.close(theirs)
    deadline = time.time() + 120
    while len(read_rows(tmp_path / "run" / "metrics.jsonl")) < 13 and process.poll() is None and time.time() < deadline:
        if select.select([ours], [], [], 0.02)[0]:
            os.read(ours, 1 << 16)  # a terminal that nobody reads stops who writes
    os.close(ours)
    assert process.wait(60) == 143  # and 130 for Ctrl-C: a shell's statuses of signals
    checkpoint, problems = newest(tmp_path / "run")
    assert checkpoint and not problems and 12 <= checkpoint.state["step"] == read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"] < 80


def test_a_run_that_has_begun_needs_its_seed_no_more(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run", ignore=shutil.ignore_patterns("step-80", "model"))
    (finished / "seed").rename(finished / "elsewhere")
    try:
        done = launch(finished, "--output-dir", str(tmp_path / "run"), "--resume", "must", ranks=1)
        assert done.returncode == 0 and "going on from" in done.stdout and (tmp_path / "run" / "model" / "config.json").is_file(), (
            done.stderr
        )
        done = launch(finished, "--output-dir", str(tmp_path / "new"), ranks=1)
        assert done.returncode == 2 and "seed_model" in done.stderr, done.stderr
    finally:
        (finished / "elsewhere").rename(finished / "seed")


def test_the_curve_does_not_depend_on_the_ranks(finished: Path, tmp_path: Path) -> None:
    """fp32, with dropout, which is that of each micro-batch: 1, 2 and 4 ranks; then 4 ranks go on from a checkpoint of one."""
    curves: dict[str, dict[int, dict[str, float]]] = {}
    hosts = tmp_path / "hosts"
    for name, ranks in (("one", 1), ("two", 2), ("four", 4), ("one, then four", 4)):
        settings = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2, "reduce_bucket_size": 100000}}
        (tmp_path / "ds.json").write_text(json.dumps(settings))
        hosts.write_text(f"localhost slots={ranks}\n")
        run = tmp_path / name.replace(" ", "-")
        if name == "one, then four":
            shutil.copytree(
                tmp_path / "one", run, ignore=lambda folder, names: {n for n in names if n.startswith("step-") and n > "step-30"}
            )
            assert [path.name for path in checkpoint_paths(run)] == ["step-30", "step-0"]
        words = command(finished, "--output-dir", str(run), "--ds-config", str(tmp_path / "ds.json"), ranks=ranks)
        words = [str(hosts) if word == "hostfiles/localhost" else word for word in words]
        done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        curves[name] = {row["step"]: row for row in read_rows(run / "metrics.jsonl")}
    for name, curve in curves.items():
        assert set(curve) == set(range(81))
        for step, row in curve.items():
            for key in row.keys() & ({"loss", "valid_loss"} if step else {"valid_loss"}):
                assert row[key] == pytest.approx(curves["one"][step][key], rel=1e-4), (name, step, key)
            assert row.get("tokens") == curves["one"][step].get("tokens")
    assert any(curves["one, then four"][step]["tokens_per_second"] != curves["one"][step]["tokens_per_second"] for step in range(31, 81))


def test_speed_is_tokens_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import xpt

    clock = iter([100.0, 102.0, 110.0, 111.0])
    monkeypatch.setattr(xpt, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    speed = xpt.Speed(SimpleNamespace(plan=SimpleNamespace(flops_per_token=lambda stage: 5.0), peak=1000.0, tokens_per_step=64), 0)
    for sent in (10, 20, 60):
        speed.count(sent)
    assert speed.figures() == {"tokens_per_second": 96.0, "mfu": 0.48, "bytes_sent_per_step": 30.0}
    speed.restart()
    speed.count(7)
    assert speed.figures() == {"tokens_per_second": 64.0, "mfu": 0.32, "bytes_sent_per_step": 7.0}


def test_a_full_disk_is_survived_or_ends_the_run_by_setting(finished: Path, tmp_path: Path) -> None:
    size = (finished / "run" / "checkpoints" / "step-0" / "weights-seed.safetensors").stat().st_size
    arguments = ("--output-dir", str(tmp_path / "run"), "--set", "on_save_failure=warn")

    def limit() -> None:  # stage two's moments, twice the weights, do not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * size), int(1.5 * size)))

    done = subprocess.run(
        command(finished, *arguments, ranks=1), cwd=ROOT, env=environment(), capture_output=True, text=True, preexec_fn=limit, timeout=200
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("WARNING") == 6 and "step-72 could not be written" in done.stdout, done.stdout
    assert (
        done.stderr.count("error:") == 1
        and "step-80 could not be written (rank 0 on " in done.stderr
        and "step-30 is the last" in done.stderr
    )
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-0", "step-16", "step-24", "step-30"]
    done = launch(finished, *arguments, "--set", "on_save_failure=stop", "keep_every=16", ranks=1)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in checkpoint_paths(tmp_path / "run")] == [f"step-{n}" for n in (80, 72, 64, 56, 48, 32, 30, 16, 0)]


def test_weights_that_compute_otherwise_than_they_did_are_not_trained_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-80")
    last = tmp_path / "run" / "checkpoints" / "step-72"
    state, files = (json.loads((last / name).read_text()) for name in ("state.json", "complete.json"))
    records = state["parameters"]
    # Of the head: what a layer of so small a model computes hardly shows in its loss.
    head = [name for name in records if "head" in name or name.startswith("cls")]
    first, second = (next(name for name in head if name.lower().endswith(f"norm.{kind}")) for kind in ("weight", "bias"))
    assert records[first]["file"] == records[second]["file"]
    path = last / f"weights-{records[first]['file']}.safetensors"
    weights = load_file(path)
    weights[first], weights[second] = weights[second], weights[first]  # one written under the other's name, with a checksum that is right
    save_file(weights, path)
    files[path.name] = {"size": path.stat().st_size, "xxh3": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    (last / "complete.json").write_text(json.dumps(files))
    done = launch(finished, "--output-dir", str(tmp_path / "run"), ranks=1)
    assert done.returncode == 1 and done.stderr.count("error:") == 1 and "step-72: the loss of its weights" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("dtype", "saved_on", "factor", "selected", "refused"),
    [
        ("float32", "cpu", 1 + 1e-4, 300, True),
        ("float32", "cpu", 1 + 1e-6, 300, False),
        ("bfloat16", "cpu", 1 + 1e-3, 300, False),
        ("bfloat16", "cpu", 1 + 5e-3, 300, True),
        ("bfloat16", "cpu", 1 + 5e-3, 30, False),  # of few tokens one that differs weighs more
        ("bfloat16", "cuda", 1 + 5e-3, 300, False),
        ("bfloat16", "cuda", 0.98, 300, True),
        ("bfloat16", "cpu", math.nan, 300, True),
    ],
)
def test_how_near_the_loss_of_loaded_weights_must_be(
    monkeypatch: pytest.MonkeyPatch, dtype: str, saved_on: str, factor: float, selected: int, refused: bool
) -> None:
    from trainer import xpt

    def forward_check(run: Any, loss: Any, device: torch.device) -> dict[str, Any]:
        return {"loss_sum": 300.0 * factor, "dtype": str(run.config.dtype), "num_selected": selected} if math.isfinite(factor) else {}

    monkeypatch.setattr(xpt, "forward_check", forward_check)
    run = SimpleNamespace(config=SimpleNamespace(dtype=getattr(torch, dtype)))
    ranks, engine = SimpleNamespace(sum=lambda value: [value]), SimpleNamespace(evaluate=None, device=torch.device("cpu"))
    record = {"loss_sum": 300.0, "dtype": f"torch.{dtype}", "device": saved_on}
    with pytest.raises(RunError, match="a parameter went astray") if refused else nullcontext():
        xpt.check_forward(run, ranks, engine, SimpleNamespace(path="step-3", state={"forward": record}))  # type: ignore[arg-type]


def test_other_corpora_tokenizers_and_layers_are_refused(finished: Path) -> None:
    from trainer.run_folder import refuse_other_model, refuse_other_run

    recipe, checkpoint = load_recipe(finished / "recipe.yaml", []), Checkpoint.open(finished / "run" / "checkpoints" / "step-80")
    corpus = {"fingerprint": checkpoint.state["corpus_fingerprint"], "tokenizer_sha256": checkpoint.state["tokenizer_sha256"]}

    def run(itl: str = "both", **changes: str) -> Any:
        surgery = recipe.surgery.model_copy(update={"itl": itl})
        return recipe.model_copy(update={"surgery": surgery}), SimpleNamespace(**corpus | changes)

    shapes = checkpoint.shapes
    refuse_other_run(*run(), checkpoint)
    refuse_other_model(*run(), shapes, checkpoint)
    with pytest.raises(UserError, match=r"(?s)run of another recipe or corpus.*corpus: fingerprint \w+ there, 0123 now"):
        refuse_other_run(*run(fingerprint="0123"), checkpoint)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        refuse_other_model(*run(tokenizer_sha256="0"), shapes, checkpoint)
    with pytest.raises(UserError, match=r"surgery\.itl is both there, input now"):
        refuse_other_model(*run(itl="input"), shapes, checkpoint)


def test_of_a_finished_run_checkpoints_are_enough(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    done = launch(finished, "--output-dir", str(tmp_path / "run"), ranks=1)
    assert done.returncode == 0, done.stderr
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.num_hidden_layers == 5
    assert "valid_loss" not in (tmp_path / "run" / "model" / "README.md").read_text()


def test_gradients_that_stay_infinite_end_the_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "seed", tmp_path / "seed")
    weights = load_file(tmp_path / "seed" / "model.safetensors")
    next(value for name, value in weights.items() if "layer.1" in name and value.ndim == 2)[0, 0] = math.inf
    save_file(weights, tmp_path / "seed" / "model.safetensors", {"format": "pt"})
    arguments = ("--seed-model", str(tmp_path / "seed"), "--output-dir", str(tmp_path / "run"), "--set", "max_skipped=3")
    done = launch(finished, *arguments, ranks=1)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "step 1 of stage one, samples 64 to 95: 3 steps in a row had a gradient that was not finite" in done.stderr
    assert done.stdout.count("skipped (") == 3
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0] and rows[0]["valid_loss"] is None


def test_a_new_run_from_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    source = finished / "run" / "checkpoints" / "step-30"
    done = launch(finished, "--output-dir", str(tmp_path / "run"), "--init-from", str(source), "--set", "stages.0.steps=5", ranks=1)
    assert done.returncode == 0, done.stderr
    first = Checkpoint.open(tmp_path / "run" / "checkpoints" / "step-0")
    old = Checkpoint.open(source)
    assert not first.adam_steps and old.adam_steps
    for (name, value, _), (_, expected, _) in zip(first.entries(first.shapes), old.entries(first.shapes), strict=True):
        assert torch.equal(value, expected), name
    losses = {row["step"]: row["valid_loss"] for row in read_rows(finished / "run" / "metrics.jsonl") if "valid_loss" in row}
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[0]["valid_loss"] == pytest.approx(losses[30], rel=1e-3)
    card = tmp_path / "run" / "model" / "README.md"
    assert "It began from the weights of `run/checkpoints/step-30`" in card.read_text()
    card.write_text("edited")
    done = launch(finished, "--output-dir", str(tmp_path / "run"), "--init-from", str(source), "--set", "stages.0.steps=5", ranks=1)
    assert done.returncode == 0 and card.read_text() == "edited", done.stderr  # a finished run has nothing to do
    done = launch(finished, "--output-dir", str(tmp_path / "new"), "--init-from", str(source), "--set", "surgery.itl=input", ranks=1)
    assert done.returncode == 2 and "tensors differ" in done.stderr and not (tmp_path / "new").exists()
    other = finished / "run" / "checkpoints" / "step-0"  # the run that stands there began from another's weights
    done = launch(finished, "--output-dir", str(tmp_path / "run"), "--init-from", str(other), "--set", "stages.0.steps=5", ranks=1)
    assert done.returncode == 2 and "holds a run that began from" in done.stderr and str(source) in done.stderr, done.stderr
    write_alone(tmp_path / "fine-tuning", 1, "0", {"weight": torch.ones(3)}, {}, {"step": 1, "best": None})
    done = launch(finished, "--output-dir", str(tmp_path / "new"), "--init-from", str(tmp_path / "fine-tuning/checkpoints/step-1"), ranks=1)
    assert done.returncode == 2 and "expected one of a post-training run" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_untied_export_keeps_its_output_layer(finished: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", finished, "{dropout: 0.1, tie_output: false}")
    done = launch(tmp_path, "--output-dir", f"{tmp_path}/run", "--set", "stages.0.steps=3", "stages.0.warmup_steps=1",
                  "stages.1.steps=3", "stages.1.warmup_steps=1", ranks=1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").eval()
    trained = load_model(Checkpoint.open(tmp_path / "run" / "checkpoints" / "step-6"))
    ids = torch.tensor([[0, 9, 4, 10, 2]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trained(ids).logits)
    assert model.get_output_embeddings().bias.abs().max() > 0


def test_mistakes_end_with_one_message_and_status_2(finished: Path, tmp_path: Path) -> None:
    done = launch(finished, "--set", "seed=1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("error:") == 1 and "run of another recipe" in done.stderr and "seed: 0 there, 1 now" in done.stderr
    assert "Traceback" not in done.stderr
    odd = {"train_micro_batch_size_per_gpu": 8, "bf16": True, "zero_optimization": {"stage": 2}}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    new_run = ("--output-dir", str(tmp_path / "new"))
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--corpus", str(tmp_path / "none")), "expected a corpus folder"),
        (("--set", 'stages.1.train=["encoder[7:9]"]'), "of which this model has nothing"),
        (("--set", "global_batch_size=24"), "does not divide"),
        (("--set", "expect_world_size=2"), "expect_world_size is 2, but 1 rank"),
        (("--resume", "must"), "holds no checkpoint"),
        (("--resum", "x"), "invalid choice: 'x'"),
        (("--nothing",), "unrecognized arguments: --nothing"),
        (("--ds-config", "ds_configs"), "ds_config ds_configs: expected JSON"),
        (("--ds-config", str(tmp_path / "odd.json")), "bf16 must be an object"),
        (("--recipe", "README.md/x"), "recipe README.md/x: expected YAML"),
        (("--output-dir", "README.md/run"), f"--output-dir README.md/run: expected a folder, found a file, {ROOT}/README.md"),
        (("--output-dir", f"{finished}/run", "--set", "seed=1", "--dry-run"), "run of another recipe"),
        (("--set", "surgery.embedding_init=dictionary", "surgery.lexicon=README.md/x"), "lexicon README.md/x: cannot be read"),
        (("--dry-run", "--set", "surgery.embedding_init=dictionary", "surgery.lexicon=none"), "lexicon none: no such file"),
    ]
    for arguments, message in cases:
        done = launch(finished, *new_run, *arguments, ranks=1)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (arguments, done.stderr)
        assert not (tmp_path / "new").exists()
    done = launch(finished, "--nothing")
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "unrecognized arguments" in done.stderr, done.stderr
    done = launch(finished, "--resume", "never", ranks=1)
    assert done.returncode == 2 and "holds a run already" in done.stderr


def test_results_without_checkpoints_are_not_written_over(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"}
    done = launch(finished, "--output-dir", str(tmp_path / "run"), "--resume", "never", ranks=1)
    assert done.returncode == 2 and "holds model, but no checkpoint to go on from" in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in before} == before and not (tmp_path / "run" / "checkpoints").exists()


def test_of_two_that_begin_in_one_folder_the_second_is_told(finished: Path, tmp_path: Path) -> None:
    from trainer import run_folder

    recipe, corpus = load_recipe(finished / "recipe.yaml", [], output_dir=str(tmp_path / "run")), Corpus.open(finished / "corpus")
    assert run_folder.find(recipe, corpus, "auto", None) == (None, [])
    shutil.copytree(finished / "run" / "checkpoints" / "step-0", tmp_path / "run" / "checkpoints" / "step-0")  # meanwhile
    with pytest.raises(UserError, match="another process has begun a run there meanwhile"):
        run_folder.claim(recipe)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_hostfile_that_is_not_there_is_no_smaller_run(finished: Path, tmp_path: Path) -> None:
    words = command(finished, "--output-dir", str(tmp_path / "run"))
    for hostfile in ("nowhere", str(tmp_path / "hosts")):
        (tmp_path / "hosts").write_text("# a lab\nlocalhost slots=1\n#other slots=8\n")
        given = [hostfile if word == "hostfiles/localhost" else word for word in words]
        if hostfile != "nowhere":
            given[1:1] = ["--num_gpus", "1"]  # fewer on purpose
        done = subprocess.run([*given, "--dry-run"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
        if hostfile == "nowhere":
            assert done.returncode == 2 and done.stderr.count("error: --hostfile nowhere: no such file") == 1, done.stderr
        else:
            assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_plan_is_printed_and_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    done = launch(finished, "--dry-run", "--output-dir", str(tmp_path / "new"), ranks=1)
    assert done.returncode == 0 and "40,960 tokens" in done.stdout and "state/rank" in done.stdout, done.stderr
    # what trains in each stage is what had Adam steps at its end, what is frozen the rest
    whole, found = Checkpoint.open(finished / "run" / "checkpoints" / "step-80"), []
    for step in (30, 80):
        trained = Checkpoint.open(finished / "run" / "checkpoints" / f"step-{step}").adam_steps
        sizes = {name: math.prod(shape) for name, shape in whole.shapes.items()}
        found.append([sum(sizes[name] for name in trained), sum(sizes[name] for name in sizes.keys() - trained.keys())])
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["one"], ["two"])]
    assert [[int(word.replace(",", "")) for word in row[1:4]] for row in rows] == [[*found[0], 30], [*found[1], 50]]
    recipe, corpus = load_recipe(finished / "recipe.yaml", []), Corpus.open(finished / "corpus")
    blocks = PACKINGS[recipe.packing](corpus.split("train"), 16, SpecialIds(0, 0, 0, 0, 0, 0), recipe.masking, 0).num_blocks
    assert f"{80 * 32 / blocks:.2f} epochs of {blocks:,} blocks" in done.stdout
    assert not (tmp_path / "new").exists()
