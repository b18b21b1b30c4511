"""`dora grid`: decides about the experiments of a grid, then plans (`--dry_run`), or submits and watches them.

The links `<dora.dir>/grids/<grid>/<sig>` to experiments are relative, so that the Dora folder may be moved. One command
at a time launches a grid, under a lock of its own; many may watch it.
"""

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dora.grid
from dora.conf import SlurmConfig, SubmitRules
from dora.explore import Explorer, Herd
from dora.grid import RunGridArgs, log
from dora.log import colorize, fatal
from dora.main import DecoratedMain
from dora.shep import Sheep, no_log
from dora.utils import import_or_fatal, reliable_rmtree

from audiotok.errors import ConfigError, LaunchError
from audiotok.experiments.disk import experiment_bytes
from audiotok.files import module_names, write_symlink
from audiotok.launchers.decide import Action, Decision
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.plan import Entry, Plan, make_plan, plan_text, remember
from audiotok.launchers.profile import ProfileLauncher
from audiotok.launchers.shepherd import GridSheep, GridShepherd, detect
from audiotok.launchers.table import monitor

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})
_Log = Callable[[str], None]
_POOL = 4  # processes that compose experiments, for an entry point that calls itself slow
_get_dora_explorer = dora.grid._get_explore  # before `launchers.dora_patches` replaces it by ours


def run_grid(
    main: DecoratedMain,
    explorer: Explorer,
    grid_name: str,
    rules: SubmitRules | None = None,
    slurm: SlurmConfig | None = None,
    args: RunGridArgs | None = None,
) -> list[Sheep]:
    """Run a grid, with the arguments and the result of Dora's function of this name; a dry run prints its plan.

    Raises:
        LaunchError: if something could not be submitted, or the Dora folder cannot be written.
    """
    args = args or RunGridArgs()
    if args.dry_run:
        if args.clear:
            fatal("--dry_run and --clear exclude each other.")
        grid = _Grid(main, explorer, grid_name, slurm, args, no_log)
        grid.decide(rules)
        if not args.silent:
            print(plan_text(grid.plan()))  # noqa: T201
        if args.init:
            grid.init()
        return grid.sheeps
    try:
        with SubmitLock(Path(main.dora.dir) / "locks" / f"grid.{grid_name}", log=log).hold():
            grid = _Grid(main, explorer, grid_name, slurm, args, log)
            if args.clear:
                grid.clear()
            grid.decide(rules)
            grid.launch()
        if not args.cancel:
            grid.show()
    except OSError as error:
        if error.errno not in _DISK:
            raise
        advice = "make room or correct it, and try again."
        raise LaunchError(f"cannot write to {main.dora.dir} ({error}); {advice}") from error
    return grid.sheeps


def plan_grid(
    main: DecoratedMain, explorer: Explorer, grid_name: str, rules: SubmitRules, slurm: SlurmConfig, args: RunGridArgs
) -> Plan:
    """What `run_grid` with the same arguments would do; nothing is submitted, cancelled or written."""
    grid = _Grid(main, explorer, grid_name, slurm, args, no_log)
    grid.decide(rules)
    return grid.plan()


def get_explorer(args: Any, main: DecoratedMain) -> Any:
    """Find the explorer of a grid as Dora does, but refuse an unknown name (Dora then exits with 0).

    Raises:
        ConfigError: if there is no such grid; the message lists those there are.
    """
    package = main.dora.grid_package or f"{main.package}.grids"
    if args.grid is not None:
        known = module_names(Path(import_or_fatal(package).__file__).parent)
        if args.grid not in known:
            names = ", ".join(known) or "none yet"
            raise ConfigError(f"no grid {args.grid!r} in package {package}; choose one of: {names}.")
    return _get_dora_explorer(args, main)  # type: ignore[no-untyped-call]


