"""Grid files: loaded by their name below the package of grids; `experiments` is for grids over other grids."""

import contextlib
import functools
import importlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dora.grid
from dora.explore import Explorer, Herd
from dora.main import DecoratedMain
from dora.utils import import_or_fatal

from audiotok.errors import AudiotokError, ConfigError
from audiotok.experiments.overrides import parse_override
from audiotok.files import module_names, shown
from audiotok.launchers.profile import ProfileLauncher

_loading: list[tuple[DecoratedMain, str]] = []  # the grids whose files are being read, each by the one before
_grid_of: dict[str, str] = {}  # by signature: the grids that others were made over


@dataclass(frozen=True)
class GridExperiment:
    """An experiment of another grid."""

    sig: str
    overrides: dict[str, Any]  # by key, as the grid gives them

    @property
    def checkpoint(self) -> str:
        """For `continue_from` or `compression_model_checkpoint`: an experiment with it waits for this one."""
        return f"//sig/{self.sig}"


def experiments(grid: str, main: DecoratedMain | None = None) -> list[GridExperiment]:
    """The experiments of another grid, in its order; nothing is run, submitted or written.

    Args:
        grid: as given to `dora grid`.
        main: the training function that they are of; None, in a grid file, for that of the grid.

    Raises:
        ConfigError: naming file and line, if there is no such grid, its file has a mistake, or it is over this one.
    """
    if main is None:
        if not _loading:
            raise ConfigError("experiments() outside of a grid file: give it the training function, `main`.")
        main = _loading[-1][0]
    if (main, grid) in _loading:
        names = [name for _, name in _loading]
        raise ConfigError(f"a grid over itself: {' → '.join([*names[names.index(grid) :], grid])}.")
    return list(_experiments(main, grid))


def grid_of(sig: str) -> str:
    """The grid that names an experiment, if another grid was made over it in this process; else ""."""
    return _grid_of.get(sig, "")


@functools.cache
def _experiments(main: DecoratedMain, grid: str) -> tuple[GridExperiment, ...]:
    herd = Herd()
    shepherd: Any = SimpleNamespace(main=main, get_sheep_from_argv=lambda argv: SimpleNamespace(xp=main.get_xp(argv)))
    explore(load_explorer(main, grid), grid, ProfileLauncher(shepherd, main.get_slurm_config(), herd))
    _grid_of.update(dict.fromkeys(herd.sheeps, grid))
    return tuple(GridExperiment(sig, _overrides(sheep.xp.argv)) for sig, sheep in herd.sheeps.items())


def _overrides(argv: list[str]) -> dict[str, Any]:
    parsed = map(parse_override, argv)
    return {one.key_or_group: one.value() for one in parsed}


def load_explorer(main: DecoratedMain, grid: str) -> Explorer:
    """The explorer of a grid.

    Raises:
        ConfigError: if there is no such grid (the message lists those there are), or its file has a mistake.
    """
    package, folder = _package(main)
    known = module_names(folder)
    if grid not in known:
        names = ", ".join(known) or "none yet"
        raise ConfigError(f"no grid {grid!r} in package {package}; choose one of: {names}.")
    with _reading(main, grid, folder):
        module = importlib.import_module(f"{package}.{grid}")
    if not isinstance(explorer := getattr(module, "explorer", None), Explorer):
        found = "no `explorer`" if explorer is None else f"`explorer`, which is of the kind {type(explorer).__name__}"
        advice = "decorate its function `explorer(launcher)` with an Explorer, such as @CompressionExplorer"
        raise ConfigError(f"{shown(Path(str(module.__file__)))} has {found}; {advice}.")
    return explorer


def grid_names(main: DecoratedMain) -> list[str]:
    """Names of all grids."""
    return module_names(_package(main)[1])


def explore(explorer: Explorer, grid: str, launcher: ProfileLauncher) -> None:
    """Give a launcher the experiments of a grid.

    Raises:
        ConfigError: naming file and line of a mistake in the grid.
    """
    code = getattr(explorer.explore, "__code__", None)
    with _reading(launcher._main, grid, Path(code.co_filename).parent if code else Path("-")):
        explorer(launcher)


def _package(main: DecoratedMain) -> tuple[str, Path]:
    """The package of grids, and its folder."""
    package = main.dora.grid_package or f"{main.package}.grids"
    return package, Path(import_or_fatal(package).__file__).parent


@contextlib.contextmanager
def _reading(main: DecoratedMain, name: str, folder: Path) -> Iterator[None]:
    """Make one line of a mistake in the file of a grid below a folder, with the line of the file."""
    _loading.append((main, name))
    try:
        yield
    except SyntaxError as error:
        file = Path(error.filename) if error.filename else folder / f"{name.replace('.', '/')}.py"
        line = f":{error.lineno}" if error.lineno else ""
        raise ConfigError(f"{shown(file)}{line}: it is not Python: {error.msg}.") from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        inside = (
            frame for frame in frames if folder and Path(frame.filename).resolve().is_relative_to(folder.resolve())
        )
        own = list(inside)
        refused = Path(frames[-1].filename).parent == Path(dora.grid.__file__).parent  # by Dora's launcher
        is_of_user = isinstance(error, AudiotokError) or refused
        if not own or not (is_of_user or frames[-1] is own[-1]):
            raise  # a defect of ours or of another package
        place = f"{shown(Path(own[-1].filename))}:{own[-1].lineno}"
        text = str(error) if isinstance(error, AudiotokError) else f"{type(error).__name__}: {error}"
        raise ConfigError(text if place in text else f"{place}: {text}") from error
    finally:
        _loading.pop()
