"""Plugs our launchers and our errors into Dora: the one place that replaces names in its modules.

Environment variables: AUDIOTOK_LAUNCHER=local|slurm (by default SLURM where `sbatch` is on PATH, else local).
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import dora.grid
import dora.info
import dora.launch
import dora.run
from dora.main import DecoratedMain
from dora.shep import Shepherd
from dora.utils import import_or_fatal

from audiotok.errors import AudiotokError, ConfigError
from launchers.local import LocalShepherd
from launchers.slurm import SlurmShepherd

LAUNCHER_VARIABLE = "AUDIOTOK_LAUNCHER"
EXIT_CODE = 2

_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]
_LAUNCHERS: dict[str, type[Shepherd]] = {"local": LocalShepherd, "slurm": SlurmShepherd}
_dora_get_explore = dora.grid._get_explore


def install(main: DecoratedMain) -> None:
    """Make `dora run`, `grid`, `launch` and `info` use our launcher; may be called more than once.

    Dora's commands look up `Shepherd` by name when they run, so replacing the name in their modules is
    enough. Under the `dora` command line, mistakes of the user also end in one line and exit code 2; a
    notebook or another program keeps its own way with exceptions.

    Args:
        main: the decorated entry point; not changed.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER names no launcher.
    """
    if is_dora_command() and not isinstance(sys.excepthook, _OneLineHook):
        sys.excepthook = _OneLineHook(sys.excepthook)
    shepherd = _LAUNCHERS[detect(os.environ)]
    for module in (dora.grid, dora.info, dora.launch, dora.run):
        module.Shepherd = shepherd  # type: ignore[attr-defined]
    dora.grid._get_explore = get_explorer


def detect(environ: Mapping[str, str]) -> str:
    """Return the launcher for this machine: `local` or `slurm`.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER holds another word.
    """
    asked = environ.get(LAUNCHER_VARIABLE, "").strip()
    if not asked:
        return "slurm" if shutil.which("sbatch", path=environ.get("PATH")) else "local"
    if asked not in _LAUNCHERS:
        raise ConfigError(f"{LAUNCHER_VARIABLE}={asked!r} in the environment; choose one of: local, slurm.")
    return asked


def is_dora_command() -> bool:
    """Tell whether this process is the `dora` command line (`dora …` or `python -m dora …`)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "dora.__main__" or Path(sys.argv[0]).name == "dora"


def get_explorer(args: Any, main: DecoratedMain) -> Any:
    """Find the explorer of a grid as Dora does, but refuse an unknown name (Dora then exits with 0).

    Raises:
        ConfigError: if there is no such grid; the message lists those there are.
    """
    package = main.dora.grid_package or f"{main.package}.grids"
    if args.grid is not None:
        known = list_grids(Path(import_or_fatal(package).__file__).parent)
        if args.grid not in known:
            names = ", ".join(known) or "none yet"
            raise ConfigError(f"no grid {args.grid!r} in package {package}; choose one of: {names}.")
    return _dora_get_explore(args, main)  # type: ignore[no-untyped-call]


def list_grids(folder: Path) -> list[str]:
    """Return the dotted names of the grid files in a package, sorted; `_name.py` is not a grid."""
    files = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    return [".".join(path.parts) for path in files if not path.name.startswith("_")]


class _OneLineHook:
    """Except hook: one line for a user's mistake, the hook that was there before for anything else."""

    def __init__(self, previous: _Hook) -> None:
        self._previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, AudiotokError):
            self._previous(kind, error, traceback)
            return
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(EXIT_CODE)  # Python ends with the code of a SystemExit that comes out of a hook
