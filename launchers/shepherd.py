"""The shepherd of all launches: decides with `launchers.rules` what is run, and has an engine run it.

It stands in for `dora.shep.Shepherd`, with SLURM and without. What it knows of a job is the `job.json` in the folder of
the experiment (no pickles); each job is asked of the engine that it was submitted with, whatever engine is used now.
Who submits holds the submission lock of the Dora folder, and decides again once it has it: two people who launch the
same grid at once get one job for each experiment.
"""

import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dora.conf import SlurmConfig, SubmitRules
from dora.main import DecoratedMain
from dora.shep import Sheep, Shepherd, no_log
from dora.xp import XP

from audiotok.errors import ConfigError, LaunchError
from audiotok.frozen import FROZEN_FILE
from audiotok.status import ExperimentState, read_json
from launchers.engine import LIVE_STATES, Engine, Job, job_of
from launchers.local import LocalEngine
from launchers.locks import SubmitLock
from launchers.profile import Profile
from launchers.rules import RETRY_VARIABLE, Action, Decision, decide, previous_job
from launchers.sheep import GridSheep, SheepJob
from launchers.slurm import SlurmEngine
from launchers.submissions import SubmissionBook
from launchers.wishes import SHOWN, Wish, submit

LAUNCHER_VARIABLE = "AUDIOTOK_LAUNCHER"
LAUNCHERS = ("local", "slurm")
_shepherds: "weakref.WeakValueDictionary[str, GridShepherd]" = weakref.WeakValueDictionary()


def detect(environ: Mapping[str, str]) -> str:
    """Return the launcher for this machine: `local` or `slurm`.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER holds another word.
    """
    asked = environ.get(LAUNCHER_VARIABLE, "").strip()
    if not asked:
        return "slurm" if shutil.which("sbatch", path=environ.get("PATH")) else "local"
    if asked not in LAUNCHERS:
        raise ConfigError(f"{LAUNCHER_VARIABLE}={asked!r} in the environment; choose one of: {', '.join(LAUNCHERS)}.")
    return asked


