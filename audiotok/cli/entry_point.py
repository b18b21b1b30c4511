"""The training function that commands are about, found from the current folder as `dora` finds it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from audiotok.errors import ConfigError

PACKAGE_HELP = "training package (default: $DORA_PACKAGE, the one in this folder, or audiotok)"


def entry_point(package: str | None) -> Any:
    """The decorated `main` of a training package.

    Args:
        package: its name; None: that of the environment, the only one in the current folder, else ours.

    Raises:
        ConfigError: if there is no such package here, or more than one to choose from.
    """
    sys.path.insert(0, str(Path.cwd()))
    main_module = os.environ.get("DORA_MAIN_MODULE") or "train"
    package = package or package_here()
    module_name = f"{package}.{main_module}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        advice = "give the training package with -P or DORA_PACKAGE"
        raise ConfigError(f"no module {module_name} here; {advice}.") from error
    return module.main


def package_here() -> str:
    """Name of the training package that commands are about here.

    Raises:
        ConfigError: if there is more than one to choose from.
    """
    if package := os.environ.get("DORA_PACKAGE"):
        return package
    main_module = os.environ.get("DORA_MAIN_MODULE") or "train"
    files = sorted(Path.cwd().glob(f"*/{main_module}.py"))
    packages = [file.parent.name for file in files if file.with_name("__init__.py").exists()]
    if len(packages) > 1:
        raise ConfigError(f"training packages here: {', '.join(packages)}; choose one with -P or DORA_PACKAGE.")
    return packages[0] if packages else "audiotok"
