"""The shepherd of all launches: decides with `launchers.decide` what runs, and has an engine run it.

It replaces `dora.shep.Shepherd`. What it knows of a job is the `job.json` in the folder of the experiment (no pickles),
which also names the engine of the job. Submitting takes the submission lock of the Dora folder and decides again under
it: two users who launch the same grid at once get one job each experiment.
"""

import json
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dora.conf import SlurmConfig, SubmitRules
from dora.main import DecoratedMain
from dora.shep import Sheep, Shepherd, no_log
from dora.xp import XP

from audiotok.errors import ConfigError, LaunchError
from audiotok.experiments.frozen import FROZEN_FILE, Experiment, freeze, has_trained, retry_mode
from audiotok.experiments.schema import grouped, refuse
from audiotok.experiments.snapshot import Snapshot, take_snapshot
from audiotok.files import write_symlink
from audiotok.launchers.decide import Action, Decision, after, decide, previous_job
from audiotok.launchers.engine import Engine, Job, NoRoomError, Task, job_of
from audiotok.launchers.grid_file import grid_of
from audiotok.launchers.local.engine import LocalEngine
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.needs import extended_since, grids_waiting, needed_by
from audiotok.launchers.profile import Profile
from audiotok.launchers.sheep import GridSheep, SheepJob
from audiotok.launchers.slurm.engine import SlurmEngine
from audiotok.status import JOB_FILE, State, Verdict, experiment_state, read_json
from audiotok.status.judge import hold_up

LAUNCHER_VARIABLE = "AUDIOTOK_LAUNCHER"
ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (SlurmEngine, LocalEngine)}
"""All engines; by default a machine submits with the first one that it can submit with."""

ROOM_S = 60.0  # after so long there may be room again, though no job that is known here has ended
_SHOWN = 8  # experiments logged one by one as they are submitted
_DORAS_ENGINE = SlurmEngine.name  # has the jobs that Dora itself submitted, whose job.json names no engine


def detect(environ: Mapping[str, str]) -> str:
    """Name of the engine that this machine submits with.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER names no engine.
    """
    name = environ.get(LAUNCHER_VARIABLE, "").strip()
    if not name:
        return next(name for name, engine in ENGINES.items() if engine.detect(environ))
    if name not in ENGINES:
        known = ", ".join(sorted(ENGINES))
        raise ConfigError(f"{LAUNCHER_VARIABLE}={name!r} in the environment; choose one of: {known}.")
    return name


@dataclass
class _Request:
    """An experiment to decide about, and to submit if need be, with the next commit."""

    sheep: GridSheep
    profile: Profile
    rules: SubmitRules
    decision: Decision
    group: int  # of what may share an array
    job_id: str | None  # its latest job when that was decided: another one means that another command submitted it
    needs: dict[str, str] = field(default_factory=dict)  # ids of the jobs that it waits for in the queue, by signature

    @property
    def is_held(self) -> bool:
        """True if it needs others that it cannot wait for in the queue."""
        return len(self.needs) < len(self.decision.needs)


