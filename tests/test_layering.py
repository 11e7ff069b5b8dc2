"""The rules of docs/design.md that a program can check."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "data_tools": [
        {
            "errors",
            "mmididx",
            "wikitext",
            "sentences",
            "workers",
            "work",
            "filters",
            "options",
            "duplicates",
            "packages",
            "lock",
            "aside",
            "compression",
            "digest",
            "world_text",
            "world_names",
            "world_facts",
        },
        {"sources", "splits", "vocabulary", "corpus", "world_scene", "world_region"},
        {"spool", "exclusions", "hub", "world_dump", "world_relations"},
        {"encoding", "findings", "collecting"},
        {"page"},
        {"prepare", "steps", "inspect", "world"},
    ],
    "trainer": [
        {
            "recipe",
            "architecture",
            "relations",
            "scores",
            "accelerator",
            "memory",
            "pretrained",
            "catalogue",
            "launcher",
            "settings",
            "comparison_table",
            "lifeline",
            "shared_memory",
            "installation",
            "cpu_kernels",
            "ds_config",
            "traffic",
            "metrics_log",
        },
        {
            "schedule",
            "masking",
            "blocks",
            "stages",
            "checkpoint",
            "markers",
            "entity_head",
            "relation_page",
            "relation_board",
            "forward",
            "gradients",
        },
        {"flops", "mlm", "embedding_init", "ranks", "classifier", "run_folder"},
        {"watchdog", "journal", "diary", "surgery", "engine", "export", "evaluation", "triples", "storage"},
        {"state", "finetune", "meeting", "plan", "host"},
        {"comparison"},
        {"xpt", "klue_re", "fill_mask", "doctor"},
    ],
}
FILES = sorted(path for package in LAYERS for path in (ROOT / package).glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(package: str, stem: str) -> int:
    return next(i for i, stems in enumerate(LAYERS[package]) if stem in stems)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_file_imports_downwards_only(path: Path) -> None:
    package, own = path.parent.name, layer(path.parent.name, path.stem)
    for name in imports(path):
        top, _, rest = name.partition(".")
        stem = rest.partition(".")[0]
        if top == package and any(stem in stems for stems in LAYERS[package]):
            assert layer(package, stem) < own or (layer(package, stem) == own and own < len(LAYERS[package]) - 1), f"{path} imports {name}"
        if package == "data_tools":
            assert top not in ("trainer", "torch", "deepspeed"), f"{path} imports {name}"
        elif top == "data_tools" and stem:
            assert stem in ("errors", "corpus", "mmididx", "packages", "lock", "aside", "digest"), f"{path} imports {name}"
        if top == "deepspeed":
            assert path.stem in ("engine", "ds_config", "traffic"), f"{path} imports DeepSpeed"
        if name == "torch.distributed":
            assert path.stem in ("engine", "gradients", "ranks", "shared_memory", "traffic", "watchdog"), f"{path} uses collectives"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "trainer"], ids=lambda p: p.stem)
def test_no_file_beside_a_launched_script_hides_a_module(path: Path) -> None:
    assert path.stem not in sys.stdlib_module_names
    sys_path = [p for p in sys.path if Path(p or ".").resolve() != path.parent]
    assert importlib.machinery.PathFinder.find_spec(path.stem, sys_path) is None, f"{path.stem} hides an installed module"


def test_the_design_names_every_file_in_its_layer() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for package, layers in LAYERS.items():
        listed = text.split(f"Layers of `{package}`")[1].split("\n\n")[1]
        items = re.split(r"(?m)^\d\. ", listed)[1:]
        for number, stems in enumerate(layers):
            assert set(re.findall(r"`(\w+)`", items[number])) == {stem for stem in stems if not stem.startswith("world")}, (package, number)


def test_every_file_has_a_layer_and_none_is_called_utils() -> None:
    for path in FILES:
        assert any(path.stem in stems for stems in LAYERS[path.parent.name]), f"{path} stands in no layer"
        assert path.stem not in ("utils", "common", "helpers")
