"""The folder of a corpus that is being made: what each finished step left there, and for which settings, so that the
next start after a kill reuses it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from data_tools import aside


class Work:
    """Steps by name, each in a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self, step: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The facts that the step ended with, if it was finished here before with these settings and this very code, and its files are as
        long as they were; else None, and its folder is empty now."""
        try:
            record = json.loads((self.path / f"{step}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if (
            record and record["settings"] == _normal(settings) and record["code"] == _code_sha256()
            and record["files"] == self._sizes(step)
        ):  # fmt: skip
            return record["facts"]
        (self.path / f"{step}.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / step, ignore_errors=True)
        (self.path / step).mkdir(parents=True)
        return None

    def finish(self, step: str, settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Record that the step has written everything, once that is on the disk: a host that fails later takes nothing of it back. Returns
        the facts."""
        sizes = self._sizes(step)
        aside.flush(*(self.path / step / name for name in sizes))
        record = {"settings": settings, "code": _code_sha256(), "facts": facts, "files": sizes}
        aside.write_text(self.path / f"{step}.json", json.dumps(record))
        return facts

    def _sizes(self, step: str) -> dict[str, int]:
        """Bytes of each file in the step's folder."""
        folder = self.path / step
        return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}


def _normal(settings: dict[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
