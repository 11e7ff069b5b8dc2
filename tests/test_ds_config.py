"""ds_configs: what is refused, with the reason."""

import json
from pathlib import Path

import pytest

from data_tools.errors import UserError
from trainer.ds_config import DeepSpeedConfig

ROOT = Path(__file__).parent.parent


def ds_config(folder: Path, **changes: object) -> Path:
    settings = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, **changes}
    (folder / "ds.json").write_text(json.dumps(settings))
    return folder / "ds.json"


def test_ds_configs(tmp_path: Path) -> None:
    for path in (ROOT / "ds_configs").glob("*.json"):
        DeepSpeedConfig.load(path)
    assert DeepSpeedConfig.load(ds_config(tmp_path)).accumulation(32, 2) == 4
    with pytest.raises(UserError, match="30 does not divide into 2 ranks x micro-batches of 4"):
        DeepSpeedConfig.load(ds_config(tmp_path)).accumulation(30, 2)
    off: dict[str, object] = {"wall_clock_breakdown": False, "flops_profiler": {"enabled": False}, "data_types": {"grad_accum_dtype": None}}
    DeepSpeedConfig.load(ds_config(tmp_path, **off, zero_optimization={"stage": 2, "offload_optimizer": {"device": "none"}}))
    for change, message in [
        ({"gradient_accumulation_steps": 2}, "belongs to the recipe"),
        ({"optimizer": {}}, "belongs to the recipe"),
        ({"zero_optimization": {"stage": 3}}, "stage must be 1 or 2, found 3"),
        ({"fp16": {"enabled": True}}, "choose one"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "positive number, found 'auto'"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients lays parameters out"),
        ({"zero_optimization": {"stage": 2, "parameter_alignment": True}}, "parameter_alignment lays parameters out"),
        ({"zero_optimization": 2}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_sizes": 9}}, "zero_optimization.reduce_bucket_sizes: Extra inputs"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}, "zero_optimization.reduce_bucket_size: .*found 'big'"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
            "reduce_bucket_size must be a number of elements, found 'auto'",
        ),
        ({"communication_data_type": "bf16"}, "communication_data_type is 'bf16', but gradients are added and sent in fp32 here; remove"),
        ({"compile": {"enabled": False}}, "compile must be true or false"),
        ({"compile": "false"}, "compile must be true or false, found 'false'"),
        ({"steps_per_print": 10}, "steps_per_print is not used here; remove it"),
        ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, "bf16_master_weights_and_grads keeps no fp32 values"),
        ({"wall_clock_breakdown": True}, "wall_clock_breakdown is not used here; remove it"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer keeps the optimizer's state"),
        ({"bf16": {"enable": True}}, "bf16.enable: Extra inputs"),
        ({"bf16": {"enabled": "false"}}, "bf16.enabled must be true or false, found 'false'"),
        ({"bf16": {}, "fp16": {"enabled": True, "loss_scale": "x"}}, "fp16.loss_scale: .*found 'x'"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype is 'bf16', but gradients are added"),
        ({"train_micro_batch_size_per_gpu": True}, "positive number, found True"),
        ({"bf61": {"enabled": True}}, "bf61 is not used here; bf16 is"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "zero_optimization.compute_grad_norm is off, so a gradient"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "bf16.check_grad_overflow is off, so a gradient"),
        ({"bf16": {}, "zero_optimization": {"stage": 1, "legacy_stage1": True}}, "legacy_stage1 is for DeepSpeed before"),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zenflow updates a part"),
    ]:
        with pytest.raises(UserError, match=message):
            DeepSpeedConfig.load(ds_config(tmp_path, **change))
    with pytest.raises(UserError, match="no such file"):
        DeepSpeedConfig.load(tmp_path / "none.json")
