"""What is written down about a local job: all that its runner needs to know, and how it went.

Standard library only. Where records are kept: `launchers.local.queue`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", "NODE_FAIL"})


@dataclass
class JobRecord:
    """One local job. Times are unix seconds; paths are absolute.

    Attributes:
        job_id: `L` and a number that grows by one with each submission.
        sig: signature of the experiment; `folder` is its folder and `log` the file its output goes to.
        command: what runs, in `cwd`.
        user: who submitted it, `name@host`.
        gpus: number of GPUs it holds while it runs; `visible` are those of the machine, `devices` its own.
        ranks: number of processes.
        slots: it starts only while fewer jobs than this are running.
        threads: CPU threads for each of its processes.
        grace_s: seconds between SIGTERM and SIGKILL when it is cancelled.
        time_s: seconds it may run at once; it is told to stop `checkpoint_s` before, as on SLURM.
        max_num_timeout: how often it is queued again at that limit; `timeouts` is how often it was.
        attempt: how often it was queued again for any reason.
        state: PENDING, RUNNING or one of FINAL_STATES; `reason` says in a line why.
        exit_code: of the process; minus the signal number if a signal ended it.
        cancelled: when one of our commands cancelled it.
    """

    job_id: str
    sig: str
    folder: str
    log: str
    cwd: str
    command: list[str]
    user: str = ""
    gpus: int = 0
    visible: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    ranks: int = 1
    slots: int = 1
    threads: int = 1
    grace_s: float = 10.0
    time_s: float = 0.0
    checkpoint_s: float = 0.0
    max_num_timeout: int = 0
    timeouts: int = 0
    attempt: int = 0
    state: str = "PENDING"
    reason: str = ""
    exit_code: int | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    lock: str = ""
    launcher: str = "local"
    cancelled: float | None = None

    @property
    def is_over(self) -> bool:
        """True once the state can no longer change."""
        return self.state in FINAL_STATES

    def to_json(self) -> dict[str, Any]:
        """Return what is written down; `cancelled` is there only if it was."""
        return {name: value for name, value in asdict(self).items() if name != "cancelled" or value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "JobRecord | None":
        """Build a record from parsed JSON; None if it is not a whole record of a local job."""
        if content.get("launcher") != "local":
            return None
        try:
            return cls(**{key.name: content[key.name] for key in fields(cls) if key.name in content})
        except TypeError:
            return None
