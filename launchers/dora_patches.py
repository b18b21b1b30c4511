"""Plugs our launchers, profiles, tables and errors into Dora: the one place that replaces names in its modules.

Environment variables: AUDIOTOK_LAUNCHER=local|slurm (by default SLURM where `sbatch` is on PATH, else local).
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import dora.explore
import dora.grid
import dora.info
import dora.launch
import dora.run
from dora.main import DecoratedMain
from dora.shep import no_log

from audiotok.errors import AudiotokError
from audiotok.experiments.frozen import drift
from audiotok.launchers.engines import detect
from audiotok.launchers.grid import get_explorer, run_grid
from audiotok.launchers.profile import ProfileLauncher, profile_of
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import GridShepherd
from audiotok.launchers.table import monitor

EXIT_CODE = 2

_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def tell_mistakes_in_one_line() -> None:
    """Under the `dora` command line, have mistakes of the user end in one line and exit code 2.

    `install` does it too; composing the configuration, which comes before that, can find mistakes as well.
    """
    if is_dora_command() and not isinstance(sys.excepthook, _OneLineHook):
        sys.excepthook = _OneLineHook(sys.excepthook)


def install(main: DecoratedMain) -> None:
    """Make `dora run`, `grid`, `launch` and `info` use our launcher; may be called more than once.

    Dora's commands look up `Shepherd` by name when they run, so replacing the name in their modules is
    enough. Under the `dora` command line, mistakes of the user also end in one line and exit code 2; a
    notebook or another program keeps its own way with exceptions.

    Args:
        main: the decorated entry point; it gets the profile of the cluster in place of Dora's defaults.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER names no launcher.
    """
    tell_mistakes_in_one_line()
    detect(os.environ)
    main.get_slurm_config = lambda: profile_of(main)  # type: ignore[method-assign]
    for module in (dora.grid, dora.launch, dora.run):
        vars(module)["Shepherd"] = GridShepherd
    vars(dora.info)["Shepherd"] = InfoShepherd
    vars(dora.grid)["Launcher"] = ProfileLauncher
    dora.grid._get_explore = get_explorer
    dora.grid.run_grid = run_grid
    dora.grid.monitor = monitor


def is_dora_command() -> bool:
    """Tell whether this process is the `dora` command line (`dora …` or `python -m dora …`)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "dora.__main__" or Path(sys.argv[0]).name == "dora"


class InfoShepherd(GridShepherd):
    """The shepherd of `dora info`, which also tells what has become of an experiment's configuration."""

    def __init__(self, main: DecoratedMain, log: Callable[[str], None] = no_log) -> None:
        super().__init__(main, dora.info.log if log is no_log else log)

    def get_sheep_from_argv(self, argv: Sequence[str]) -> GridSheep:
        """Return the experiment that these arguments make."""
        return self._told(super().get_sheep_from_argv(argv))

    def get_sheep_from_job_id(self, job_id: str) -> GridSheep | None:
        """Return the experiment that a job belongs to, None if there is no such job."""
        sheep = super().get_sheep_from_job_id(job_id)
        return None if sheep is None else self._told(sheep)

    def _told(self, sheep: GridSheep) -> GridSheep:
        """Tell in which way the configuration of today differs from the frozen one."""
        if hasattr(self.main, "compose"):
            for line in drift(self.main, sheep.xp):
                self.log(f"Configuration has changed since: {line}")
        return sheep


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