class _Grid:
    """The experiments of a grid, and what is done about them; messages for the user go to `log`."""

    def __init__(
        self,
        main: DecoratedMain,
        explorer: Explorer,
        name: str,
        slurm: SlurmConfig | None,
        args: RunGridArgs,
        log: _Log,
    ) -> None:
        assert isinstance(explorer, Explorer)
        self.main, self.explorer, self.name, self.args, self.log = main, explorer, name, args, log
        self.shepherd, self.herd = GridShepherd(main, log), Herd()  # the herd: all experiments of the grid file
        self.cancels: list[GridSheep] = []  # whose jobs the next commit cancels, also such that have left the file
        with ProcessPoolExecutor(_POOL) if main._slow else contextlib.nullcontext() as pool:
            explorer(ProfileLauncher(self.shepherd, slurm or main.get_slurm_config(), self.herd, pool=pool))
            self.herd.complete()
        self.folder = Path(main.dora.dir) / main.dora._grids / name  # of its links
        every = list(self.herd.sheeps.values())
        try:
            self.sheeps: list[Any] = dora.grid._filter_grid_sheeps(list(args.patterns), main, every)
        except IndexError as error:
            raise ConfigError(f"{name} has {len(every)} experiments, which count from 0: {args.patterns}.") from error
        if args.trim is not None and self.sheeps and not -len(self.sheeps) <= args.trim < len(self.sheeps):
            raise ConfigError(f"--trim {args.trim}: there are {len(self.sheeps)} experiments, which count from 0.")

    def clear(self) -> None:
        """Cancel all jobs and delete the folders of experiments, from the command line after a confirmation."""
        self.log(f"--clear cancels {len(self.sheeps)} experiments of {self.name} and deletes their folders for good.")
        if self.args._from_commandline and not _confirmed("Delete them? [y/N] "):
            fatal("Not confirmed; nothing was changed.")
        for sheep in self.sheeps:
            self.shepherd.cancel_lazy(sheep=sheep)
        self.shepherd.commit()
        for sheep in self.sheeps:
            if sheep.xp.folder.exists():
                reliable_rmtree(sheep.xp.folder)
            sheep.job = None

    def decide(self, rules: SubmitRules | None) -> None:
        """Decide which experiments are submitted with the next commit, and which are cancelled."""
        left = self._left()
        self.shepherd.update()
        if not self.args.cancel:
            selected = {sheep.xp.sig: sheep for sheep in self.sheeps}
            for sigs in self.herd.job_arrays:
                some = [selected[sig] for sig in sigs if sig in selected]
                if not some:  # not selected, or all of it stands in an array before
                    continue
                slurm = self.herd.slurm_configs[some[0].xp.sig]
                with self.shepherd.job_array(slurm) if len(some) > 1 else contextlib.nullcontext():
                    for sheep in some:
                        self.shepherd.maybe_submit_lazy(sheep, slurm, rules or SubmitRules())
        reasons = [(sheep, ", no longer in the grid") for sheep in left]
        reasons += [(sheep, "") for sheep in self.sheeps] if self.args.cancel else []
        for sheep, reason in reasons:
            if not sheep.is_done():
                self.shepherd.cancel_lazy(sheep=sheep)
                self.cancels.append(sheep)
                self.log(f"Canceling job {sheep.current_job_id}{reason}: {self.shepherd.title(sheep)}")

    def _entries(self) -> list[Entry]:
        return [self._entry(sheep, sheep.decision) for sheep in self.sheeps if sheep.decision is not None]

    def plan(self) -> Plan:
        """What `launch` would do."""
        cancelled = Decision(Action.CANCEL, "cancelled as requested" if self.args.cancel else "no longer in the grid")
        entries = self._entries() + [self._entry(sheep, cancelled) for sheep in self.cancels]
        return make_plan(Path(self.main.dora.dir), self.name, detect(os.environ), entries, self.herd.sheeps)

    def launch(self) -> None:
        """Link the experiments, cancel and submit, and record what was launched; called under the lock of the grid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        gone = [self.folder / name for name in _links(self.folder) - self.herd.sheeps.keys()]
        _write_links(self.folder, self.main.dora.xps, [sheep.xp.sig for sheep in self.sheeps])
        self.shepherd.commit()
        for link in gone:
            link.unlink(missing_ok=True)
        try:
            if entries := self._entries():
                remember(Path(self.main.dora.dir), self.name, entries, self.herd.sheeps)
        except OSError as error:
            self.log(f"Could not write down what was launched: {error}")
        if self.args.init:
            self.init()

    def init(self) -> None:
        """Make the folders of experiments, so that their signatures can be used."""
        for sheep in self.sheeps:
            self.main.init_xp(sheep.xp)

    def show(self) -> None:
        """Show the folder or the log of one experiment, or watch all."""
        indices = [index for index in (self.args.folder, self.args.log, self.args.tail) if index is not None]
        if not self.sheeps:
            self.log("No experiment of this grid is selected.")
        elif not indices:
            try:
                self._watch()
            except KeyboardInterrupt:
                command = f"dora grid {self.name}"
                self.log(f"The jobs are still there: `{command}` shows the table again, `{command} -C` cancels them.")
                sys.exit(130)  # as of a shell after Ctrl-C
        elif self.args._from_commandline:
            self._show_one(indices[0])
        else:
            raise RuntimeError("folder, log and tail are for the command line.")

    def _show_one(self, index: int) -> None:
        try:
            sheep = self.sheeps[index]
        except IndexError:
            fatal(f"No experiment {index}: there are {len(self.sheeps)}, from 0 on.")
        if self.args.folder is not None:
            print(sheep.xp.folder)  # noqa: T201
        elif sheep.log is None or not sheep.log.exists():
            fatal(f"{self.shepherd.title(sheep)} has no log yet: {sheep.log or 'it was not submitted'}.")
        elif self.args.tail is not None:
            os.execvp("tail", ["tail", "-n", "200", "-f", str(sheep.log)])
        else:
            with contextlib.suppress(BrokenPipeError), sheep.log.open() as file:
                shutil.copyfileobj(file, sys.stdout)

    def _watch(self) -> None:
        """Show the table every `interval` minutes until all experiments have ended; once without `monitor`."""
        args = self.args
        show: Callable[..., object] = (lambda *_, **__: None) if args.silent else partial(print, flush=True)
        show(f"Watching grid {self.name}")
        while True:
            if args.jupyter and not args.silent:
                from IPython import display

                display.clear_output(wait=True)  # type: ignore[no-untyped-call]
            self.shepherd.update()
            if monitor(args, self.main, self.explorer, self.sheeps, show) or not args.monitor:
                return
            show()
            for left in range(max(1, int(args.interval * 60)), 0, -1):
                text = f"again in {left} s       "
                if sys.stdout.isatty():  # no countdown in a pipe or a log
                    show(colorize(text, "31") if left < 10 else text, end="\r")
                time.sleep(1)
            show(" " * 60 if sys.stdout.isatty() else "")

    def _left(self) -> list[GridSheep]:
        """The experiments that are linked in its folder but not in its file any more."""
        left = []
        for name in sorted(_links(self.folder) - self.herd.sheeps.keys()):
            try:
                left.append(self.shepherd.get_sheep_from_sig(name))
            except Exception as error:  # without a job, of a configuration that can no longer be composed
                self.log(f"Cannot load experiment {name}, which left the grid: {error}")
        return left

    def _entry(self, sheep: GridSheep, decision: Decision) -> Entry:
        profile, xp = None if decision.action is Action.CANCEL else sheep.profile, sheep.xp
        values = getattr(xp, "frozen_values", None)  # Dora's own experiments have none
        size = experiment_bytes(values()) if values and decision.action.submits else None
        return Entry(xp.sig, self.main.get_name(xp), Path(xp.folder), sheep.state() or "", decision, profile, size)


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # without a terminal
        return False


def _links(folder: Path) -> set[str]:
    """Names of the links in the folder of a grid."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_symlink() and not entry.name.startswith(".")}


def _write_links(folder: Path, xps: str, sigs: Sequence[str]) -> None:
    """Link experiments by relative paths; links that are there, too, wherever they pointed before."""
    there = _links(folder)
    for name in there | set(sigs):
        link, target = folder / name, Path("../..", xps, name)
        if name not in there or link.readlink() != target:
            write_symlink(link, target)
