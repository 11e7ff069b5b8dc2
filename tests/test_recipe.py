"""Recipes, stage tables, schedules and ds_configs: what is refused, and what comes out."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from data_tools.errors import UserError
from trainer.architecture import architecture_of
from trainer.ds_config import DeepSpeedConfig
from trainer.flops import Shape, flops_per_token, peak_flops
from trainer.plan import memory_per_rank
from trainer.recipe import Optimizer, Stage, load_recipe
from trainer.schedule import learning_rate
from trainer.stages import Parts, check_stages, parameter_groups, split_parts, trainable

ROOT = Path(__file__).parent.parent
PARTS = Parts(("e.weight",), ("i.weight",), (("l0.weight",), ("l1.weight",), ("l2.weight", "l2.bias")), ("h.weight", "h.bias"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_load(path: Path) -> None:
    if "stages" not in yaml.safe_load(path.read_text()):
        return  # a fine-tuning recipe
    recipe = load_recipe(path, [])
    assert load_recipe(path, ["stages.0.steps=7", "stages.0.warmup_steps=0"], output_dir="elsewhere").stages[0].steps == 7
    assert recipe.stage_at(0) == (0, 0) and recipe.stage_at(recipe.stages[0].steps) == (1, 0)
    assert recipe.stage_at(recipe.total_steps) == (len(recipe.stages), 0)


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load_recipe(ROOT / "recipes" / "paper.yaml", [])
    assert (recipe.global_batch_size, recipe.total_steps) == (256, 60_000)
    assert {stage.learning_rate for stage in recipe.stages} == {1e-4}
    assert recipe.surgery.embedding_init == recipe.surgery.itl_init == "random"
    assert recipe.stages[0].train == ("embeddings", "itl", "head") and recipe.stages[1].train == ("all",)


BAD = {
    "surgery.itls=both": "surgery.itls: unknown key",
    "surgery.itl=left": "surgery.itl:.*found 'left'",
    "stages.0.stepz=3": "stages.0.stepz: unknown key",
    "stages.0.steps=0": "stages.0.steps:.*greater than 0.*found 0",
    "stages.0.learning_rate=fast": "stages.0.learning_rate",
    "stages.0.warmup_steps=99999": "warmup_steps .99999. must not exceed steps",
    "stages.1.name=adapt": "different names",
    "stages.9.steps=1": "no entry stages.9.steps",
    "stages=[]": "stages:",
    "global_batch_size=many": "global_batch_size",
    "seed=-1": "seed:",
    "masking.rate=1.5": "masking.rate",
    "masking.mask_fraction=0.95": "must not exceed 1",
    "surgery.embedding_init=dictionary": "needs surgery.lexicon",
    "sequence_length": "expected key=value",
    "stages.0.train=[head: [2]": "not YAML",
    "stages.0.train=[head, encoder[0:2]": "not YAML",
    "stages.0.train=[encoder[0:2], [head]]": "not YAML",
    "stages=[{name: a, train: [encoder[0:2]], steps: 2}]": "not YAML.*quote parts",
}


@pytest.mark.parametrize("override", BAD, ids=str)
def test_bad_settings_are_named(override: str) -> None:
    with pytest.raises(UserError, match=BAD[override]):
        load_recipe(ROOT / "recipes" / "paper.yaml", [override])


def test_one_bad_stage_is_one_problem() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(ROOT / "recipes" / "minilm.yaml", ["stages.0.steps=1"])
    assert len(str(caught.value).splitlines()) == 2 and "warmup_steps" in str(caught.value)
    with pytest.raises(UserError, match=r"stages: .*at least 1 item"):
        load_recipe(ROOT / "recipes" / "minilm.yaml", ["stages=[]"])


@pytest.mark.parametrize("text", ['["encoder[0:2]", head]', "[encoder[0:2], head]", "['encoder[0:2]','head']"])  # pdsh takes quotes away
def test_parts_with_brackets_are_read_with_quotes_and_without(text: str) -> None:
    assert load_recipe(ROOT / "recipes" / "paper.yaml", [f"stages.0.train={text}"]).stages[0].train == ("encoder[0:2]", "head")


def test_what_a_run_may_change_and_go_on() -> None:
    recipe = load_recipe(ROOT / "recipes" / "paper.yaml", [])
    assert set(recipe.as_dict()) - {key.split(".")[0] for key in recipe.identity()} == {
        "output_dir", "corpus", "expect_world_size", "every", "keep_last", "keep_every", "on_save_failure", "max_skipped", "hang_seconds",
        "name",
    }  # fmt: skip


def test_a_file_is_the_same_however_its_path_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seed").mkdir()
    monkeypatch.chdir(tmp_path)
    paper = ROOT / "recipes" / "paper.yaml"

    def spelt(seed: str, lexicon: str) -> dict[str, object]:
        return load_recipe(paper, [f"seed_model={seed}", f"surgery.lexicon={lexicon}"]).identity()

    assert spelt("seed", "en_ko.tsv") == spelt(f"{tmp_path}/seed", "seed/../en_ko.tsv")
    assert spelt("seed", "en_ko.tsv") != spelt("seed", "other.tsv") and spelt("a/hub-id", "a")["seed_model"] == "a/hub-id"


def test_bad_recipe_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_recipe(tmp_path / "none.yaml", [])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="expected `key: value`"):
        load_recipe(tmp_path / "list.yaml", [])
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match="not a YAML file"):
        load_recipe(tmp_path / "broken.yaml", [])
    (tmp_path / "empty.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match=r"seed_model: missing(.|\n)*stages: missing"):
        load_recipe(tmp_path / "empty.yaml", [])


def stage(*train: str) -> Stage:
    return Stage(name="s", train=train, steps=100, learning_rate=1.0, warmup_steps=10)


def test_a_folder_of_no_name_is_not_the_folder_where_one_stands() -> None:
    with pytest.raises(UserError, match="output_dir is empty; name a folder"):
        load_recipe(ROOT / "recipes" / "paper.yaml", [], output_dir="")


def test_what_a_stage_trains() -> None:
    assert trainable(stage("embeddings", "itl"), PARTS) == {"e.weight", "i.weight"}
    assert trainable(stage("encoder[1:]", "head"), PARTS) == {"l1.weight", "l2.weight", "l2.bias", "h.weight", "h.bias"}
    assert trainable(stage("encoder[:-1]"), PARTS) == {"l0.weight", "l1.weight"}
    assert len(trainable(stage("all"), PARTS)) == 8
    for bad in ("decoder", "encoder[3:5]", "encoder[2:1]", "encoder[1]", "encoder[-:1]", "encoder[:-]"):
        with pytest.raises(UserError, match="stage 's': train names"):
            check_stages([stage(bad)], PARTS)
    with pytest.raises(UserError, match="of which this model has nothing"):
        check_stages([stage("itl")], Parts(("e.weight",), (), PARTS.layers, PARTS.head))


def test_parts_hold_every_parameter_once() -> None:
    names = [f"bert.encoder.layer.{i}.output.dense.weight" for i in range(4)]
    names += ["bert.embeddings.LayerNorm.weight", "cls.predictions.bias"]
    bert = architecture_of({"model_type": "bert"})
    assert split_parts(names, bert, 4, "input").itl == (names[0],)
    assert split_parts(names, bert, 4, "output").itl == (names[3],)
    assert split_parts(names, bert, 4, "both").layers == ((names[1],), (names[2],))
    assert len(split_parts(names, bert, 4, "none").layers) == 4


def test_groups_are_a_partition_by_decay_and_adam_step() -> None:
    shapes = {"e.weight": (9, 3), "e.bias": (3,), "n.weight": (3, 3), "n.bias": (3,), "frozen.weight": (2, 2)}
    train = {"e.weight", "e.bias", "n.weight", "n.bias"}
    groups = parameter_groups(shapes, train, {"e.weight": 5, "e.bias": 5}, Optimizer(weight_decay=0.1))
    found = {(group.names, group.weight_decay, group.adam_step) for group in groups}
    assert found == {(("e.weight",), 0.1, 5), (("e.bias",), 0.0, 5), (("n.weight",), 0.1, 0), (("n.bias",), 0.0, 0)}


def test_schedules_at_hand_computed_steps() -> None:
    linear = stage("all")
    assert [learning_rate(linear, s) for s in (0, 9, 10, 55, 99)] == pytest.approx([1 / 11, 10 / 11, 1.0, 0.5, 1 / 90])
    cosine = linear.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 55) == pytest.approx(0.5) and learning_rate(cosine, 32.5) == pytest.approx(0.5 + math.sqrt(0.5) / 2)  # type: ignore[arg-type]
    assert learning_rate(linear.model_copy(update={"schedule": "constant"}), 99) == 1.0


def test_the_peak_is_that_of_the_very_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in (
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA L40S",
        "NVIDIA L40",
        "NVIDIA A10G",
        "Tesla V100-PCIE-16GB",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
    ):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
        found[name] = peak_flops(torch.device("cuda"), torch.bfloat16, 8, 8, 8) / 1e12
    assert list(found.values()) == [312, 362, 181, 70, 125, 989, 756]


def test_flops_of_a_hand_counted_model() -> None:
    shape = Shape(hidden=10, intermediate=40, vocab=100, length=8, masking_rate=0.25)
    layer, attention, dense, output = 2 * (400 + 800), 4 * 8 * 10, 200 * 0.25, 2000 * 0.25
    last, last_attention = 2 * 200 + 2 * (200 + 800) * 0.25, attention * 0.25  # keys and values of all, the rest of what the head sees
    everything = flops_per_token(shape, [True, True], True, True, True)
    assert everything == pytest.approx(3 * (layer + attention + last + last_attention) + 3 * dense + 3 * output)
    frozen = flops_per_token(shape, [True, False, True], True, True, True)
    assert frozen == pytest.approx(3 * (layer + last) + 2 * layer + 3 * (2 * attention + last_attention) + 3 * dense + 3 * output)
    top_only = flops_per_token(shape, [False, True], False, True, False)  # nothing below trains: no gradient goes there
    assert top_only == pytest.approx(layer + attention + 3 * last + 3 * last_attention + 3 * dense + 2 * output)


def test_memory_formula() -> None:
    import torch

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, False, gpu) == 2 * 1100 + 4 * 100 / 2 + 12 * 100 / 2
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, True, gpu) == 2 * 1100 + 4 * 100 + 12 * 100 / 2
    assert memory_per_rank(100, 1000, 2, torch.bfloat16, True, cpu) == 2 * 1100 + 4 * 100 + 14 * 100 / 2
    assert memory_per_rank(100, 1000, 1, torch.bfloat16, True, cpu) == 2 * 1100 + 4 * 100 + 12 * 100


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
