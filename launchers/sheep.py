"""An experiment as Dora's commands see it, with its latest job; any number of them belong to one shepherd."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dora.shep import Sheep
from dora.xp import XP

from audiotok.errors import LaunchError
from audiotok.launchers.decide import Action, Decision
from audiotok.launchers.engine import Job, job_of
from audiotok.launchers.needs import WAITS
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, State, Verdict, experiment_state, job_identity, read_status
from audiotok.status.amendments import extended
from audiotok.status.judge import hold_up, waiting

if TYPE_CHECKING:
    from audiotok.launchers.shepherd import GridShepherd


class SheepJob:
    """The latest job of an experiment, with what Dora and its explorers use of a submitit job."""

    def __init__(self, job: Job, shepherd: "GridShepherd") -> None:
        self.record, self.job_id = job, job.job_id
        self._shepherd = shepherd

    @property
    def state(self) -> State:
        """As of the last query of its engine."""
        return self._shepherd.verdict(self.record).state

    def is_done(self) -> bool:
        """True if it neither waits nor runs."""
        # A job that looks at itself must not wait for its own end.
        return not self.state.live or self.job_id == job_identity(os.environ)[1]

    def cancel(self, check: bool = True) -> None:
        """Stop it and wait for its end."""
        self._shepherd.cancel([self.record])


class GridSheep(Sheep):
    """An experiment and its latest job."""

    def __init__(self, xp: XP, shepherd: "GridShepherd") -> None:
        # Dora's own constructor would unpickle job.pkl; here job.json names the job.
        self.xp, self.shepherd = xp, shepherd
        self.decision: Decision | None = None  # of the last `maybe_submit_lazy`
        self.profile: Profile | None = None  # what its job would request then
        self._other_jobs, self._dependent_jobs = [], []
        shepherd.herd.add(self)
        self.reload()

    def reload(self) -> None:
        """Read its latest job again."""
        job = job_of(self.xp.folder)
        self.job: SheepJob | None = None if job is None else SheepJob(job, self.shepherd)  # type: ignore[assignment]

    def verdict(self) -> Verdict | None:
        """State and reason as of the shepherd's last update; None without a job and without a completed run by hand."""
        if self.job is None and (self.xp.folder / JOB_FILE).exists():  # there may be a job that we cannot see
            return Verdict(State.UNKNOWN, f"its {JOB_FILE} cannot be read; correct or delete it")
        verdict = None if self.job is None else self.shepherd.verdict(self.job.record)
        if verdict is not None and verdict.state is State.PENDING and self.job and self.job.record.content.get("needs"):
            return waiting(verdict, hold_up(self.shepherd.needs(self.xp)))
        if verdict is not None and not verdict.state.failed:
            found = extended(verdict, self.xp.folder)
            if found is not None and found.state is State.EXTENDED:
                by_hand = experiment_state(self.xp.folder)  # it may be going on with it
                return by_hand if by_hand is not None and by_hand.state is State.RUNNING else found
            return found
        status = read_status(self.xp.folder) or {}
        if status.get("state") == State.COMPLETED and (self.job is None or status.get("job_id") is None):
            by_hand = experiment_state(self.xp.folder)
            if by_hand is not None and by_hand.state in (State.COMPLETED, State.EXTENDED):
                return by_hand  # after its job had failed
        return verdict

    def state(self, mode: str = "standard") -> State | None:
        """The state alone; mode `force` queries the engines first."""
        if mode == "force":
            self.shepherd.update()
        verdict = self.verdict()
        return None if verdict is None else verdict.state

    def held(self) -> Verdict | None:
        """WAITING or BLOCKED without having begun, and why; None if that is not so."""
        if self.xp.sig in self.shepherd.rest:
            return hold_up(self.shepherd.needs(self.xp)) or Verdict(State.WAITING, WAITS)
        if self.decision and self.decision.action is Action.BLOCKED and self.state() in (None, State.BLOCKED):
            return Verdict(State.BLOCKED, self.decision.reason)
        return None

    def is_done(self, mode: str = "standard") -> bool:
        """True if no job of this experiment waits or runs."""
        if mode == "force":
            self.shepherd.update()
        return self.job is None or self.job.is_done()

    @property
    def current_job_id(self) -> str | None:
        """Id of its job in its engine."""
        return None if self.job is None else self.job.job_id

    @property
    def log(self) -> Path | None:
        """File with the output of its first process; it may not exist yet. None without a job.

        Raises:
            LaunchError: if something else stands there, such as a pipe, which would be read for ever.
        """
        path = None if self.job is None else self.shepherd.find_moved(self.job.record.log)
        if path is not None and path.exists() and not path.is_file():
            raise LaunchError(f"{path}, a log, is no file but a pipe, a device or a folder: remove it.")
        return path

    def __repr__(self) -> str:
        state, reason = self.verdict() or experiment_state(self.xp.folder) or (None, "")
        job_id = "" if self.job is None else f"sid={self.job.job_id}, "
        reason = f" ({reason})" if reason else ""
        return f"Sheep({self.xp.sig}, state={state}{reason}, {job_id}argv={self.xp.argv})"
