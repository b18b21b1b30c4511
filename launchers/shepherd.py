"""The shepherd of all launches: decides with `launchers.decide` what is run, and has an engine run it.

It stands in for `dora.shep.Shepherd`, with SLURM and without. What it knows of a job is the `job.json` in the folder of
the experiment (no pickles); each job is asked of the engine that it was submitted with, whatever engine is used now.
Who submits holds the submission lock of the Dora folder, and decides again once it has it: two people who launch the
same grid at once get one job for each experiment.
"""

import os
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dora.conf import SlurmConfig, SubmitRules
from dora.main import DecoratedMain
from dora.shep import Sheep, Shepherd, no_log

from audiotok.errors import LaunchError
from audiotok.launchers.decide import RETRY_VARIABLE, Decision, decide, previous_job
from audiotok.launchers.engine import Engine, Job, job_of
from audiotok.launchers.engines import by_engine, detect, make_engines
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.lookup import find_moved, xp_of_sig
from audiotok.launchers.profile import Profile
from audiotok.launchers.sheep import GridSheep, SheepJob
from audiotok.launchers.slurm.submissions import SubmissionBook
from audiotok.launchers.wishes import Wish, submit, tell_blocked
from audiotok.status import Verdict

_shepherds: "weakref.WeakValueDictionary[str, GridShepherd]" = weakref.WeakValueDictionary()


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
        sheep = GridSheep(self.main.get_xp(argv), self)
        self.members[sheep.xp.sig] = None
        return sheep

    def get_sheep_from_sig(self, sig: str) -> GridSheep:
        """Return the experiment of a signature, even one that the configuration of today cannot make any more."""
        return GridSheep(xp_of_sig(self.main, sig), self)

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

    def verdict(self, job: Job) -> Verdict:
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
        tell_blocked(self)
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
            for name, some in by_engine(jobs).items():
                try:
                    self.engines.get(name, self.engines["slurm"]).cancel(some)
                except LaunchError as error:
                    failures.append(str(error))
        if failures:
            raise LaunchError(" ".join(failures))

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

    def find_moved(self, path: Path) -> Path:
        """Where a file of this Dora folder is now, which may have been moved since its path was written down."""
        return find_moved(path, Path(self.main.dora.dir), xps=self.main.dora.xps)

    def _after_commit(self) -> None:
        for callback in self.on_commit:
            callback(self)

    def _say(self, text: str) -> None:
        self.log(text)

    def _refresh(self, name: str) -> None:
        self._updated.add(name)
        self.engines[name].refresh()


def _same_shepherd(key: str, main: DecoratedMain) -> GridShepherd:
    """The shepherd that was pickled, or in another process one like it."""
    return _shepherds.get(key) or GridShepherd(main)
