"""A ds_config file: how the work is spread. Everything that changes the result is the recipe's."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config
from deepspeed.runtime.zero.config import get_zero_config
from pydantic import ValidationError

from data_tools.errors import UserError

OWNED_BY_RECIPE = {
    "train_batch_size": "global_batch_size",
    "gradient_accumulation_steps": "global_batch_size (accumulation is derived)",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "stages",
    "tensorboard": "the trainer, which writes TensorBoard itself",
    "csv_monitor": "the trainer, which writes metrics.jsonl",
}
KNOWN = (
    "train_micro_batch_size_per_gpu", "zero_optimization", "bf16", "fp16", "data_types", "compile", "communication_data_type",
    "zero_allow_untested_optimizer",
)  # fmt: skip
"""Keys of a ds_config that may be on. What DeepSpeed does not know, misspelt ones among them, it would pass over in silence; of the rest
nothing is tried (wall_clock_breakdown stops timers that were never started)."""
NOT_KEPT = {
    "zero_optimization.round_robin_gradients": "lays parameters out in an order that is not kept here",
    "zero_optimization.parameter_alignment": "lays parameters out in an order that is not kept here",
    "zero_optimization.offload_optimizer": "keeps the optimizer's state in another place than a stage change reads it from",
    "zero_optimization.cpu_offload": "keeps the optimizer's state in another place than a stage change reads it from",
    "zero_optimization.offload_param": "belongs to ZeRO-3",
    "bf16.bf16_master_weights_and_grads": "keeps no fp32 values to write into a checkpoint",
    "bf16.bf16_optimizer_states": "keeps no fp32 values to write into a checkpoint",
    "fp16.fp16_master_weights_and_grads": "keeps no fp32 values to write into a checkpoint",
    "zero_optimization.legacy_stage1": "is for DeepSpeed before 0.4",
    "zero_optimization.zenflow": "updates a part of the weights at other times",
}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A ds_config file: micro-batch, precision, ZeRO and buckets."""

    settings: dict[str, Any]
    micro_batch: int
    dtype: torch.dtype
    compiles: bool = False
    """`"compile": true`, ours: torch.compile of the encoder, on GPUs only."""

    @classmethod
    def load(cls, path: Path) -> "DeepSpeedConfig":
        """Read and check. Raises UserError for unreadable files, settings that the recipe owns, keys that are not used here or that
        DeepSpeed does not know, values that it would refuse later, and features under which a stage change would not be exact."""
        settings = _read(path)
        try:
            _check_keys(settings)
            _check_sections(settings)
            dtype = _precision(settings)
        except UserError as error:
            raise UserError(f"ds_config {path}: {error}") from None
        return cls(settings, settings["train_micro_batch_size_per_gpu"], dtype, settings.pop("compile", False))

    def sums_gradients(self, device: torch.device, accumulation: int) -> bool:
        """Whether trainer/gradients.py sums the gradients. On a GPU with a single micro-batch DeepSpeed reduces once as well, while the
        backward pass goes on (overlap_comm; not run on a GPU); but not in fp16, where it would divide by the scale that has just grown
        (stage_1_and_2.py: `step` updates the scale before it unscales)."""
        return device.type == "cpu" or accumulation > 1 or self.dtype == torch.float16

    def accumulation(self, global_batch: int, world_size: int) -> int:
        """Micro-batches per optimizer step and rank. Raises UserError when the global batch does not divide."""
        together = self.micro_batch * world_size
        if global_batch % together:
            raise UserError(
                f"global_batch_size {global_batch} does not divide into {world_size} ranks x micro-batches of {self.micro_batch} "
                f"(train_micro_batch_size_per_gpu): {global_batch} / {together} is not whole; change one of the three"
            )
        return global_batch // together


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"ds_config {path}: no such file; ds_configs/ has some") from None
    except (ValueError, OSError) as error:
        raise UserError(f"ds_config {path}: expected JSON, found: {error}; repair the file") from None
    if not isinstance(settings, dict):
        raise UserError(f"ds_config {path}: expected an object, found {type(settings).__name__}; ds_configs/ has examples")
    return settings


