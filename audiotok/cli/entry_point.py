"""The training function that commands are about, found from the current folder as `dora` finds it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from audiotok.errors import ConfigError

PACKAGE_HELP = "training package (default: $DORA_PACKAGE or audiotok)"


def entry_point(package: str | None) -> Any:
    """The decorated `main` of a training package.

    Args:
        package: its name; by default that of the environment, else ours.

    Raises:
        ConfigError: if there is no such package here.
    """
    package = package or os.environ.get("DORA_PACKAGE") or "audiotok"
    sys.path.insert(0, str(Path.cwd()))
    module_name = f"{package}.{os.environ.get('DORA_MAIN_MODULE') or 'train'}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"no module {module_name} here; give the training package with -P or DORA_PACKAGE."
        ) from error
    return module.main
