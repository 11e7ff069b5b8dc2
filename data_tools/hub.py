"""Text from the `datasets` library, read in streaming mode: nothing is downloaded as a whole or kept."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.digest import sha256_of
from data_tools.errors import UserError, first_line
from data_tools.sources import Document

PREFIX = "hf:"


def read_dataset(name: str, start: int, digest: Any) -> Iterator[Document]:
    """The column `text` of `hf:DATASET[:CONFIG]`'s split "train": a document for each row, an empty one where it is null.

    start: bytes read before, as in `sources.read_documents`. digest: a hashlib object, fed with every text: the dataset's identity, known
    only once it has been read. Raises UserError when the dataset cannot be opened or has no column "text".
    """
    import datasets  # slow to import

    dataset, config = _parse(name)
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
        for row in rows:
            text = row.get("text", 0)
            if text is None:  # a row without text, which such data may have
                text = ""
            if not isinstance(text, str):
                raise UserError(f'--input {name}: expected a column "text" of strings, found the columns {", ".join(sorted(row))}')
            digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
            yield Document(str(row.get("title", "")), text, False, start)
    except UserError:
        raise
    except Exception as error:  # the library raises its own, the hub's, pyarrow's and the network's
        raise UserError(
            f"--input {name}: `datasets` cannot read it ({type(error).__name__}: {first_line(error)}); "
            "expected hf:DATASET[:CONFIG], a hub id or a local folder"
        ) from error


def local_content(name: str) -> dict[str, str]:
    """What tells one state of a local dataset folder from another. Empty for a dataset on the hub, which is known by its name alone."""
    folder = Path(_parse(name)[0])
    if not folder.is_dir():
        return {}
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_of(file)}\0".encode("utf-8", "surrogateescape"))
    return {"sha256": digest.hexdigest()}


def _parse(name: str) -> tuple[str, str]:
    """DATASET and CONFIG of hf:DATASET[:CONFIG]. Raises UserError when DATASET is empty."""
    dataset, _, config = name.removeprefix(PREFIX).partition(":")
    if not dataset:
        raise UserError(f"--input {name}: expected hf:DATASET[:CONFIG], found no name; check the variable it came from")
    return dataset, config


def is_dataset(name: str) -> bool:
    return name.startswith(PREFIX)
