"""A tiny run on the hosts of a lab, and what is asked of it."""

import json
import re
import subprocess
from pathlib import Path

from tests.cluster.lab import Host
from tests.tiny import make_corpus, make_seed, write_recipe

DEEPSPEED = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2, "reduce_bucket_size": 100000}}


def make_inputs(root: Path, first: int, second: int) -> None:
    """Seed, corpus, recipe and ds_config for runs of so many steps in two stages."""
    make_seed(root / "seed", "roberta")
    make_corpus(root / "corpus")
    write_recipe(root / "recipe.yaml", root, "{dropout: 0}", 24, (first, second), warmup=3)
    (root / "ds.json").write_text(json.dumps(DEEPSPEED))


def arguments(root: Path, run: Path, *more: str) -> list[str]:
    """Of trainer/xpt.py."""
    return ["--recipe", f"{root}/recipe.yaml", "--ds-config", f"{root}/ds.json", "--output-dir", str(run), *more]


def launch(host: Host, hostfile: Path, words: list[str], log: Path, *options: str) -> subprocess.Popen[str]:
    """`deepspeed ... trainer/xpt.py` from this host, in the background."""
    (host.home / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\nTORCH_CPP_LOG_LEVEL=ERROR\n")
    command = ["deepspeed", "--hostfile", str(hostfile), *options, "trainer/xpt.py", *words]
    with open(log, "ab") as file:
        return host.start(command, stdout=file, stderr=file)


def messages(text: str) -> list[str]:
    """The trainer's error messages in a log."""
    return re.findall(r"(?:^|: )error: (.*)", text)
