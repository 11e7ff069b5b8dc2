"""For a lab with one GPU or more: `make test-gpu`, about 20 minutes. NOT YET RUN ON A GPU BY US; everywhere else it is skipped, loudly.

bf16 and fp16, NCCL, overlap_comm; the stage changes against the reference of test_engine; resume bit for bit; export; the loss on a GPU
against the same run's on CPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.distributed import run_on_ranks
from tests.klue.conftest import work  # noqa: F401
from tests.klue.invented import settings
from tests.test_engine import CASES, TWO_STAGES, Case, reference, run_cases, start_run, write_ds_config
from tests.test_xpt import ROOT
from tests.tiny import final_weights, make_corpus, make_seed, write_recipe
from trainer.finetune import train
from trainer.metrics_log import read_rows

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="NO GPU HERE: nothing of bf16, fp16, NCCL or overlap_comm was tested")]
WORLD_SIZES = [size for size in (1, 2, 4, 8) if size <= GPUS]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_stages_equal_plain_adamw(tmp_path: Path, world_size: int) -> None:
    """In fp32, against plain PyTorch on the CPU; the processors add in another order, so to 1e-4."""
    cases = CASES[world_size] if world_size in CASES else [Case("bert", 1, TWO_STAGES)]
    for number, case in enumerate(cases):
        start_run(tmp_path / str(number), case.kind, case.stages, 8)
        write_ds_config(tmp_path, case.micro, "fp32")
    run_on_ranks(run_cases, world_size, tmp_path, tmp_path, cases, 8, backend="nccl")
    for number, case in enumerate(cases):
        expected, found = reference(case.kind, case.stages, 8, case.moments), final_weights(tmp_path / str(number))
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-4, (case, name)


def test_fine_tuning_learns(work: Path, tmp_path: Path) -> None:  # noqa: F811
    train(settings(work, tmp_path / "D"))
    assert json.loads((tmp_path / "D" / "report.json").read_text())["micro_f1"] > 95


def launch(root: Path, precision: str, gpus: int, micro_batch: int, run: Path) -> subprocess.Popen[str]:
    settings = json.loads((ROOT / "ds_configs" / f"zero2_{precision}.json").read_text())
    assert settings["zero_optimization"]["overlap_comm"]
    settings["train_micro_batch_size_per_gpu"] = micro_batch
    (root / f"{precision}.json").write_text(json.dumps(settings))
    (root / "hosts").write_text(f"localhost slots={gpus}\n")
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(root / "hosts"), "--no_ssh_check"]
    words = [*launcher, "--master_addr", "127.0.0.1", "trainer/xpt.py", "--recipe", f"{root}/recipe.yaml", "--ds-config",
             f"{root}/{precision}.json", "--output-dir", str(run)]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = open(f"{run}.log", "a")  # noqa: SIM115
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)


# Of the recipe's 32 blocks a step: in one micro-batch, DeepSpeed's reduction overlaps with the backward pass; in more, it is ours.
@pytest.mark.parametrize(("gpus", "micro_batch"), [(size, 32 // size // parts) for size in WORLD_SIZES for parts in (1, 2)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_launched_run(tmp_path: Path, precision: str, gpus: int, micro_batch: int) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("THIS GPU HAS NO bf16")
    make_seed(tmp_path / "seed", "roberta", positions=512)
    make_corpus(tmp_path / "corpus")
    write_recipe(tmp_path / "recipe.yaml", tmp_path)
    recipe = tmp_path / "recipe.yaml"  # blocks of several tiles of fused attention, which could add them in any order
    recipe.write_text(recipe.read_text().replace("sequence_length: 16", "sequence_length: 512"))
    runs = [tmp_path / "whole", tmp_path / "interrupted"]
    assert launch(tmp_path, precision, gpus, micro_batch, runs[0]).wait(600) == 0, (tmp_path / "whole.log").read_text()
    process = launch(tmp_path, precision, gpus, micro_batch, runs[1])
    while process.poll() is None and not ((metrics := runs[1] / "metrics.jsonl").exists() and len(read_rows(metrics)) > 40):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(120)
    assert launch(tmp_path, precision, gpus, micro_batch, runs[1]).wait(600) == 0, (tmp_path / "interrupted.log").read_text()
    weights, losses = [], []
    for run in runs:
        weights.append(final_weights(run, 80))
        losses.append([row["loss"] for row in read_rows(run / "metrics.jsonl")[1:]])
    assert losses[0] == losses[1] and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    on_cpu = [sys.executable, "trainer/xpt.py", "--recipe", f"{tmp_path}/recipe.yaml", "--ds-config", "ds_configs/zero2_cpu_fp32.json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    subprocess.run([*on_cpu, "--output-dir", f"{tmp_path}/cpu"], cwd=ROOT, env=environment, check=True)
    reference_losses = [row["loss"] for row in read_rows(tmp_path / "cpu" / "metrics.jsonl")[1:]]
    assert losses[0][-10:] == pytest.approx(reference_losses[-10:], rel=0.05)
    model, tokenizer = (kind.from_pretrained(runs[0] / "model") for kind in (AutoModelForMaskedLM, AutoTokenizer))
    assert torch.isfinite(model(**tokenizer("w1 <mask> w3", return_tensors="pt", return_token_type_ids=False)).logits).all()
