"""Models inside installed Python packages: `package:NAME/PATH`."""

import importlib.util
from pathlib import Path

from data_tools.errors import UserError


def locate_model(model: str) -> str:
    """A folder or hub id as given; `package:NAME/PATH` as the folder PATH inside the installed Python package NAME.

    Raises UserError when the package is not installed or the folder is not there.
    """
    scheme, colon, rest = model.partition(":")
    if scheme != "package" or not colon:
        return model
    package, _, inside = rest.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"model {model}: no Python package {package!r} is installed here")
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise UserError(f"model {model}: {folder} is not a folder")
    return str(folder)
