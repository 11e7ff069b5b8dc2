"""The rules of docs/design.md that a program can check."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def listed_layers(package: str) -> list[set[str]]:
    """As docs/design.md lists them, lowest first."""
    listed = DESIGN.split(f"Layers of `{package}`")[1].split("\n\n")[1]
    return [set(re.findall(r"`(\w+)`", files)) for files in re.split(r"(?m)^\d\. ", listed)[1:]]


LAYERS = {package: listed_layers(package) for package in ("data_tools", "trainer")}
# The invented world: a command, and just below the commands what it alone is made of.
LAYERS["data_tools"][-1].add("world")
LAYERS["data_tools"].insert(-1, {path.stem for path in (ROOT / "data_tools").glob("world_*.py")})
FILES = sorted(path for package in LAYERS for path in (ROOT / package).glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{path}: relative import"
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


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {f"{path.parent.name}.{path.stem}": imports(path) for path in FILES}
    seen: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        assert name not in way, " imports ".join([*way, name])
        if name not in seen:
            for other in graph[name] & graph.keys():
                follow(other, [*way, name])
            seen.add(name)

    for name in graph:
        follow(name, [])


def test_every_file_has_one_layer_and_none_is_called_utils() -> None:
    for package, layers in LAYERS.items():
        assert sorted(stem for stems in layers for stem in stems) == sorted(path.stem for path in FILES if path.parent.name == package)
    assert not {path.stem for path in FILES} & {"utils", "common", "helpers"}
