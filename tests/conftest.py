"""The environment of all tests, and a corpus; all is made in place, nothing is downloaded."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain text of invented documents."""
    from tests.prepared import DOCUMENTS

    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(" ".join(document) for document in DOCUMENTS) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def corpus_dir(text_file: Path) -> Path:
    """The corpus of it."""
    from tests.prepared import run

    folder = text_file.parent / "corpus"
    run("--input", text_file, "--output-dir", folder, "--vocab-size", 200, "--workers", 1)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that of two processes none is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_xpt.py", "test_engine.py"))