class GridShepherd(Shepherd):
    """Looks after the experiments of one Dora folder.

    Args:
        main: the decorated entry point.
        log: what people are told goes here.

    Attributes:
        herd: all experiments that somebody holds on to.
        members: signatures of those that were asked for by their arguments: a grid, whatever its patterns.
        decided: those that `maybe_submit_lazy` has decided about, and what each would ask for.
        on_commit: called at the end of each commit, under the submission lock.
    """

    def __init__(self, main: DecoratedMain, log: Callable[[str], None] = no_log) -> None:
        # Dora's own constructor makes folders for pickles and cancels what it takes for orphans.
        self.main, self.log = main, log
        self.key = uuid.uuid4().hex
        _shepherds[self.key] = self
        dora_dir = Path(main.dora.dir)
        self.lock = SubmitLock(dora_dir / "locks" / "submit", log=self._say)
        self.book = SubmissionBook(dora_dir, xps=main.dora.xps, by_id=main.dora.shep.by_id)
        self.engines: dict[str, Engine] = make_engines(main, self.book, self.lock)
        self.herd: weakref.WeakSet[GridSheep] = weakref.WeakSet()
        self.members: dict[str, None] = {}
        self.decided: dict[str, tuple[GridSheep, Profile]] = {}
        self.on_commit: list[Callable[[GridShepherd], None]] = []
        self._in_job_array = False
        self._to_cancel: list[Any] = []
        self._wishes: list[Wish] = []
        self._groups = 0
        self._updated: set[str] = set()

    def __reduce__(self) -> Any:
        return _same_shepherd, (self.key, self.main)  # Dora sends it to a pool of processes, and its sheep back

    def get_sheep_from_argv(self, argv: Sequence[str]) -> GridSheep:
        """Return the experiment that these arguments make."""
        assert not isinstance(argv, str)
        sheep = self._sheep(self.main.get_xp(argv))
        self.members[sheep.xp.sig] = None
        return sheep

    def get_sheep_from_sig(self, sig: str) -> GridSheep:
        """Return the experiment of a signature, even one that the configuration of today cannot make any more.

        Dora asks for those that left a grid, to cancel them; that needs no configuration.
        """
        folder = Path(self.main.dora.dir) / self.main.dora.xps / sig
        frozen = read_json(folder / FROZEN_FILE) or {}
        if isinstance(frozen.get("delta"), list) and isinstance(frozen.get("argv"), list):
            return self._sheep(_bare_xp(self.main, sig, frozen["argv"], frozen["delta"]))
        try:
            xp = self.main.get_xp_from_sig(sig)
        except Exception:
            if job_of(folder) is None:
                raise
            return self._sheep(_bare_xp(self.main, sig, [], []))
        return self._sheep(xp if xp.sig == sig else _bare_xp(self.main, sig, xp.argv, xp.delta or []))

    def requeue(self, sigs: Sequence[str]) -> list[str]:
        """Stop the running jobs of experiments with a checkpoint and queue them again.

        Returns:
            Their job ids.

        Raises:
            ConfigError: if there is no experiment of a signature.
            LaunchError: if a job does not run, or cannot be queued again.
        """
        jobs = {sig: job_of(self.get_sheep_from_sig(sig).xp.folder) for sig in dict.fromkeys(sigs)}
        self.update()
        for sig, job in jobs.items():
            state = "no job" if job is None else self.verdict(job).state
            if job is None or state not in LIVE_STATES:
                raise LaunchError(f"{sig} has {state}; only a job that runs can be queued again (`dora grid --retry`).")
        running = [job for job in jobs.values() if job is not None and self.verdict(job).state != "PENDING"]
        for name, engine in self.engines.items():
            engine.requeue([job for job in running if job.engine == name])
        return [job.job_id for job in running]

    def get_sheep_from_job_id(self, job_id: str) -> GridSheep | None:
        """Return the experiment that a job belongs to, None if there is no such job."""
        link = self._by_id / job_id
        return self.get_sheep_from_sig(link.readlink().name) if link.is_symlink() else None

    def update(self, *more: str) -> None:
        """Ask each engine that has jobs, and those named, once for all states; read again which jobs there are."""
        jobs = [sheep.job.record for sheep in self.herd if sheep.job is not None]
        names = {*more, *({job.engine for job in jobs} & self.engines.keys())}
        if self.book.has_open():
            names.add("slurm")
        for name in sorted(names):
            self._refresh(name)
        for sheep in list(self.herd):
            if sheep.job is not None or (sheep.xp.folder / self.main.dora.shep.json_job_file).exists():
                sheep.reload()

    def verdict(self, job: Job) -> ExperimentState:
        """State and reason of a job, as its engine saw it last; it is asked now if it never was."""
        name = job.engine if job.engine in self.engines else "slurm"  # as Dora itself writes none
        if name not in self._updated:
            self._refresh(name)
            job = job_of(job.folder) or job
        return self.engines[name].verdict(job)

    @contextmanager
    def job_array(self, slurm_config: SlurmConfig) -> Iterator[None]:
        """What is submitted within this block goes out in arrays of its own."""
        assert not self._in_job_array
        self._groups += 1
        self._in_job_array = True
        try:
            yield
        finally:
            self._in_job_array = False

    def maybe_submit_lazy(self, sheep: Sheep, slurm_config: SlurmConfig, rules: SubmitRules) -> None:
        """Decide whether an experiment is submitted with the next `commit`."""
        assert isinstance(sheep, GridSheep)
        profile = Profile.of(slurm_config)
        sheep.decision = self.decide(sheep, profile, rules)
        self.decided[sheep.xp.sig] = sheep, profile
        if sheep.decision.action.submits:
            job_id = None if sheep.job is None else sheep.job.job_id
            group = self._groups if self._in_job_array else 0
            self._wishes.append(Wish(sheep, profile, rules, group, job_id))

    def cancel_lazy(self, job: Any = None, dependent_jobs: Sequence[Any] = (), sheep: Sheep | None = None) -> None:
        """Cancel a job with the next `commit`."""
        assert (job is None) != (sheep is None)
        job = job if sheep is None else sheep.job
        if job is not None:
            self._to_cancel.append(job)

    @property
    def to_cancel(self) -> list[Job]:
        """Jobs that the next `commit` cancels, without those that make room for another."""
        return [job.record for job in self._to_cancel if isinstance(job, SheepJob)]

    def commit(self) -> None:
        """Cancel and submit what was asked for since the last commit.

        Raises:
            LaunchError: if something could not be submitted; what was is recorded.
        """
        cancels, wishes = self.to_cancel, self._wishes
        self._to_cancel, self._wishes = [], []
        self._tell_blocked()
        if cancels or wishes:
            with self.lock.hold():
                if cancels:
                    self.cancel_if_possible(cancels)
                if wishes:
                    submit(self, detect(os.environ), wishes)
                self._after_commit()
        elif self.on_commit:
            with self.lock.try_hold() as held:
                if held:
                    self._after_commit()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Stop jobs now and wait for their end.

        Raises:
            LaunchError: naming those that could not be stopped.
        """
        with self.lock.hold():
            failures = []
            for name, some in _by_engine(jobs).items():
                try:
                    self.engines.get(name, self.engines["slurm"]).cancel(some)
                except LaunchError as error:
                    failures.append(str(error))
        if failures:
            raise LaunchError(" ".join(failures))

    def find_moved(self, path: Path) -> Path:
        """Where a file of this Dora folder is now, which may have been moved since its path was written down."""
        if path.exists():
            return path
        for name in ("submissions", self.main.dora.xps, "local"):
            if name in path.parts:
                place = len(path.parts) - 1 - path.parts[::-1].index(name)
                moved = Path(self.main.dora.dir).joinpath(*path.parts[place:])
                if moved.parent.exists():
                    return moved
        return path

    def _after_commit(self) -> None:
        for callback in self.on_commit:
            callback(self)

    def _tell_blocked(self) -> None:
        """Say which experiments are not retried and why, the first of many only."""
        blocked = [sheep for sheep, _ in self.decided.values() if _is_blocked(sheep)]
        for sheep in blocked[:SHOWN]:
            assert sheep.decision is not None
            self.log(f"Not retried: {self.called(sheep)}: {sheep.decision.reason}")
        if len(blocked) > SHOWN:
            self.log(f"Not retried: {len(blocked) - SHOWN} more; --dry_run tells why")

    def _say(self, text: str) -> None:
        self.log(text)

    def _sheep(self, xp: XP) -> GridSheep:
        return GridSheep(xp, self)

    def _refresh(self, name: str) -> None:
        self._updated.add(name)
        self.engines[name].refresh()

    def decide(self, sheep: GridSheep, profile: Profile, rules: SubmitRules) -> Decision:
        """What is to be done about an experiment, as of the last update."""
        force = os.environ.get(RETRY_VARIABLE, "").strip() == "force"
        previous: Mapping[str, Any] = {} if sheep.job is None else previous_job(sheep.xp.folder)
        return decide(sheep.verdict(), rules, previous, profile, force=force)

    def cancel_if_possible(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs; one that cannot be does not keep the rest of a commit from going on."""
        try:
            self.cancel(jobs)
        except LaunchError as error:
            self.log(str(error))

    def called(self, sheep: GridSheep) -> str:
        """Signature and name of an experiment, for people."""
        return f"{sheep.xp.sig}/{self.main.get_name(sheep.xp)}"


def make_engines(main: DecoratedMain, book: SubmissionBook, lock: SubmitLock) -> dict[str, Engine]:
    """Both engines of a Dora folder."""
    return {
        "slurm": SlurmEngine(main.name, book, lock),
        "local": LocalEngine(Path(main.dora.dir) / "local"),
    }


def _bare_xp(main: DecoratedMain, sig: str, argv: Sequence[str], delta: Sequence[Any]) -> XP:
    """An experiment without its configuration."""
    xp = XP(main.dora, None, list(argv), sig=sig)
    xp.delta = [(key, value) for key, value in delta]  # not given above: Dora would import torch to look at it
    return xp


def _is_blocked(sheep: GridSheep) -> bool:
    return sheep.decision is not None and sheep.decision.action is Action.BLOCKED


def _same_shepherd(key: str, main: DecoratedMain) -> GridShepherd:
    """The shepherd that was pickled, or in another process one like it."""
    return _shepherds.get(key) or GridShepherd(main)


def _by_engine(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.engine, []).append(job)
    return found
