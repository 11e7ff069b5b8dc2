"""A transformers model as files that others can read."""

from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from data_tools.errors import RunError


class Pretrained(Protocol):
    """A transformers model, or ours around one."""

    def save_pretrained(self, folder: Any, /) -> None: ...


def write_model(model: Pretrained, folder: Path) -> None:
    """`save_pretrained`, its weights as readable as its configuration. Raises RunError when the disk is full."""
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # what safetensors makes of a disk that is full
        raise RunError(f"{folder} could not be written ({error}); make room, then give the command again") from None
    mode = (folder / "config.json").stat().st_mode  # safetensors writes files that only their owner can read
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
