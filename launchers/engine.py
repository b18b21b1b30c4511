"""What an engine is: where jobs run. `launchers.slurm` submits with sbatch, `launchers.local` queues on this machine.

The shepherd (`launchers.shepherd`) decides what runs, an engine makes it run and leaves a `job.json` in the folder of
the experiment. It names the engine, so that any command finds the job. How to add an engine: docs/extending.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from dora.main import DecoratedMain

from audiotok.errors import LaunchError
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, Verdict, read_json


class NoRoomError(LaunchError):
    """The scheduler takes no more jobs now: a limit of the site is reached, or it is busy. The profile is right."""


class NoAnswerError(LaunchError):
    """The scheduler gave no answer to a submission, and may have accepted it nevertheless."""


@dataclass(frozen=True)
class Task:
    """One experiment to run."""

    sig: str
    name: str  # in tables and messages
    folder: Path  # exists
    command: tuple[str, ...]  # `dora run …`; the engine adds the environment of ranks and devices
    cwd: Path
    mem_factor: float = 1.0  # multiple of the profile's memory, above 1 after it ran out of memory
    environ: Mapping[str, str] = field(default_factory=dict)  # variables of its processes, in place of ours
    code: dict[str, str] | None = None  # the snapshot that it runs, for `job.json`
    needs: Mapping[str, str] = field(default_factory=dict)  # ids of the jobs that must complete first, by signature


@dataclass(frozen=True)
class Job:
    """The latest job of the experiment in a folder.

    `content` is its `job.json`: at least `launcher`, `job_id`, `sig`, `submitted` (unix seconds), `user` (name@host of
    the submitter), `log`, and `cancelled` (unix seconds) once one of our commands cancelled it.
    """

    folder: Path
    content: dict[str, Any] = field(hash=False)

    @property
    def job_id(self) -> str:
        """Its id in its engine."""
        return str(self.content.get("job_id"))

    @property
    def engine(self) -> str:
        """Name of its engine."""
        return str(self.content.get("launcher"))

    @property
    def log(self) -> Path:
        """File with the output of its first process; it may not exist yet."""
        return Path(str(self.content.get("log")))


def job_of(folder: Path) -> Job | None:
    """The latest job of an experiment folder, None without one or with a damaged `job.json`."""
    content = read_json(folder / JOB_FILE)
    return Job(folder, content) if content and "job_id" in content else None


class Level(StrEnum):
    """How a check of `audiotok doctor` went; only FAIL makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of `audiotok doctor`: what was checked, how it went, what was found, and what to do about it."""

    name: str
    verdict: Level
    found: str
    advice: str = ""

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        """A check that went well."""
        return cls(name, Level.OK, found)

    @classmethod
    def warn(cls, name: str, found: str, advice: str) -> Self:
        """Something that may be on purpose."""
        return cls(name, Level.WARN, found, advice)

    @classmethod
    def fail(cls, name: str, found: str, advice: str) -> Self:
        """Something that keeps experiments from running."""
        return cls(name, Level.FAIL, found, advice)


class Engine(Protocol):
    """A launcher. Registered in `launchers.shepherd.ENGINES`.

    It may also have two class methods: `environment(profile, environ)`, the variables that fill in what a profile
    leaves open, for `audiotok plan`; and `try_job(profile, root)`, the checks of `audiotok doctor --try`. And a method
    `can_wait_for(job, profile)`: whether a task of that profile may wait in its queue until this job has completed;
    without it no task has `needs`, and `dora grid` submits what needs others once they have completed.
    """

    name: ClassVar[str]  # in AUDIOTOK_LAUNCHER and in `job.json`
    remote: ClassVar[bool]  # its jobs run on other machines, which must see the results folder

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> Self:
        """The engine of one Dora folder, `main.dora.dir`, and its submission lock; writes nothing yet."""

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        """Why this machine can submit with it, as `sbatch is on PATH`; "" if it cannot."""

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        """Check for `audiotok doctor` whether a job of this profile, if known, can be submitted; changes nothing."""

    @property
    def failure(self) -> str:
        """Why the scheduler did not answer at the last `refresh`, "" if it did; nothing is submitted then."""

    def has_open(self) -> bool:
        """True if it may have jobs that no `job.json` names yet, so that `refresh` is needed even without jobs."""

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Submit tasks that request the same resources and have the same `needs`; called under the submission lock.

        When it returns, or dies half-way, every job that the scheduler has is recorded, or adopted by the next
        `refresh`: nothing is submitted twice, nothing is lost.

        Raises:
            NoRoomError: if it takes no more now.
            LaunchError: if the scheduler refuses; jobs that it accepted before are then recorded.
        """

    def refresh(self, *, repair: bool = True) -> None:
        """Query the states of all jobs at once; with `repair` also mend what a dead command left behind.

        Without `repair` nothing is written, started or stopped.
        """

    def resume(self) -> None:
        """Start waiting jobs of this user that only a process of ours starts, and name them; if there are such.

        Called by commands that launch and by no other.
        """

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last `refresh`, and the reason; never waits."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop pending and running jobs and wait for their end; the reason is kept with each.

        Raises:
            LaunchError: naming those that could not be stopped; all others are.
        """

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Stop running jobs with a checkpoint and queue them again under the same job id.

        Raises:
            LaunchError: naming those that cannot be requeued.
        """
