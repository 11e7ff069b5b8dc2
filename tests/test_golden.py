"""The quickstart's post-training, shortened: its loss curve stands in golden/quickstart.json as numbers and may not change unnoticed.

After a change that is meant to change it:   python -m tests.test_golden
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.test_xpt import ROOT, environment
from trainer.journal import read_rows

GOLDEN = Path(__file__).parent / "golden" / "quickstart.json"
KEYS = ("loss", "grad_norm", "valid_loss")
SETTINGS = ("stages.0.steps=40", "stages.0.warmup_steps=4", "stages.1.steps=60", "stages.1.warmup_steps=6", "every.evaluate=20")


def curve(folder: Path) -> dict[str, dict[str, float]]:
    """World, corpus and 100 steps on two ranks; {step: numbers}."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", "hostfiles/localhost", "--no_ssh_check"]
    for words in (
        [sys.executable, "-m", "data_tools.world", "--output-dir", f"{folder}/world"],
        [sys.executable, "-m", "data_tools.prepare", "--input", f"{folder}/world/wiki.xml", "--output-dir", f"{folder}/corpus",
         "--vocab-size", "8000"],
        [*launcher, "--master_addr", "127.0.0.1", "trainer/xpt.py", "--recipe", "recipes/quickstart.yaml", "--ds-config",
         "ds_configs/zero2_cpu.json", "--corpus", f"{folder}/corpus", "--output-dir", f"{folder}/run", "--set", *SETTINGS],
    ):  # fmt: skip
        done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(folder / "run" / "metrics.jsonl")
    return {str(row["step"]): {key: row[key] for key in KEYS if key in row} for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_golden_curve(tmp_path: Path) -> None:
    expected, found = json.loads(GOLDEN.read_text()), curve(tmp_path)
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        for key, value in row.items():  # bf16 of another processor may round otherwise; another order of data or mask is far outside
            assert found[step][key] == pytest.approx(value, rel=0.05 if key == "grad_norm" else 0.01), (step, key)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = curve(Path(folder))
    lines = [f"{json.dumps(step)}: {json.dumps({key: float(f'{value:.6g}') for key, value in row.items()})}" for step, row in rows.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
