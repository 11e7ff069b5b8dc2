"""What of this project and its libraries this Python has: runs on several hosts need the same everywhere."""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent


def installed() -> dict[str, str]:
    """Versions of Python and of the libraries that compute, and a digest of this project's code."""
    facts = {"python": platform.python_version()}
    for name in ("torch", "deepspeed", "transformers", "numpy", "flash-attn"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "missing"
    return {**facts, "code": code_digest()}


def code_digest() -> str:
    """The first 12 digits of the SHA-256 of all sources of both packages; what is compiled of them differs between processors."""
    patterns = ("*/*.py", "*/*.csv", "*/*.tsv", "trainer/cpp/*.cpp", "trainer/cpp/*.h")
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in _ROOT.glob(pattern) if path.parts[-2] in ("data_tools", "trainer", "cpp")):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def digest_of(settings: dict[str, Any]) -> str:
    """The first 12 digits of the SHA-256 of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
