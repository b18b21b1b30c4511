"""What a launcher is to the rest of the house: an engine that submits tasks, tells their states and stops them.

The shepherd (`launchers.shepherd`) decides what is to run; an engine makes it run: `launchers.slurm` with sbatch,
`launchers.local` in a queue on this machine. Both leave the same trace: `job.json` in the folder of the experiment. It
names the engine, so that any command finds the job again whatever engine it would itself submit with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, Verdict, read_json

LIVE_STATES = frozenset({"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "UNKNOWN"})
"""States of a job that may still do something. UNKNOWN: the scheduler does not answer; nothing is submitted then."""

FAILURE_STATES = frozenset(
    {
        "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "MISSING",
        "DIVERGED", "INTERRUPTED", "STALE",
    }
)  # fmt: skip
"""States that end a job without its result. COMPLETED is the one that ends it with it."""


@dataclass(frozen=True)
class Task:
    """One experiment to run.

    Attributes:
        sig: signature of the experiment.
        name: what people call it.
        folder: its folder, which exists.
        command: `dora run …` as a list of words; the engine adds the environment of ranks and devices.
        cwd: where the command runs.
        mem_factor: how many times the memory of the profile it gets (2.0 after it ran out of memory).
    """

    sig: str
    name: str
    folder: Path
    command: tuple[str, ...]
    cwd: Path
    mem_factor: float = 1.0


@dataclass(frozen=True)
class Job:
    """The latest job of an experiment, as its `job.json` tells it.

    Attributes:
        folder: folder of the experiment.
        content: everything in `job.json`: at least `launcher`, `job_id`, `sig`, `submitted` (unix seconds), `user`
            (name@host of who submitted), `log`, and `cancelled` (unix seconds) once one of our commands cancelled it.
    """

    folder: Path
    content: dict[str, Any] = field(hash=False)

    @property
    def job_id(self) -> str:
        """Name of the job in its engine."""
        return str(self.content.get("job_id"))

    @property
    def engine(self) -> str:
        """Name of the engine that has it."""
        return str(self.content.get("launcher"))

    @property
    def log(self) -> Path:
        """File that the output of its first process goes to; it may not exist yet."""
        return Path(str(self.content.get("log")))


def job_of(folder: Path) -> Job | None:
    """Return the latest job of an experiment folder, None without one (or with a damaged `job.json`)."""
    content = read_json(Path(folder) / JOB_FILE)
    return None if content is None or "job_id" not in content else Job(Path(folder), content)


class Engine(Protocol):
    """A launcher. Implemented by `launchers.slurm.engine.SlurmEngine` and `launchers.local.engine.LocalEngine`."""

    name: str

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Submit tasks that ask for the same resources; called under the submission lock.

        When it returns, or dies half-way, every job that the scheduler has is also known to us (or adopted by the next
        `refresh`): nothing is submitted twice, nothing is lost.

        Raises:
            LaunchError: if the scheduler refuses; jobs that it took before are then recorded.
        """
        ...

    def refresh(self) -> None:
        """Learn the states of all jobs, with one query for all of them, and mend what a dead command left behind."""
        ...

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last `refresh`, in SLURM's words, and why in a few words; never waits."""
        ...

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs, those that wait and those that run; the reason is kept with each.

        Raises:
            LaunchError: naming those that could not be stopped; all others are.
        """
        ...

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Stop running jobs with a checkpoint and queue them again under the same job id.

        Raises:
            LaunchError: naming those that cannot be queued again.
        """
        ...
