"""What ranks must have in common, tried with ranks that differ, and where they compute."""

import json
import shutil
from pathlib import Path

import pytest

from data_tools.corpus import Corpus
from data_tools.errors import UserError
from tests.distributed import run_on_ranks
from tests.tiny import make_corpus, make_seed, write_recipe
from trainer.ranks import Ranks


def open_differing(root: Path) -> None:
    """On each of two ranks: a run is opened if everything is the same, and no rank goes on if anything is not."""
    from trainer import engine as engines
    from trainer.recipe import load_recipe
    from trainer.xpt import open_run

    engines.start()
    ranks = Ranks.current()
    second = ranks.rank == 1

    def opened(*overrides: str, ds_config: str = "ds.json") -> None:
        open_run(load_recipe(root / "recipe.yaml", list(overrides)), engines.DeepSpeedConfig.load(root / ds_config), ranks)

    opened()
    with pytest.raises(UserError, match=r"(?s)the hosts differ.*\n  recipe: \w+ on .*; \w+ on "):
        opened(f"seed={ranks.rank}")
    with pytest.raises(UserError, match=r"(?s)the hosts differ.*\n  ds_config: "):
        opened(ds_config="other.json" if second else "ds.json")
    with pytest.raises(UserError, match=r"(?s)the hosts differ.*\n  the corpus's data: "):
        opened(f"corpus={root}/altered" if second else f"corpus={root}/corpus")


def test_ranks_that_differ_do_not_begin(tmp_path: Path) -> None:
    make_seed(tmp_path / "seed", "bert")
    make_corpus(tmp_path / "corpus")
    write_recipe(tmp_path / "recipe.yaml", tmp_path)
    settings = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    (tmp_path / "other.json").write_text(json.dumps(settings | {"memory_breakdown": False}))
    shutil.copytree(tmp_path / "corpus", tmp_path / "altered")
    with open(tmp_path / "altered" / "train.bin", "r+b") as file:  # of the same size, and the manifest says the same
        file.seek(20000)
        file.write(bytes(200))
    assert Corpus.open(tmp_path / "altered").fingerprint == Corpus.open(tmp_path / "corpus").fingerprint
    run_on_ranks(open_differing, 2, tmp_path, tmp_path)


def test_the_devices_are_cpus_when_deepspeed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert str(Ranks.current().device) == "cuda:1"
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert str(Ranks.current().device) == "cpu"
