"""What the doctor makes of what hosts say; tests/cluster has it ask real ones."""

import re
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig

from trainer import doctor
from trainer.doctor import Findings, judge_hosts, judge_recipe, judge_room, write_environment
from trainer.ds_config import DeepSpeedConfig
from trainer.launcher import read_hostfile
from trainer.plan import Plan
from trainer.recipe import load_recipe

ROOT = Path(__file__).parent.parent
GPU_CONFIGS = ("zero2_bf16.json", "zero2_fp16.json")
GOOD = {
    "python": "3.11", "torch": "2", "deepspeed": "0", "transformers": "5", "numpy": "2", "code": "abc", "seed_problem": None,
    "run_problem": None, "corpus_problem": None, "corpus": "fed", "gpus": ["A"] * 8, "gpu_devices": ["/dev/nvidia0"],
    "gpu_memory": [40 << 30] * 8, "without_bf16": [], "flash-attn": "missing", "cores": 64, "memory": 500 << 30,
    "port_free": True, "writable": True, "skew": 0.5, "address": "10.0.0.1", "interface": "eth0", "keepalive": True, "disk": 1 << 40,
    "checkpoints": 0, "infiniband": False,
}  # fmt: skip
PAPER = RobertaConfig(vocab_size=32000, num_hidden_layers=14, max_position_embeddings=514, type_vocab_size=1)


def findings_on(**changed: object) -> list[str]:
    found = Findings()
    judge_hosts({"one": GOOD, "two": {**GOOD, **changed}}, {"one": 8, "two": 8}, found)
    return found.failures


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"torch": "3"}, "two: torch 3, 2 on one"),
        ({"flash-attn": "2.7"}, "two: flash-attn 2.7, missing on one"),
        ({"code": "xyz"}, "two: code xyz, abc on one"),
        ({"corpus": "bad"}, "two: corpus bad, fed on one"),
        ({"seed_problem": "no seed"}, "two: no seed"),
        ({"run_problem": "another run"}, "two: another run"),
        ({"gpus": []}, "two: GPUs that torch does not see"),
        ({"gpus": [], "gpu_devices": []}, "two: GPUs [], one has"),
        ({"gpus": ["A"] * 7}, "two: 8 slots for 7 GPUs"),
        ({"port_free": False}, "two: the port for rank 0 is taken"),
        ({"writable": False}, "two: the run folder cannot be written"),
        ({"skew": -61.0}, "two: its clock is -61 s off"),
        ({"address": "127.0.1.1"}, "two: its name leads to 127.0.1.1"),
    ],
)
def test_what_is_wrong_with_a_host_is_said(changed: dict[str, object], said: str) -> None:
    assert findings_on() == []
    assert len(found := findings_on(**changed)) == 1 and found[0].startswith(said), found


@pytest.mark.parametrize("recipe", ["paper", "host", "lab"])
@pytest.mark.parametrize("config", GPU_CONFIGS)
def test_the_recipes_for_gpus_start_on_one_host_of_eight_and_on_the_lab(recipe: str, config: str) -> None:
    """README's commands: 8 GPUs, hostfiles/lab, and the Slurm example's two nodes of eight."""
    settings, batch = DeepSpeedConfig.load(ROOT / "ds_configs" / config), load_recipe(ROOT / f"recipes/{recipe}.yaml", []).global_batch_size
    lab = sum(read_hostfile(ROOT / "hostfiles" / "lab").values())
    script = (ROOT / "hostfiles" / "slurm.sbatch").read_text()
    nodes, gpus = (int(re.findall(rf"#SBATCH --{name}=(\d+)", script)[0]) for name in ("nodes", "gpus-per-node"))
    assert [settings.accumulation(batch, world_size) for world_size in (8, lab, nodes * gpus)] == [2, 1, 1]


