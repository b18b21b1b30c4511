"""`dora grid`: decides about the experiments of a grid, then plans (`--dry_run`), or submits and watches them.

The links `<dora.dir>/grids/<grid>/<sig>` to experiments are relative, so that the Dora folder may be moved. One command
at a time launches a grid, under a lock of its own; many may watch it.
"""

import contextlib
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dora.grid
from dora.conf import SlurmConfig, SubmitRules
from dora.explore import Explorer, Herd
from dora.grid import RunGridArgs, log
from dora.main import DecoratedMain
from dora.shep import Sheep, no_log
from dora.utils import reliable_rmtree

from audiotok.errors import ConfigError, LaunchError
from audiotok.experiments.disk import experiment_bytes
from audiotok.launchers.decide import Action, Decision
from audiotok.launchers.grid_file import explore, grid_names, load_explorer
from audiotok.launchers.links import linked, write_links, write_readable_links
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.needs import WAITS, set_waiting, waiting_in
from audiotok.launchers.plan import Entry, Plan, make_plan, plan_text, remember
from audiotok.launchers.profile import ProfileLauncher
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import GridShepherd, detect
from audiotok.launchers.table import monitor, names_of
from audiotok.launchers.watch import again, follow, watch

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})
_Log = Callable[[str], None]


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
        ConfigError: if patterns or flags select nothing.
        LaunchError: if something could not be submitted or cancelled, or the Dora folder cannot be written.
    """
    args = args or RunGridArgs()
    if args.dry_run and args.clear:
        raise ConfigError("--dry_run and --clear exclude each other; leave one out.")
    grid = _Grid(main, explorer, grid_name, slurm, args, no_log if args.dry_run else log)
    if args.dry_run:
        grid.decide(rules)
        if not args.silent:
            print(plan_text(grid.plan()))  # noqa: T201
        if args.init:
            grid.init()
        return grid.sheeps
    if args.clear:
        grid.confirm_clear()
    try:
        with grid.lock.hold():
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
    if grid.failures:
        raise LaunchError(" ".join(grid.failures))
    return grid.sheeps


def plan_grid(
    main: DecoratedMain, explorer: Explorer, grid_name: str, rules: SubmitRules, slurm: SlurmConfig, args: RunGridArgs
) -> Plan:
    """What `run_grid` with the same arguments would do; nothing is submitted, cancelled or written."""
    grid = _Grid(main, explorer, grid_name, slurm, replace(args, dry_run=True), no_log)
    grid.decide(rules)
    return grid.plan()


def get_explorer(args: Any, main: DecoratedMain) -> Any:
    """The explorer of a grid; without `args.grid` list the grids and exit.

    Raises:
        ConfigError: see `load_explorer`.
    """
    if args.grid is None:
        print(*grid_names(main), sep="\n")  # noqa: T201
        sys.exit(0)
    return load_explorer(main, args.grid)


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
        self.cancels: list[GridSheep] = []  # whose jobs `launch` cancels, also such that have left the file
        self.gone: list[GridSheep] = []  # linked in its folder, but no longer in its file
        self.unlinked: list[str] = []  # links that `launch` removes, with those of `gone` whose jobs have ended
        self.held: dict[str, str] = {}  # the other grids that hold an experiment, by signature
        self.waiting: set[str] = set()  # experiments that any command was to submit, and that wait
        self.failures: list[str] = []  # what could not be cancelled
        self.idle: list[str] = []  # overrides that do nothing
        # Without Dora's pool of processes for entry points that are slow to compose: ours are not.
        explore(explorer, name, ProfileLauncher(self.shepherd, slurm or main.get_slurm_config(), self.herd))
        self.root = Path(main.dora.dir)
        self.folder = self.root / main.dora._grids / name  # of its links
        self.lock = SubmitLock(self.root / "locks" / f"grid.{name}", log=log)
        every = list(self.herd.sheeps.values())
        try:
            self.sheeps: list[Any] = dora.grid._filter_grid_sheeps(list(args.patterns), main, every)
        except IndexError as error:
            raise ConfigError(f"{name} has {len(every)} experiments, which count from 0: {args.patterns}.") from error
        count = len(self.sheeps)
        if args.patterns and not count:
            advice = f"`audiotok plan {name} --all` lists them"
            raise ConfigError(f"none of the {len(every)} experiments of {name} matches {args.patterns}; {advice}.")
        for flag in ("trim", "folder", "log", "tail"):
            index = getattr(args, flag)
            if index is not None and count and not -count <= index < count:
                raise ConfigError(f"--{flag} {index}: there are {count} experiments, which count from 0.")

    def confirm_clear(self) -> None:
        """Name what `clear` deletes; from the command line, exit unless that is confirmed."""
        held = self._held_elsewhere()
        count = sum(sheep.xp.sig not in held for sheep in self.sheeps)
        self.log(f"--clear cancels {count} experiments of {self.name} and deletes their folders for good.")
        for sheep in self.sheeps:
            if other := held.get(sheep.xp.sig):
                self.log(f"It leaves what is also of {other}: {self.shepherd.title(sheep)}")
        if self.args._from_commandline and not _confirmed("Delete them? [y/N] "):
            self.log("Not confirmed; nothing was changed.")
            sys.exit(1)

    def clear(self) -> None:
        """Cancel jobs and delete the folders of experiments, but for those that another grid holds."""
        self.shepherd.update(repair=True)
        held = self._held_elsewhere()
        sheeps = [sheep for sheep in self.sheeps if sheep.xp.sig not in held]
        for sheep in sheeps:
            if not sheep.is_done():
                self.shepherd.cancel_lazy(sheep=sheep)
        self.failures += self.shepherd.carry_out()
        for sheep in sheeps:
            sheep.reload()
            if not sheep.is_done():
                self.log(f"Not deleted, as job {sheep.current_job_id} still runs: {self.shepherd.title(sheep)}")
                continue
            if sheep.xp.folder.exists():
                reliable_rmtree(sheep.xp.folder)
            sheep.job = None

    def decide(self, rules: SubmitRules | None) -> None:
        """Decide which experiments are submitted with the next commit, and which are cancelled."""
        self._find_gone()
        self.held, self.waiting = self._held_elsewhere(), waiting_in(self.root, self.name)
        self.shepherd.update(repair=not self.args.dry_run)
        if not self.args.cancel:
            selected = {sheep.xp.sig: sheep for sheep in self.sheeps}
            for sigs in self.herd.job_arrays:
                some = [selected[sig] for sig in sigs if sig in selected]
                if not some:  # not selected, or all of it stands in an array before
                    continue
                slurm = self.herd.slurm_configs[some[0].xp.sig]
                with self.shepherd.job_array(slurm) if len(some) > 1 else contextlib.nullcontext():
                    for sheep in some:
                        own = rules or SubmitRules()
                        if sheep.xp.sig in self.waiting:  # it was decided before that its job is replaced
                            own = replace(own, retry=True)
                        self.shepherd.maybe_submit_lazy(sheep, slurm, own)
        self.idle = self.shepherd.check_requests()
        for line in self.idle:
            self.log(f"Note: {line}")
        for sheep in [*self.gone, *(self.sheeps if self.args.cancel else [])]:
            left, other = sheep.xp.sig not in self.herd.sheeps, self.held.get(sheep.xp.sig)
            what, title = f"job {sheep.current_job_id}", self.shepherd.title(sheep)
            if sheep.is_done():
                continue
            if left and other:  # only what no grid holds any more is cancelled without being named
                self.log(f"Left alone: {what} is no longer of this grid, but of {other}, too: {title}")
                continue
            self.shepherd.cancel_lazy(sheep=sheep)
            self.cancels.append(sheep)
            why = ", no longer in the grid" if left else f" (also of {other})" if other else ""
            self.log(f"Canceling {what}{why}: {title}")

    def _entries(self) -> list[Entry]:
        names, base = names_of(self.main, [sheep.xp for sheep in self.sheeps])
        pairs = zip(self.sheeps, names, strict=True)
        return [self._entry(one, one.decision, f"{base} {name}".strip()) for one, name in pairs if one.decision]

    def plan(self) -> Plan:
        """What `launch` would do."""
        cancelled = Decision(Action.CANCEL, "cancelled as requested" if self.args.cancel else "no longer in the grid")
        left = [self._entry(sheep, cancelled, self.main.get_name(sheep.xp)) for sheep in self.cancels]
        plan = make_plan(self.root, self.name, detect(os.environ), self._entries() + left, self.herd.sheeps)
        return replace(plan, idle=self.idle)

    def launch(self) -> None:
        """Link the experiments, cancel and submit, and record what was launched; called under the lock of the grid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_links(self.folder, self.main.dora.xps, [sheep.xp.sig for sheep in self.sheeps])
        self.failures += self.shepherd.carry_out()
        over = [sheep.xp.sig for sheep in self.gone if sheep.is_done() or sheep.xp.sig in self.held]
        for sig in [*self.unlinked, *over]:  # what could not be cancelled stays, for the next launch to cancel it
            (self.folder / sig).unlink(missing_ok=True)
        self._name_links()
        selected = {sheep.xp.sig for sheep in self.sheeps}
        if self.args.cancel and (count := len(self.waiting & selected)):
            self.log(f"{count} that wait are not submitted any more.")
        if self.shepherd.rest:
            self.log(f"{self.shepherd.no_room}: `dora grid {self.name}` sends them as jobs end.")
        try:
            if entries := self._entries():
                remember(self.root, self.name, entries, self.herd.sheeps)
            others = (self.waiting & self.herd.sheeps.keys()) - selected
            set_waiting(self.root, self.name, others | self.shepherd.rest.keys())
        except OSError as error:
            self.log(f"Could not write down what was launched: {error}")
        if self.args.init:
            self.init()

    def _send_rest(self) -> None:
        """Submit what found no room, if there may be some now and no other command has done so or cancelled it."""
        if not self.shepherd.may_have_room():
            return
        with self.lock.try_hold() as held:
            if not held:
                return
            waiting, tried = waiting_in(self.root, self.name), set(self.shepherd.rest)
            try:
                failures = self.shepherd.submit_rest(waiting)
                set_waiting(self.root, self.name, (waiting - tried) | self.shepherd.rest.keys())
            except (LaunchError, OSError) as error:  # the watch goes on, and so does the wait
                failures = [str(error)]
        for failure in failures:
            self.log(failure)

    def init(self) -> None:
        """Make the folders of experiments, so that their signatures can be used."""
        for sheep in self.sheeps:
            self.main.init_xp(sheep.xp)

    def show(self) -> None:
        """Show the folder or the log of one experiment, or watch all."""
        indices = [index for index in (self.args.folder, self.args.log, self.args.tail) if index is not None]
        for failure in self.failures:
            self.log(failure)
        if not self.sheeps:
            self.log(f"{self.name} has no experiments.")
        elif not indices:
            try:
                self._watch()
            except KeyboardInterrupt:
                api = shlex.join(["dora", "grid", self.name, *self.args.patterns])
                command = again() if self.args._from_commandline else api
                count = len(self.shepherd.rest)
                rest = f" and sends the {count} that are not submitted yet" if count else ""
                self.log(f"The jobs go on; `{command}` watches them again{rest}, `{command} -C` cancels them.")
                sys.exit(130)  # as of a shell after Ctrl-C
        elif self.args._from_commandline:
            self._show_one(indices[0])
        else:
            raise RuntimeError("folder, log and tail are for the command line.")

    def _show_one(self, index: int) -> None:
        sheep = self.sheeps[index]
        if self.args.folder is not None:
            print(sheep.xp.folder)  # noqa: T201
        elif sheep.log is None or not sheep.log.exists():
            raise LaunchError(f"{self.shepherd.title(sheep)} has no log yet: {sheep.log or 'it was not submitted'}.")
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

    def _name_links(self) -> None:
        """Link experiments by what sets them apart, too; of what left the grid the signature alone is there."""
        xps = [sheep.xp for sheep in self.herd.sheeps.values()]
        try:
            names, _ = names_of(self.main, xps, whole=True)
            named = {xp.sig: name for xp, name in zip(xps, names, strict=True)}
            write_readable_links(self.folder, self.main.dora.xps, named)
        except Exception as error:  # such as the damaged file of an experiment that is not selected; all is submitted
            self.log(f"No links by parameters in {self.folder}: {error}")

    def _update(self) -> bool:
        """Query the engines and send what waits for room; returns whether one is to be spared."""
        spare = self.shepherd.update()
        self._send_rest()
        return spare

    def _find_gone(self) -> None:
        """Find the experiments that are linked in its folder but not in its file any more, and that patterns select."""
        patterns = list(self.args.patterns)
        if any(pattern.strip().lstrip("+-").isdecimal() for pattern in patterns):
            return  # indices are of what is in the file
        for name in sorted(linked(self.folder) - self.herd.sheeps.keys()):
            try:
                self.gone.append(self.shepherd.get_sheep_from_sig(name))
            except Exception as error:  # without a job, of a configuration that can no longer be composed
                self.log(f"Cannot load experiment {name}, which left the grid: {error}")
                self.unlinked += [] if patterns else [name]
        self.gone = dora.grid._filter_grid_sheeps(patterns, self.main, self.gone)  # type: ignore[assignment,arg-type]

    def _held_elsewhere(self) -> dict[str, str]:
        """The other grids whose folders link an experiment, by its signature: `grid a` or `grids a, b`."""
        found: dict[str, list[str]] = {}
        folders = sorted(self.folder.parent.iterdir()) if self.folder.parent.is_dir() else []
        for folder in folders:
            for sig in linked(folder) if folder.name != self.name else ():
                found.setdefault(sig, []).append(folder.name)
        return {sig: f"grid{'s' * (len(names) > 1)} {', '.join(names)}" for sig, names in found.items()}

    def _entry(self, sheep: GridSheep, decision: Decision, name: str) -> Entry:
        if decision.action.submits and sheep.xp.sig in self.waiting and not decision.needs:
            decision = replace(decision, reason="; ".join(filter(None, (decision.reason, WAITS))))
        profile, xp = None if decision.action is Action.CANCEL else sheep.profile, sheep.xp
        values = getattr(xp, "frozen_values", None)  # Dora's own experiments have none
        size = experiment_bytes(values()) if values and decision.action.submits else None
        return Entry(xp.sig, name, Path(xp.folder), sheep.state() or "", decision, profile, size)


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # without a terminal
        return False
