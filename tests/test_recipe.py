"""Recipes: what is refused, and what comes out."""

import re
from pathlib import Path

import pytest
import yaml

from data_tools.errors import UserError
from trainer.recipe import load_recipe

ROOT = Path(__file__).parent.parent


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
    with pytest.raises(UserError, match=r"expected YAML, found: (.|\n)*; repair"):
        load_recipe(tmp_path / "broken.yaml", [])
    (tmp_path / "empty.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match=r"seed_model: missing(.|\n)*stages: missing"):
        load_recipe(tmp_path / "empty.yaml", [])


def test_stages_may_share_settings_and_no_key_stands_twice(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "paper.yaml").read_text()
    stages = """stages:
      - &first {name: a, train: [head], steps: 8, learning_rate: 0.5}
      - {<<: *first, name: b, steps: 9}
      - {<<: *first, name: c}
    """
    (tmp_path / "shared.yaml").write_text(text[: text.index("stages:")] + stages)
    recipe = load_recipe(tmp_path / "shared.yaml", [])
    assert [(stage.name, stage.steps, stage.learning_rate) for stage in recipe.stages] == [("a", 8, 0.5), ("b", 9, 0.5), ("c", 8, 0.5)]
    for twice in ("name: x\n", "more: {a: 1, a: 2}\n"):
        (tmp_path / "twice.yaml").write_text("name: y\n" + twice)
        with pytest.raises(UserError, match=r"expected YAML, found: (name|a) appears twice"):
            load_recipe(tmp_path / "twice.yaml", [])


def test_a_section_left_empty_takes_entries(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "paper.yaml").read_text()
    (tmp_path / "empty.yaml").write_text(re.sub(r"(?m)^every:.*\n(  .*\n)*", "every:\n", text))
    assert load_recipe(tmp_path / "empty.yaml", ["every.log=7"]).every.log == 7


def test_a_folder_of_no_name_is_not_the_folder_where_one_stands() -> None:
    with pytest.raises(UserError, match="output_dir is empty; name a folder"):
        load_recipe(ROOT / "recipes" / "paper.yaml", [], output_dir="")