def test_the_plan_is_what_one_computes_by_hand() -> None:
    """The paper's model on 8 GPUs: 124.8M parameters of 2 bytes, 12 for master and moments of an eighth, 4 for the gradient's sum."""
    plan = Plan.of_config(load_recipe(ROOT / "recipes" / "paper.yaml", []), PAPER)
    number = 14 * (12 * 768**2 + 13 * 768) + (32000 + 514 + 1 + 2) * 768 + 768**2 + 3 * 768 + 32000
    assert plan.num_parameters == number
    assert plan.checkpoint_bytes() == (3 + 2 + 1) * 12 * number
    assert plan.activation_bytes(16) == 16 * 512 * (34 * 768 * 14 + 10 * 0.15 * 32000)
    settings = DeepSpeedConfig.load(ROOT / "ds_configs" / "zero2_bf16.json")
    peak = 40_000 * 256 * 512 * plan.flops_per_token(1) / 0.4 / 3600  # stage two takes an hour at 40 % of it
    text = plan.describe(
        num_blocks=1_000_000, world_size=8, device=torch.device("cuda"), dtype=settings.dtype, accumulation=2, micro_batch=16,
        whole_gradient=True, peak=peak,
    )  # fmt: skip
    assert f"{(2 + 4 + 12 / 8) * number / 2**20:,.0f} MiB     1h00m" in text and "checkpoints up to 9.0 GB" in text and "3,231 MiB" in text

    for changed, wanted in (
        ({}, 0),
        ({"gpu_memory": [40 << 30] * 7 + [800 << 20]}, 1),
        ({"gpu_memory": [40 << 30] * 8 + [0]}, 0),  # not one of ours
        ({"disk": 8 << 30}, 1),
        ({"disk": 4 << 30, "checkpoints": 5 << 30}, 0),
    ):
        found = Findings()
        judge_room(plan, settings, 2, {"one": {**GOOD, **changed}}, {"one": 8}, found)
        assert len(found.failures) == wanted, (changed, found.failures)
    state = (2 + 4 + 2 / 8 + 12 / 8) * number  # eight ranks of a host without GPUs share its memory
    for memory, wanted in ((8.1 * state, 0), (7.9 * state, 1)):
        found = Findings()
        judge_room(plan, settings, 2, {"one": {**GOOD, "gpus": [], "gpu_memory": [], "memory": memory}}, {"one": 8}, found)
        assert len(found.failures) == wanted, found.failures


def test_bf16_by_emulation_is_refused_as_the_run_would() -> None:
    recipe, found = load_recipe(ROOT / "recipes" / "paper.yaml", []), [Findings(), Findings()]
    hosts = {"one": {**GOOD, "corpus": None, "without_bf16": ["T4"]}}
    for config, findings in zip(GPU_CONFIGS, found, strict=True):
        judge_recipe(recipe, DeepSpeedConfig.load(ROOT / "ds_configs" / config), hosts, {"one": 8}, None, findings)
    assert found[1].failures == [] and len(found[0].failures) == 1 and "one: bf16 only by emulation on ['T4']; take" in found[0].failures[0]


def test_nccl_is_left_to_infiniband_and_to_what_was_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENVIRONMENT", tmp_path / ".deepspeed_env")
    hosts, slots = {"one": GOOD, "two": {**GOOD, "infiniband": True}}, {"one": 8, "two": 8}
    assert "NCCL_SOCKET_IFNAME" not in doctor.environment(hosts, slots)
    hosts["two"] = GOOD
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    write_environment(doctor.environment(hosts, slots))
    assert "NCCL_SOCKET_IFNAME==eth0\n" in (tmp_path / ".deepspeed_env").read_text()
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    write_environment(doctor.environment(hosts, slots))
    assert "NCCL_SOCKET_IFNAME=eth1\n" in (tmp_path / ".deepspeed_env").read_text()


def test_what_an_earlier_call_wrote_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENVIRONMENT", tmp_path / ".deepspeed_env")
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nDS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=eth7\n")
    write_environment({"OMP_NUM_THREADS": "2"})
    assert (tmp_path / ".deepspeed_env").read_text() == "NCCL_DEBUG=INFO\nOMP_NUM_THREADS=2\n"