def _check_keys(settings: dict[str, Any]) -> None:
    """Only what is used here may be on, and with values of the right kind."""
    for key, value in settings.items():
        if key in OWNED_BY_RECIPE:
            raise UserError(f"{key} belongs to the recipe ({OWNED_BY_RECIPE[key]}); remove it from the ds_config")
        if key not in KNOWN and not _is_off(value):
            near = difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.7)
            raise UserError(f"{key} is not used here" + (f"; {near[0]} is" if near else "; remove it"))
    for key in ("zero_optimization", "bf16", "fp16", "data_types"):
        if not isinstance(settings.get(key, {}), dict):
            raise UserError(f'{key} must be an object such as {{"enabled": true}}, found {settings[key]!r}')
    for name, reason in NOT_KEPT.items():
        section, _, key = name.partition(".")
        if not _is_off(settings.get(section, {}).get(key)):
            raise UserError(f"{name} {reason}; remove it")
    stage = settings.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2):
        raise UserError(f"zero_optimization.stage must be 1 or 2, found {stage}")
    micro_batch = settings.get("train_micro_batch_size_per_gpu")
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
        raise UserError(f"train_micro_batch_size_per_gpu must be a positive number, found {micro_batch!r}")
    if not isinstance(settings.get("compile", False), bool):
        raise UserError(f"compile must be true or false, found {settings['compile']!r}")
    for name in ("bf16", "fp16"):
        if not isinstance(enabled := settings.get(name, {}).get("enabled", False), bool):
            raise UserError(f"{name}.enabled must be true or false, found {enabled!r}")


def _check_sections(settings: dict[str, Any]) -> None:
    """What DeepSpeed would refuse when a stage begins, and what would make it add gradients otherwise than here or train on bad ones."""
    readers = {"zero_optimization": get_zero_config, "bf16": get_bfloat16_config, "fp16": get_float16_config}
    for section, read in readers.items():
        try:
            read(settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (section, *first["loc"])))
            raise UserError(f"{place}: {first['msg']}, found {first['input']!r}") from None
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"{section}: {error}") from None
    kinds = {
        "data_types.grad_accum_dtype": settings.get("data_types", {}).get("grad_accum_dtype"),
        "communication_data_type": settings.get("communication_data_type"),
    }
    for name, kind in kinds.items():
        if kind not in (None, "fp32"):
            raise UserError(f"{name} is {kind!r}, but gradients are added and sent in fp32 here; remove it")
    for name in ("reduce_bucket_size", "allgather_bucket_size"):
        size = settings["zero_optimization"].get(name, 1)
        if isinstance(size, str):  # "auto", which DeepSpeed's model of the section lets pass
            raise UserError(f"zero_optimization.{name} must be a number of elements, found {size!r}")
    for section, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if not settings.get(section, {}).get(key, True):
            raise UserError(f"{section}.{key} is off, so a gradient that is not finite would train; remove it")


def _precision(settings: dict[str, Any]) -> torch.dtype:
    half = [name for name in ("bf16", "fp16") if settings.get(name, {}).get("enabled")]
    if len(half) > 1:
        raise UserError("bf16 and fp16 are both enabled; choose one")
    if half == ["bf16"] and settings["zero_optimization"]["stage"] == 1:
        raise UserError("DeepSpeed has another optimizer for bf16 under ZeRO-1; zero_optimization.stage must be 2")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[half[0]] if half else torch.float32


def _is_off(value: Any) -> bool:
    """Whether a setting says that something is not to be: false, null, {}, {"enabled": false}, {"device": "none"}."""
    if isinstance(value, dict):
        return not value or value.get("enabled") is False or value.get("device", "") in ("none", None)
    return value is None or value is False


def fitting_buckets(zero: dict[str, Any], trainable: list[int]) -> dict[str, Any]:
    """`zero_optimization` with buckets no larger than what trains: DeepSpeed allocates them whole, by default 5e8 elements each. With
    overlap_comm one takes every parameter: a gradient that does not fit bypasses the bucket, and by reading (not run on a GPU) its memory
    may be used anew while the reduction still reads it. trainable: elements of each trainable parameter."""
    total, largest = (count + count % 2 for count in (sum(trainable), max(trainable)))  # it refuses odd ones
    least = largest if zero.get("overlap_comm") else 0
    names = ("reduce_bucket_size", "allgather_bucket_size")
    return {**zero, **{name: max(least, min(int(zero.get(name, 5e8)) // 2 * 2, total)) for name in names}}
