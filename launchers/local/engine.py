"""The engine for a machine without a scheduler: a queue of local jobs that outlive the terminal.

It only writes to the book of jobs (`launchers.local.queue`) and makes sure that a supervisor looks after it; what runs
is started by the supervisor, with a runner for each job. Of a profile it uses GPUs, CPUs and the time limit; memory,
nodes and shell lines (`setup`) are for clusters.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from dora.main import DecoratedMain

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.engine import Check, Job, Task
from audiotok.launchers.local.machine import share
from audiotok.launchers.local.queue import JobStore
from audiotok.launchers.local.record import JobRecord
from audiotok.launchers.local.supervisor import ensure
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.status import State, Verdict, read_status

STOP_S = 20.0  # a killed job must be gone within this time after its grace period


class LocalEngine:
    """Runs tasks in the local queue of one Dora folder.

    Args:
        root: `<dora.dir>/local`; made on first use.
    """

    name: ClassVar[str] = "local"
    remote: ClassVar[bool] = False
    failure = ""  # it has no scheduler that could be silent

    def __init__(self, root: Path) -> None:
        self.store = JobStore(root)
        self._live: dict[str, Verdict] = {}
        self._over: dict[str, Verdict] = {}

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> Self:
        """The queue of one Dora folder."""
        return cls(Path(main.dora.dir) / "local")

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        """Why this machine would use it: any machine can."""
        return "no sbatch on PATH"

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        """Nothing to check: it needs no scheduler."""
        return iter(())

    def has_open(self) -> bool:
        """False: a job is recorded before it is queued."""
        return False

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Queue tasks on this machine.

        Raises:
            ConfigError: if the profile or our environment variables hold an impossible number.
            LaunchError: if the supervisor of local jobs does not start; the jobs then wait for the next command.
        """
        if profile.gpus < 0:
            raise ConfigError(f"slurm.gpus={profile.gpus}; give 0 or more.")
        # What a job with GPUs asks for is meant for a cluster's node; without GPUs here it gets the usual share.
        portion = share(profile.gpus, os.environ, cpus_wanted=None if profile.gpus else profile.cpus_per_task)
        jobs, user = [], user_and_host()
        with self.store.submitting():
            self.store.mend()
            for number, task in enumerate(tasks, start=self.store.last_number() + 1):
                record = JobRecord(
                    job_id=f"L{number}",
                    sig=task.sig,
                    folder=str(task.folder),
                    log=str(task.folder / "logs" / f"L{number}_0_log.out"),
                    cwd=str(task.cwd),
                    command=list(task.command),
                    user=user,
                    gpus=portion.gpus,
                    visible=list(portion.visible),
                    ranks=1 if profile.one_task_per_node else max(1, portion.gpus),
                    slots=portion.slots,
                    threads=portion.threads,
                    grace_s=portion.grace_s,
                    time_s=profile.time * 60.0,
                    checkpoint_s=profile.signal_s,
                    max_num_timeout=profile.max_num_timeout,
                )
                self.store.add(record, {**os.environ, **profile.environment()})
                self._live[record.job_id] = _state(record)
                jobs.append(Job(task.folder, record.to_json()))
            ensure(self.store)
        return jobs

    def refresh(self) -> None:
        """Read the states of all jobs that are not over, and bring back a supervisor that was killed."""
        self._live = {}
        for job_id in self.store.unfinished():
            record = self.store.judge(job_id)
            if record is not None:
                self._live[job_id] = _state(record)
        drafts = self.store.drafts.is_dir() and any(self.store.drafts.iterdir())
        if drafts or (self._live and not self.store.is_held("supervisor")):
            with self.store.submitting():
                self.store.mend()
                if self.store.unfinished():
                    ensure(self.store)

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last `refresh`; MISSING if its record was deleted."""
        known = self._live.get(job.job_id) or self._over.get(job.job_id)
        if known is not None:
            return known
        record = self.store.judge(job.job_id)
        if record is None:
            return Verdict(State.MISSING, f"no record of it in {self.store.jobs}")
        state = _state(record)
        if record.is_over:
            self._over[job.job_id] = state
        return state

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs, those waiting before those running, and wait until the last one has stopped.

        Raises:
            LaunchError: naming those that did not stop; all others are cancelled.
        """
        store = self.store
        running = [job.job_id for job in jobs if not self._drop(job.job_id)]
        for job_id in running:
            store.stop_mark(job_id).write_text("CANCELLED", encoding="utf-8")
        patience_s = STOP_S + max((record.grace_s for name in running if (record := store.read(name))), default=0)
        deadline = time.monotonic() + patience_s
        while (alive := [job_id for job_id in running if store.is_held(job_id)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for job in jobs:
            self._live.pop(job.job_id, None)
        if alive:
            raise LaunchError(f"jobs {', '.join(alive)} did not stop in {patience_s:.0f} s; try again.")

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Have running jobs stopped with a checkpoint and queued again; those that wait are left as they are.

        Raises:
            LaunchError: naming those that are over.
        """
        over = []
        for job in jobs:
            record = self.store.judge(job.job_id)
            if record is None or record.is_over:
                over.append(job.job_id)
            elif record.state == "RUNNING":
                self.store.stop_mark(job.job_id).write_text("REQUEUED", encoding="utf-8")
        self.refresh()
        if over:
            raise LaunchError(f"jobs {', '.join(over)} have ended; submit their experiments again with --retry.")

    def _drop(self, job_id: str) -> bool:
        """Cancel a job that nobody runs; False if a runner has it."""
        record = self.store.read(job_id)
        if record is None or record.is_over:
            return True
        if record.state == "RUNNING" and self.store.is_held(job_id):
            return False
        with self.store.holding(job_id) as held:
            record = self.store.read(job_id) if held else None
            if record is not None and record.state == "PENDING":
                self.store.finish(record, "CANCELLED", "cancelled before it started")
        return held


def _state(record: JobRecord) -> Verdict:
    """State of a job; the training itself knows whether it failed because it diverged."""
    if record.state == "FAILED":
        status = read_status(Path(record.folder)) or {}
        if status.get("job_id") == record.job_id and status.get("state") == "DIVERGED":
            return Verdict(State.DIVERGED, str(status.get("reason") or ""))
    return Verdict(State.of(record.state), record.reason)