class GridShepherd(Shepherd):
    """Looks after the experiments of one Dora folder; messages for the user go to `log`."""

    def __init__(self, main: DecoratedMain, log: Callable[[str], None] = no_log) -> None:
        # Dora's own constructor makes folders for pickles and cancels what it takes for orphans.
        self.main, self.log = main, log
        self.lock = SubmitLock(Path(main.dora.dir) / "locks" / "submit", log=lambda text: self.log(text))
        self.engines: dict[str, Engine] = {name: engine.open(main, self.lock) for name, engine in ENGINES.items()}
        self.herd: weakref.WeakSet[GridSheep] = weakref.WeakSet()  # all sheep in use
        self._in_job_array, self._groups = False, 0
        self._requests: list[_Request] = []
        self._to_cancel: list[Any] = []
        self._updated: set[str] = set()  # engines that have been queried
        self._needed: dict[str, GridSheep] = {}  # what others need, by signature
        self._waiting: dict[str, str] | None = None  # `grids_waiting` as of the last update, if it was looked at
        self._asked: set[str] = set()  # experiments that this command submits next, or that it has in `rest`
        self.rest: dict[str, _Request] = {}  # what found no room, or waits for others, by signature
        self.no_room = ""  # why, and how many
        self._tried_at, self._lived = 0.0, 0  # when there was no room, and how many jobs lived then
        self._launches = False  # until the first commit of a launch nothing is started

    def get_sheep_from_argv(self, argv: Sequence[str]) -> GridSheep:
        """The experiment of these arguments."""
        assert not isinstance(argv, str)
        return GridSheep(self.main.get_xp(argv), self)

    def get_sheep_from_sig(self, sig: str) -> GridSheep:
        """The experiment of a signature, even one that today's configuration can no longer compose."""
        return GridSheep(_xp_of_sig(self.main, sig), self)

    def get_sheep_from_job_id(self, job_id: str) -> GridSheep | None:
        """The experiment of a job, None if there is no such job."""
        link = self._by_id / job_id
        return self.get_sheep_from_sig(link.readlink().name) if link.is_symlink() else None

    def update(self, *names: str, repair: bool = False) -> bool:
        """Query once each engine that has jobs, and those named; read again which jobs there are.

        With `repair` engines also mend what dead commands left behind, and after a launch start what waits; else
        nothing is written, started or stopped.

        Returns:
            True if one of them is a scheduler of many users, which is to be spared.
        """
        self._waiting = None
        used = {self._engine_name(sheep.job.record) for sheep in self.herd if sheep.job is not None}
        queried = [name for name, engine in self.engines.items() if name in (*used, *names) or engine.has_open()]
        for name in queried:
            self._refresh(name, repair=repair or self._launches)
        if self._launches:
            self._resume()
        for sheep in list(self.herd):
            if sheep.job is not None or (sheep.xp.folder / JOB_FILE).exists():
                sheep.reload()
        return any(self.engines[name].remote for name in queried)

    def verdict(self, job: Job) -> Verdict:
        """State and reason of a job as of the last query of its engine; queries it if there was none."""
        name = self._engine_name(job)
        if name not in self._updated:
            self._refresh(name)
            job = job_of(job.folder) or job  # the query may have recorded more of it
        return self.engines[name].verdict(job)

    def needs(self, xp: XP) -> dict[str, Verdict]:
        """States of the experiments whose checkpoints an experiment names (`continue_from=//sig/SIG`), by signature."""
        sigs = needed_by(xp.argv)
        for sig in sigs:
            if sig not in self._needed:
                self._needed[sig] = GridSheep(_bare_xp(self.main, sig, [], []), self)
        return {sig: self._state_needed(self._needed[sig]) for sig in sigs}

    def _state_needed(self, sheep: GridSheep) -> Verdict:
        found = sheep.verdict() or experiment_state(sheep.xp.folder)
        if found is not None and not found.state.failed and found.state is not State.EXTENDED:
            return found
        sig, root = sheep.xp.sig, Path(self.main.dora.dir)
        if sig in self._asked:
            return Verdict(State.WAITING, "to be submitted")
        self._waiting = grids_waiting(root) if self._waiting is None else self._waiting
        if grid := self._waiting.get(sig):
            return Verdict(State.WAITING, f"for `dora grid {grid}` to send it")
        grids = sorted((root / self.main.dora._grids).glob("*"))
        grid = grid_of(sig) or next((folder.name for folder in grids if (folder / sig).is_symlink()), "")
        return found or Verdict(State.NOT_STARTED, f"needs `dora grid {grid}` first" if grid else "")

    @contextmanager
    def job_array(self, slurm_config: SlurmConfig) -> Iterator[None]:
        """What is submitted within this block goes out in arrays of its own."""
        assert not self._in_job_array
        self._in_job_array, self._groups = True, self._groups + 1
        try:
            yield
        finally:
            self._in_job_array = False

    def maybe_submit_lazy(self, sheep: Sheep, slurm_config: SlurmConfig, rules: SubmitRules) -> None:
        """Decide whether an experiment is submitted with the next `commit`."""
        assert isinstance(sheep, GridSheep)
        sheep.profile = Profile.of(slurm_config)
        sheep.decision = self._decide(sheep, sheep.profile, rules)
        if sheep.decision.action.submits:
            self._asked.add(sheep.xp.sig)
        group = self._groups if self._in_job_array else 0
        self._requests.append(_Request(sheep, sheep.profile, rules, sheep.decision, group, sheep.current_job_id))

    def cancel_lazy(self, job: Any = None, dependent_jobs: Sequence[Any] = (), sheep: Sheep | None = None) -> None:
        """Cancel a job with the next `commit`."""
        assert (job is None) != (sheep is None)
        if job := job or (sheep and sheep.job):
            self._to_cancel.append(job)

    def commit(self) -> None:
        """`carry_out` for Dora's commands, to which all that is not done is an error.

        Raises:
            NoRoomError: if something found no room.
            LaunchError: if something could not be cancelled or submitted; what could is recorded.
        """
        requests = self._requests
        if failures := self.carry_out():
            raise LaunchError(" ".join(failures))
        held = [one for one in (request.sheep.held() for request in requests) if one is not None]
        if blocked := [one.reason for one in held if one.state is State.BLOCKED]:
            raise LaunchError(f"not submitted: it {blocked[0]}.")
        if self.rest:
            raise NoRoomError(f"{self.no_room}; the same command submits the rest as jobs end.")

    def carry_out(self) -> list[str]:
        """Cancel and submit what was requested since the last time; `rest` is what found no room.

        Returns:
            A line for each engine with jobs that could not be cancelled.

        Raises:
            LaunchError: if something could not be submitted; what was is recorded.
        """
        self.check_requests()
        cancels = [job.record for job in self._to_cancel if isinstance(job, SheepJob)]
        requests, self._to_cancel, self._requests = self._requests, [], []
        blocked = [request for request in requests if request.decision.action is Action.BLOCKED]
        for reason, count in list(Counter(one.decision.reason for one in blocked).items())[:_SHOWN]:
            first = next(one.sheep for one in blocked if one.decision.reason == reason)
            what = "Not submitted" if first.job is None else "Not retried"
            self.log(f"{what}: {self.title(first)}{f' and {count - 1} more' * (count > 1)}: {reason}")
        launches = bool(requests)
        requests = [request for request in requests if request.decision.action.submits]
        if requests and self.main.dora.git_save:
            raise ConfigError("dora.git_save=true: leave it out; jobs run a snapshot of the code anyway.")
        failures: list[str] = []
        if cancels or requests:
            with self.lock.hold():
                failures = self._stop(cancels)
                try:
                    if requests:
                        self._submit_requests(self.engines[detect(os.environ)], requests, failures)
                except LaunchError as error:
                    raise LaunchError(" ".join([*failures, str(error)])) from error
                finally:
                    self._asked = set(self.rest)
        if launches:
            self._launches = True
            self._resume()
        return failures

    def check_requests(self) -> list[str]:
        """Refuse to submit experiments whose settings cannot be used; what has trained runs as it is frozen.

        Returns:
            A line for each override that does nothing.

        Raises:
            ConfigError: listing the settings, and what experiments have them.
        """
        sheeps = [one.sheep for one in self._requests if one.decision.action.submits]
        found = [(one, one.xp.checked) for one in sheeps if isinstance(one.xp, Experiment) and not _goes_on(one.xp)]
        refuse(grouped(((self.title(one), line) for one, checked in found for line in checked.faults), len(found)))
        return grouped(((self.title(one), line) for one, checked in found for line in checked.idle), len(found))

    def may_have_room(self) -> bool:
        """True if something waits that may go out by now: a job or what it needs has ended, or time has passed."""
        waited = time.monotonic() - self._tried_at > ROOM_S
        if self.rest and (waited or self._count_live() < self._lived):
            return True
        held = [hold_up(self.needs(one.sheep.xp)) for one in self.rest.values() if one.is_held]
        return any(one is None or one.state is State.BLOCKED for one in held)

    def submit_rest(self, sigs: Container[str]) -> list[str]:
        """Like `carry_out`, for what found no room; of these experiments only: the others wait no longer.

        Raises:
            LaunchError: if something could not be submitted; what was is recorded, the rest waits on.
        """
        self.rest = {sig: request for sig, request in self.rest.items() if sig in sigs}
        for request in self.rest.values():  # a job that it replaces may have been cancelled
            request.rules = replace(request.rules, retry=True)
        self._requests = list(self.rest.values())
        self._tried_at = time.monotonic()  # also if this fails
        return self.carry_out()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Stop jobs now and wait for their end.

        Raises:
            LaunchError: naming those that could not be stopped.
        """
        with self.lock.hold():
            failures = self._stop(jobs)
        if failures:
            raise LaunchError(" ".join(failures))

    def requeue(self, sigs: Iterable[str]) -> list[str]:
        """Stop the running jobs of experiments with a checkpoint and queue them again; pending ones stay as they are.

        Returns:
            The ids of the jobs that ran.

        Raises:
            ConfigError: if there is no experiment of a signature.
            LaunchError: if a job does not run, or cannot be requeued.
        """
        jobs = {sig: job_of(self.get_sheep_from_sig(sig).xp.folder) for sig in dict.fromkeys(sigs)}
        self.update()
        running = []
        for sig, job in jobs.items():
            state = None if job is None else self.verdict(job).state
            if job is None or state is None or not state.live:
                advice = "only a job that runs can be queued again (`dora grid --retry`)"
                raise LaunchError(f"{sig} has {state or 'no job'}; {advice}.")
            if state is not State.PENDING:
                running.append(job)
        for name, some in self._by_engine(running).items():
            self.engines[name].requeue(some)
        return [job.job_id for job in running]

    def title(self, sheep: GridSheep) -> str:
        """Signature and name of an experiment, for messages."""
        return f"{sheep.xp.sig}/{self.main.get_name(sheep.xp)}"

    def find_moved(self, path: Path) -> Path:
        """Where a file of this Dora folder is now: the folder may have been moved since its path was written down."""
        moved = (Path(self.main.dora.dir).joinpath(*path.parts[place:]) for place in range(1, len(path.parts) - 1))
        return path if path.exists() else next((one for one in moved if one.parent.exists()), path)

    def _submit_requests(self, engine: Engine, requests: Sequence[_Request], failures: list[str]) -> None:
        """Decide again, stop jobs to replace, and submit what need not wait for others; called under the lock.

        What could not be stopped is added to `failures`.
        """
        self.update(engine.name, repair=True)
        if engine.failure:
            advice = "wait, or run it here with AUDIOTOK_LAUNCHER=local"
            why = f"{engine.name.upper()} does not answer ({engine.failure})"
            raise LaunchError(f"{why}; nothing was submitted: {advice}.")
        left = [request for request in requests if self._is_due(request)]
        for request in left:
            request.needs = self._jobs_needed(engine, request)
        # Before anything is stopped, as it may be refused.
        keeps = any(one.profile.code == "snapshot" and not one.is_held for one in left)
        code = take_snapshot(self.main, self.log) if keeps else None
        replaced = [one.sheep.job.record for one in left if one.sheep.job and not one.sheep.is_done()]
        if replaced:
            failures += self._stop(replaced)
            left = [request for request in left if self._has_ended(request.sheep)]
        self.rest = {request.sheep.xp.sig: request for request in left}
        why = self._submit_groups(engine, [request for request in left if not request.is_held], code)
        if self.rest:
            held = sum(request.is_held for request in self.rest.values())
            room = len(self.rest) - held
            counts = [f"{len(left) - len(self.rest)} of {len(left)} are submitted"]
            counts += [f"{room} wait for room"] * bool(room) + [f"{held} wait for others"] * bool(held)
            self.no_room = why + ", ".join(counts)
            self._tried_at, self._lived = time.monotonic(), self._count_live()

    def _submit_groups(self, engine: Engine, requests: Sequence[_Request], code: Snapshot | None) -> str:
        """Submit together what requests the same; returns why something found no room, as a sentence."""
        groups: dict[str, list[_Request]] = {}
        for request in requests:  # what requests the same resources may share an array
            key = [request.group, request.decision.mem_factor, asdict(request.profile), request.needs]
            groups.setdefault(json.dumps(key, default=str), []).append(request)
        for text, number in Counter(str(one.decision.change) for one in requests if one.decision.change).items():
            self.log(f"{text[0].upper()}{text[1:]} ({number} experiment{'s' * (number > 1)})")
        waiting, full = len(requests), dict[str, NoRoomError]()  # why, by queue
        for group in groups.values():
            waiting -= len(group)
            if group[0].profile.queue in full:
                continue
            try:
                self._submit_group(engine, group, code if group[0].profile.code == "snapshot" else None)
            except NoRoomError as error:
                full[group[0].profile.queue] = error
            except LaunchError as error:
                more = f" Nor were {waiting} that request other resources." if waiting else ""
                raise LaunchError(f"{error}{more}") from error
        return next((f"{str(error).rstrip('.')}. " for error in full.values()), "")

    def _jobs_needed(self, engine: Engine, request: _Request) -> dict[str, str]:
        """Ids of the jobs that it can wait for in the queue of an engine, by signature."""
        can_wait_for: Callable[[Job, Profile], bool] = getattr(engine, "can_wait_for", lambda job, profile: False)
        jobs = {sig: self._needed[sig].job for sig in request.decision.needs}
        return {sig: job.job_id for sig, job in jobs.items() if job and can_wait_for(job.record, request.profile)}

    def _submit_group(self, engine: Engine, requests: Sequence[_Request], code: Snapshot | None) -> None:
        try:
            tasks = [_task(self.main, request, code) for request in requests]
        except OSError as error:
            none = f"none of these {len(requests)} was submitted"
            raise LaunchError(f"cannot write the folders of experiments ({error}); {none}.") from error
        try:
            engine.submit(tasks, requests[0].profile)
        finally:  # an engine that was refused may have submitted some
            sheeps = [request.sheep for request in requests if self._has_new_job(request)]
            for sheep in sheeps:
                self.rest.pop(sheep.xp.sig, None)
            for sheep in sheeps[:_SHOWN]:
                self.log(f"Submitted job {sheep.current_job_id}: {self.title(sheep)}")
            if len(sheeps) > _SHOWN:
                more, last = len(sheeps) - _SHOWN, sheeps[-1].current_job_id
                self.log(f"Submitted {more} more, the last of them as job {last}")

    def _is_due(self, request: _Request) -> bool:
        """Decide again; what another command has submitted meanwhile is left to it."""
        sheep, rules = request.sheep, request.rules
        sheep.reload()
        changed = sheep.current_job_id != request.job_id
        if changed:
            rules = SubmitRules()
        request.decision = sheep.decision = self._decide(sheep, request.profile, rules)
        if changed and sheep.job is not None and not request.decision.action.submits:
            user = sheep.job.record.content.get("user", "another user")
            self.log(f"{user} has submitted job {sheep.job.job_id}: {self.title(sheep)}")
        elif request.decision.action is Action.BLOCKED:
            self.log(f"Not submitted: {self.title(sheep)}: {request.decision.reason}")
        return request.decision.action.submits

    def _has_ended(self, sheep: GridSheep) -> bool:
        """True if the job before has ended: two jobs must not write into one folder."""
        sheep.reload()
        if sheep.is_done():
            return True
        self.log(f"Not submitted, as job {sheep.current_job_id} is still running: {self.title(sheep)}")
        return False

    def _has_new_job(self, request: _Request) -> bool:
        """True if it was submitted; its job is then linked by its id."""
        request.sheep.reload()
        job_id = request.sheep.current_job_id
        if job_id is None or job_id == request.job_id:
            return False
        link = self._by_id / job_id
        if not link.is_symlink():  # an engine that adopts jobs makes the link itself
            link.parent.mkdir(parents=True, exist_ok=True)
            write_symlink(link, Path("..") / self.main.dora.xps / request.sheep.xp.sig)
        return True

    def _decide(self, sheep: GridSheep, profile: Profile, rules: SubmitRules) -> Decision:
        verdict, change, force = sheep.verdict(), None, retry_mode(os.environ) == "force"
        extended = verdict is not None and verdict.state is State.EXTENDED
        # Spares reading the frozen files of a whole grid.
        stays = verdict is not None and not verdict.state.failed and not extended
        previous = {} if sheep.job is None else previous_job(sheep.xp.folder, failed=not (stays or extended))
        if hasattr(self.main, "change") and (not stays or rules.replace or rules.replace_done or rules.update):
            change = self.main.change(sheep.xp)
        decision = decide(verdict, rules, previous, profile, force=force, change=change)
        if decision.action is Action.REUSE and (lines := extended_since(sheep.xp.folder, needed_by(sheep.xp.argv))):
            return replace(decision, reason="; ".join(lines))
        if not (decision.action.submits or (verdict is not None and verdict.state is State.WAITING)):
            return decision
        needing = after(decision, self.needs(sheep.xp))
        return decision if force and needing.action is Action.BLOCKED else needing

    def _stop(self, jobs: Iterable[Job]) -> list[str]:
        """Stop jobs; returns a line for each engine with such that could not be stopped."""
        failures = []
        for name, some in self._by_engine(jobs).items():
            try:
                self.engines[name].cancel(some)
            except LaunchError as error:
                failures.append(str(error))
        return failures

    def _count_live(self) -> int:
        return sum(not sheep.is_done() for sheep in self.herd)

    def _engine_name(self, job: Job) -> str:
        return job.engine if job.engine in self.engines else _DORAS_ENGINE

    def _by_engine(self, jobs: Iterable[Job]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for job in jobs:
            found.setdefault(self._engine_name(job), []).append(job)
        return found

    def _resume(self) -> None:
        for name in {self._engine_name(sheep.job.record) for sheep in self.herd if sheep.job is not None}:
            self.engines[name].resume()

    def _refresh(self, name: str, *, repair: bool = False) -> None:
        self._updated.add(name)
        self.engines[name].refresh(repair=repair)


def _goes_on(xp: Experiment) -> bool:
    """Whether an experiment resumes, with the configuration that it was frozen with."""
    return Path(xp.folder).is_dir() and has_trained(xp)


def _xp_of_sig(main: DecoratedMain, sig: str) -> XP:
    """The experiment of a signature; without its configuration if today's can no longer compose it."""
    folder = Path(main.dora.dir) / main.dora.xps / sig
    frozen = read_json(folder / FROZEN_FILE) or {}
    if isinstance(frozen.get("delta"), list) and isinstance(frozen.get("argv"), list):
        return _bare_xp(main, sig, frozen["argv"], frozen["delta"])
    try:
        xp = main.get_xp_from_sig(sig)
    except Exception:
        if job_of(folder) is None:
            raise
        return _bare_xp(main, sig, [], [])  # one that left its grid: it can still be cancelled
    return xp if xp.sig == sig else _bare_xp(main, sig, xp.argv, xp.delta or [])


def _bare_xp(main: DecoratedMain, sig: str, argv: Sequence[str], delta: Sequence[Any]) -> XP:
    xp = XP(main.dora, None, list(argv), sig=sig)
    xp.delta = [(key, value) for key, value in delta]  # not as an argument: Dora would import torch to inspect it
    return xp


def _task(main: DecoratedMain, request: _Request, code: Snapshot | None) -> Task:
    """Make the folder of an experiment; returns what runs in it."""
    xp = request.sheep.xp
    main.init_xp(xp)
    if request.decision.change is not None and request.decision.change.anew:
        assert isinstance(xp, Experiment)
        freeze(xp, anew=True)
    words: tuple[str, ...] = ("-P", "-m", "audiotok.experiments.job", f"{main.package}.{main.main_module}")
    if code is None:
        words = ("-m", "dora", "-P", main.package, "--main_module", main.main_module, "run", "--")
    return Task(
        sig=xp.sig,
        name=main.get_name(xp),
        folder=Path(xp.folder).absolute(),
        command=(sys.executable, *words, *xp.argv),
        cwd=Path.cwd(),
        mem_factor=request.decision.mem_factor,
        environ={} if code is None else code.environ,
        needs=request.needs,
        code=None if code is None else code.as_json(),
    )
