"""A finished corpus: a folder of indexed datasets, a tokenizer and a manifest, which is written last and lists what belongs to it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools import aside
from data_tools.digest import sha256_of
from data_tools.errors import UserError
from data_tools.mmididx import IndexedDataset

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer"
FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. `fingerprint` is the same for the same bytes, wherever they are."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Open a corpus folder and check that it is complete: the manifest is there, and every file has the size that it gives.

        Raises UserError when it is missing, unfinished, cut short or of another format.
        """
        path = Path(path)
        manifest = read_manifest(path)
        corpus = cls(path, manifest)
        for name, expected in manifest["outputs"].items():
            file = path / name
            if not file.is_file():
                raise UserError(f"{file}: expected by the corpus's {MANIFEST_NAME}, found no such file; prepare the corpus anew")
            found = file.stat().st_size
            if found != expected["bytes"]:
                raise UserError(
                    f"{file}: expected {expected['bytes']} bytes by {MANIFEST_NAME}, found {found}: cut short or altered; "
                    "prepare the corpus anew"
                )
        return corpus

    def split(self, name: str) -> IndexedDataset:
        """One of "train", "valid", "test": an item is a sentence's token ids, without special tokens."""
        assert name in SPLITS, name
        return IndexedDataset(self.path / name)

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the manifest. Raises UserError for the first that differs."""
        for name, expected in self.manifest["outputs"].items():
            if sha256_of(self.path / name) != expected["sha256"]:
                raise UserError(f"{self.path / name}: its SHA-256 is not the one in {MANIFEST_NAME}; prepare the corpus anew")

    def sample_digest(self) -> str:
        """Digest of samples spread over every file, which are read in no time: tells this corpus from a copy with other content, if that
        differs in more than a few places (`verify` reads everything)."""
        digest = hashlib.sha256()
        for name, expected in sorted(self.manifest["outputs"].items()):
            with open(self.path / name, "rb") as file:
                for piece in range(SAMPLES):
                    file.seek(expected["bytes"] * piece // SAMPLES)
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / TOKENIZER_NAME

    @property
    def tokenizer_sha256(self) -> str:
        """Two corpora with the same one have the same ids for the same pieces."""
        return self.manifest["outputs"][f"{TOKENIZER_NAME}/tokenizer.json"]["sha256"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a corpus folder. Raises UserError when it is missing or something else."""
    way_out = f"make one with: python -m data_tools.prepare --input TEXT --output-dir {path}"
    if not path.is_dir():
        raise UserError(f"{path}: expected a corpus folder, found {'a file' if path.exists() else 'nothing'}; {way_out}")
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise UserError(f"{path}: expected a finished corpus, found no {MANIFEST_NAME} (empty, or a run that did not end); {way_out}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known = manifest["format_version"] == FORMAT_VERSION and fingerprint_of(manifest["outputs"]) == manifest["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: expected a corpus manifest, found something else ({error!r}); prepare the corpus anew") from error
    if not known:
        raise UserError(f"{file}: expected format {FORMAT_VERSION} and a fingerprint that fits the outputs; prepare the corpus anew")
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Make the folder a corpus: write its manifest, whole or not at all."""
    aside.write_text(path / MANIFEST_NAME, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")


def fingerprint_of(outputs: dict[str, dict[str, Any]]) -> str:
    """One SHA-256 over the names and SHA-256s of a corpus's files."""
    lines = (f"{name} {facts['sha256']}\n" for name, facts in sorted(outputs.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
