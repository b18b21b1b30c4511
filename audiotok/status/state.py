"""The states of an experiment, and the three files in its folder that report them."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from audiotok.files import read_json

JOB_FILE, TASK_FILE, STATUS_FILE = "job.json", "task.json", "status.json"


class State(StrEnum):
    """State of an experiment or a job. Equal to its name as text, and written to JSON as that."""

    NOT_STARTED = "NOT_STARTED"  # neither submitted nor run by hand
    WAITING = "WAITING"  # for an experiment that it needs
    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    REQUEUED = "REQUEUED"
    UNKNOWN = "UNKNOWN"  # the scheduler does not answer, or answers with a word we do not know: it may be running
    COMPLETED = "COMPLETED"
    EXTENDED = "EXTENDED"  # completed, and its epochs were raised since: it continues when it is submitted again
    FAILED = "FAILED"
    DIVERGED = "DIVERGED"  # training produced a value that is not finite
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    INTERRUPTED = "INTERRUPTED"  # stopped by a signal while it ran by hand
    STALE = "STALE"  # reported RUNNING, with a heartbeat that is too old
    MISSING = "MISSING"  # the record of its job is gone
    BLOCKED = "BLOCKED"  # never began, as an experiment that it needs has ended without its result

    @classmethod
    def of(cls, word: object) -> "State":
        """State of a word in a file or from SLURM, which also writes `CANCELLED by 1000` and `CANCELLED+`."""
        name = (str(word).split() or [""])[0].rstrip("+")
        return cls(name) if name in cls.__members__ else cls.UNKNOWN

    @property
    def live(self) -> bool:
        """True if the job may still do something."""
        return self in _LIVE

    @property
    def failed(self) -> bool:
        """True if the job ended without its result."""
        return not self.live and self not in (State.COMPLETED, State.EXTENDED, State.NOT_STARTED)

    @property
    def settled(self) -> bool:
        """True if the files of the experiment alone decide it; others depend on the time, a lock or a scheduler."""
        return self in _SETTLED


_LIVE = frozenset(
    map(State, ("PENDING", "WAITING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "UNKNOWN"))
)
_SETTLED = frozenset(
    map(State, ("COMPLETED", "EXTENDED", "FAILED", "DIVERGED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BLOCKED"))
)


class Verdict(NamedTuple):
    """What is known of an experiment: its state and the reason in a few words, "" for none."""

    state: State
    reason: str


class SchedulerWord(NamedTuple):
    """What a scheduler reports about a job."""

    state: State  # MISSING if it does not know the job (any more), UNKNOWN if it does not answer
    reason: str = ""
    live: bool = False  # pending or running; with UNKNOWN: it has the job, in a state that we do not know


def same_job(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two contents are of one job: a job id can come again, on another cluster or after a reset of the ids.

    The `token` distinguishes such jobs; the files of other launchers and of earlier versions have none.
    """
    tokens = one.get("token"), other.get("token")
    return one.get("job_id") == other.get("job_id") and (None in tokens or tokens[0] == tokens[1])


def read_status(folder: Path) -> dict[str, Any] | None:
    """Read the `status.json` of an experiment folder; None if it is missing or damaged."""
    return read_json(Path(folder) / STATUS_FILE)
