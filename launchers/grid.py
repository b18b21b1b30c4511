"""`dora grid`: decides about the experiments of a grid, then plans (`--dry_run`), or submits and watches them.

The links `<dora.dir>/grids/<grid>/<sig>` to experiments are relative, so that the Dora folder may be moved. One command
at a time launches a grid, under a lock of its own; many may watch it.
"""

import contextlib
import errno
import importlib
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dora.grid
from dora.conf import SlurmConfig, SubmitRules
from dora.explore import Explorer, Herd
from dora.grid import RunGridArgs, log
from dora.log import fatal
from dora.main import DecoratedMain
from dora.shep import Sheep, no_log
from dora.utils import import_or_fatal, reliable_rmtree

from audiotok.errors import AudiotokError, ConfigError, LaunchError
from audiotok.files import shown, write_symlink
from audiotok.launchers.decide import Action, Decision
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.plan import Entry, Plan, make_plan, plan_text, remember
from audiotok.launchers.profile import ProfileLauncher
from audiotok.launchers.shepherd import GridSheep, GridShepherd, detect
from audiotok.launchers.table import monitor, names_of
from audiotok.launchers.watch import again, follow, watch

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})
_Log = Callable[[str], None]
_POOL = 4  # processes that compose experiments, for an entry point that calls itself slow


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
    """The explorer of a grid; without `args.grid` list the grids and exit.

    Raises:
        ConfigError: if there is no such grid (the message lists those there are), or its file has a mistake.
    """
    package = main.dora.grid_package or f"{main.package}.grids"
    folder = Path(import_or_fatal(package).__file__).parent
    known = list_grids(folder)
    if args.grid is None:
        print(*known, sep="\n")  # noqa: T201
        sys.exit(0)
    if args.grid not in known:
        names = ", ".join(known) or "none yet"
        raise ConfigError(f"no grid {args.grid!r} in package {package}; choose one of: {names}.")
    with _blaming(folder, args.grid):
        module = importlib.import_module(f"{package}.{args.grid}")
    if not isinstance(explorer := getattr(module, "explorer", None), Explorer):
        found = "no `explorer`" if explorer is None else f"`explorer`, which is of the kind {type(explorer).__name__}"
        advice = "decorate its function `explorer(launcher)` with an Explorer, such as @CompressionExplorer"
        raise ConfigError(f"{shown(Path(str(module.__file__)))} has {found}; {advice}.")
    return explorer


@contextlib.contextmanager
def _blaming(folder: Path, name: str) -> Iterator[None]:
    """Make one line of a mistake in the file of a grid below a folder, with the line of the file."""
    try:
        yield
    except SyntaxError as error:
        file = Path(error.filename) if error.filename else folder / f"{name.replace('.', '/')}.py"
        line = f":{error.lineno}" if error.lineno else ""
        raise ConfigError(f"{shown(file)}{line}: it is not Python: {error.msg}.") from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder.resolve())]
        refused = Path(frames[-1].filename).parent == Path(dora.grid.__file__).parent  # by Dora's launcher
        is_of_user = isinstance(error, AudiotokError) or refused
        if not own or not (is_of_user or frames[-1] is own[-1]):
            raise  # a defect of ours or of another package
        place = f"{shown(Path(own[-1].filename))}:{own[-1].lineno}"
        text = str(error) if isinstance(error, AudiotokError) else f"{type(error).__name__}: {error}"
        raise ConfigError(text if place in text else f"{place}: {text}") from error


def list_grids(folder: Path) -> list[str]:
    """Return the dotted names of the grid files in a package, sorted; `_name.py` is not a grid."""
    files = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    return [".".join(path.parts) for path in files if not path.name.startswith("_")]


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
        code = getattr(explorer.explore, "__code__", None)
        with (
            _blaming(Path(code.co_filename).parent, name) if code else contextlib.nullcontext(),
            ProcessPoolExecutor(_POOL) if main._slow else contextlib.nullcontext() as pool,
        ):
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
        names, base = names_of(self.main, [sheep.xp for sheep in self.sheeps])
        pairs = zip(self.sheeps, names, strict=True)
        return [self._entry(one, one.decision, f"{base} {name}".strip()) for one, name in pairs if one.decision]

    def plan(self) -> Plan:
        """What `launch` would do."""
        cancelled = Decision(Action.CANCEL, "cancelled as requested" if self.args.cancel else "no longer in the grid")
        left = [self._entry(sheep, cancelled, self.main.get_name(sheep.xp)) for sheep in self.cancels]
        entries = self._entries() + left
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
                api = shlex.join(["dora", "grid", self.name, *self.args.patterns])
                command = again() if self.args._from_commandline else api
                self.log(f"The jobs go on; `{command}` watches them again, `{command} -C` cancels them.")
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
            follow(sheep.log, sheep.xp.sig)
        else:
            with contextlib.suppress(BrokenPipeError), sheep.log.open() as file:
                shutil.copyfileobj(file, sys.stdout)

    def _watch(self) -> None:
        """Show the table until all experiments have ended; once without `monitor`."""
        if not self.args.silent:
            print(f"Watching grid {self.name}", flush=True)  # noqa: T201
        watch(self.args, self.sheeps, self._update, partial(monitor, self.args, self.main, self.explorer, self.sheeps))

    def _update(self) -> bool:
        """Query the engines; True if a scheduler of many users is among them."""
        self.shepherd.update()
        names = {sheep.job.record.engine for sheep in self.sheeps if sheep.job is not None}
        return any(getattr(self.shepherd.engines.get(name), "remote", True) for name in names)

    def _left(self) -> list[GridSheep]:
        """The experiments that are linked in its folder but not in its file any more."""
        left = []
        for name in sorted(_links(self.folder) - self.herd.sheeps.keys()):
            try:
                left.append(self.shepherd.get_sheep_from_sig(name))
            except Exception as error:  # without a job, of a configuration that can no longer be composed
                self.log(f"Cannot load experiment {name}, which left the grid: {error}")
        return left

    def _entry(self, sheep: GridSheep, decision: Decision, name: str) -> Entry:
        profile = None if decision.action is Action.CANCEL else sheep.profile
        return Entry(sheep.xp.sig, name, Path(sheep.xp.folder), sheep.state() or "", decision, profile)


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
