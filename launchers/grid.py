"""Around Dora's `run_grid`: the plan of a dry run, what is remembered of a launch, and folders that were moved."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dora.grid
from dora.conf import SlurmConfig, SubmitRules
from dora.explore import Explorer
from dora.grid import RunGridArgs
from dora.main import DecoratedMain
from dora.shep import Sheep, no_log
from dora.utils import import_or_fatal

from audiotok.errors import ConfigError, LaunchError
from audiotok.files import write_symlink as point
from audiotok.launchers.decide import Action, Decision
from audiotok.launchers.engines import detect
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.plan import Entry, Plan, make_plan, members_of
from audiotok.launchers.plans.memory import remember
from audiotok.launchers.plans.text import plan_text
from audiotok.launchers.shepherd import GridShepherd

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})
_dora_get_explore = dora.grid._get_explore
_dora_run_grid = dora.grid.run_grid


def run_grid(
    main: DecoratedMain,
    explorer: Explorer,
    grid_name: str,
    rules: SubmitRules | None = None,
    slurm: SlurmConfig | None = None,
    args: RunGridArgs | None = None,
) -> list[Sheep]:
    """Run a grid as Dora's function of this name does; a dry run tells its plan instead of the table.

    Links from the folder of a grid to its experiments are relative, so that the Dora folder may be moved. Dora looks at
    them and makes and removes them without a lock: one command at a time launches a grid, many may watch it.
    """

    def remember_launch(shepherd: GridShepherd) -> None:
        shepherd.on_commit.append(lambda one: _after_commit(one, grid_name))

    rules, args = rules or SubmitRules(), args or RunGridArgs()
    if args.dry_run and not args.clear:
        plan, sheeps = _plan_with_sheeps(main, explorer, grid_name, rules, slurm, args)
        if not args.silent:
            print(plan_text(plan))  # noqa: T201
        return sheeps
    lock = SubmitLock(Path(main.dora.dir) / "locks" / f"grid.{grid_name}", log=dora.grid.log)
    try:
        with contextlib.ExitStack() as launching, _shepherds(remember_launch), _before_watching(launching.close):
            launching.enter_context(lock.hold())
            mend_links(_folder(main, grid_name), main.dora.xps)
            return _dora_run_grid(main, explorer, grid_name, rules, slurm, args)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise LaunchError(
            f"cannot write to {main.dora.dir} ({error}); make room or correct it, and try again."
        ) from error


def plan_grid(
    main: DecoratedMain,
    explorer: Explorer,
    grid_name: str,
    rules: SubmitRules | None = None,
    slurm: SlurmConfig | None = None,
    args: RunGridArgs | None = None,
) -> Plan:
    """What `run_grid` with the same arguments would do; nothing is submitted, cancelled or written."""
    return _plan_with_sheeps(main, explorer, grid_name, rules or SubmitRules(), slurm, args or RunGridArgs())[0]


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


def mend_links(folder: Path, xps: str) -> None:
    """Let the links of a grid's folder point to their experiments by relative paths, wherever they pointed before."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        target = f"../../{xps}/{entry.name}"
        if entry.is_symlink() and os.readlink(entry.path) != target:  # noqa: PTH115
            point(Path(entry.path), Path(target))


def _plan_with_sheeps(
    main: DecoratedMain,
    explorer: Explorer,
    grid_name: str,
    rules: SubmitRules,
    slurm: SlurmConfig | None,
    args: RunGridArgs,
) -> tuple[Plan, list[Sheep]]:
    made: list[GridShepherd] = []
    quiet = replace(args, dry_run=True, monitor=False, silent=True, folder=None, log=None, tail=None)
    there = _folder(main, grid_name).exists()
    usual, dora.grid.log = dora.grid.log, no_log  # it would say what it does not do
    try:
        with _shepherds(made.append):
            sheeps = _dora_run_grid(main, explorer, grid_name, rules, slurm, quiet)
    finally:
        dora.grid.log = usual
    if not there:
        with contextlib.suppress(OSError):
            _folder(main, grid_name).rmdir()  # Dora made it
    entries = _entries(made[-1], sheeps, cancelling=args.cancel)
    plan = make_plan(Path(main.dora.dir), grid_name, detect(os.environ), entries, list(made[-1].members))
    return plan, sheeps


def _entries(shepherd: GridShepherd, sheeps: list[Sheep], *, cancelling: bool) -> list[Entry]:
    """What is done about each experiment of a grid, and about those that left it."""
    entries = [_entry(shepherd, sig) for sig in shepherd.decided]
    known = {sheep.xp.sig: sheep for sheep in shepherd.herd}
    left = "cancelled as asked" if cancelling else "no longer in the grid"
    for job in shepherd.to_cancel:
        sheep = known.get(job.folder.name) or shepherd.get_sheep_from_sig(job.folder.name)
        state = shepherd.verdict(job).state
        name = shepherd.main.get_name(sheep.xp)
        entries.append(Entry(sheep.xp.sig, name, job.folder, state, Decision(Action.CANCEL, left), None))
    return entries


def _entry(shepherd: GridShepherd, sig: str) -> Entry:
    sheep, profile = shepherd.decided[sig]
    assert sheep.decision is not None
    state = sheep.state() or ""
    return Entry(sig, shepherd.main.get_name(sheep.xp), Path(sheep.xp.folder), state, sheep.decision, profile)


def _after_commit(shepherd: GridShepherd, grid_name: str) -> None:
    """Under the submission lock: make Dora's new links relative, and remember what was launched."""
    main = shepherd.main
    try:
        mend_links(_folder(main, grid_name), main.dora.xps)
        if shepherd.decided:
            members = members_of(_entry(shepherd, sig) for sig in shepherd.decided)
            remember(Path(main.dora.dir), grid_name, members, list(shepherd.members))
    except OSError as error:
        shepherd.log(f"Could not write down what was launched: {error}")


def _folder(main: DecoratedMain, grid_name: str) -> Path:
    return Path(main.dora.dir) / main.dora._grids / grid_name


@contextlib.contextmanager
def _before_watching(call: Callable[[], object]) -> Iterator[None]:
    """Within this block, call something when all is launched and Dora begins to show the table."""
    usual = dora.grid.monitor

    def monitor(*arguments: Any) -> bool:
        call()
        return bool(usual(*arguments))

    dora.grid.monitor = monitor  # type: ignore[assignment]
    try:
        yield
    finally:
        dora.grid.monitor = usual


@contextlib.contextmanager
def _shepherds(seen: Callable[[GridShepherd], object]) -> Iterator[None]:
    """Show each shepherd that Dora makes within this block."""
    usual = dora.grid.Shepherd

    def make(main: DecoratedMain, log: Callable[[str], None] = no_log) -> GridShepherd:
        shepherd = GridShepherd(main, log)
        seen(shepherd)
        return shepherd

    dora.grid.Shepherd = make  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        dora.grid.Shepherd = usual  # type: ignore[misc]
