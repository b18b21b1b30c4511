"""An experiment and its latest job, with what Dora's commands and its explorers use of both."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora.shep import Sheep
from dora.xp import XP

from audiotok.launchers.decide import Decision
from audiotok.launchers.engine import FAILURE_STATES, LIVE_STATES, Job, job_of
from audiotok.status import Verdict, experiment_state, job_identity, read_status

if TYPE_CHECKING:
    from audiotok.launchers.shepherd import GridShepherd


class SheepJob:
    """Handle on the latest job of an experiment, with what Dora and its explorers use of a submitit job."""

    def __init__(self, job: Job, shepherd: "GridShepherd") -> None:
        self.record = job
        self._shepherd = shepherd

    @property
    def job_id(self) -> str:
        """Name of the job in its engine."""
        return self.record.job_id

    @property
    def state(self) -> str:
        """Its state in SLURM's words."""
        return self._shepherd.verdict(self.record).state

    def is_done(self) -> bool:
        """True if it does not wait or run any more; a job that asks about itself is told the same."""
        return self.state not in LIVE_STATES or self.job_id == job_identity(os.environ)[1]

    def cancel(self, check: bool = True) -> None:
        """Stop it and wait for its end."""
        self._shepherd.cancel([self.record])


class GridSheep(Sheep):
    """An experiment and its latest job.

    Attributes:
        decision: what the last `maybe_submit_lazy` decided about it, None before.
    """

    def __init__(self, xp: XP, shepherd: "GridShepherd") -> None:
        # Dora's own constructor would unpickle job.pkl; here the job is named by job.json.
        self.xp = xp
        self.shepherd = shepherd
        self.decision: Decision | None = None
        self._other_jobs = []
        self._dependent_jobs = []
        shepherd.herd.add(self)
        self.reload()

    def __reduce__(self) -> Any:
        return GridSheep, (self.xp, self.shepherd)

    def reload(self) -> None:
        """Read again what its latest job is."""
        job = job_of(self.xp.folder)
        self.job: SheepJob | None = None if job is None else SheepJob(job, self.shepherd)  # type: ignore[assignment]

    def verdict(self) -> Verdict | None:
        """State and reason, as of the shepherd's last update; of a run by hand only that it has completed.

        What was completed by hand after its job had failed is completed. None without job and such a run.
        """
        said = None if self.job is None else self.shepherd.verdict(self.job.record)
        if said is not None and said.state not in FAILURE_STATES:
            return said
        status = read_status(self.xp.folder)
        if status is not None and status.get("state") == "COMPLETED" and status.get("job_id") is None:
            by_hand = experiment_state(self.xp.folder)
            if by_hand is not None and by_hand.state == "COMPLETED":
                return by_hand
        return said

    def state(self, mode: str = "standard") -> str | None:
        """The state alone; `force` asks the engines first."""
        if mode == "force":
            self.shepherd.update()
        said = self.verdict()
        return None if said is None else said.state

    def is_done(self, mode: str = "standard") -> bool:
        """True if no job of this experiment waits or runs."""
        if mode == "force":
            self.shepherd.update()
        return self.job is None or self.job.is_done()

    @property
    def current_job_id(self) -> str | None:
        """Name of the job in its engine."""
        return None if self.job is None else self.job.job_id

    @property
    def log(self) -> Path | None:
        """File with the output of its first process; it may not exist yet. None without a job."""
        return None if self.job is None else self.shepherd.find_moved(self.job.record.log)

    def __repr__(self) -> str:
        said = self.verdict()
        state = None if said is None else f"{said.state} ({said.reason})" if said.reason else said.state
        job_id = "" if self.job is None else f"sid={self.job.job_id}, "
        return f"Sheep({self.xp.sig}, state={state}, {job_id}argv={self.xp.argv})"
