"""An engine that runs each job as a process of its own, AT_ONCE of them at a time; this file is also that process."""

import os
import signal
import subprocess as sp
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from dora.main import DecoratedMain

from audiotok.files import hold_lock, is_locked
from audiotok.launchers.child import Outcome, Signals, attend, frozen_environment, outcome, rank_environment, start
from audiotok.launchers.engine import Check, Job, Task
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, TASK_FILE, State, Verdict, experiment_state, read_json, write_json

AT_ONCE, BEAT_S, GRACE_S = 2, 15.0, 5.0


class FakeEngine:
    """A job waits and runs as long as its process holds the lock on `<dora.dir>/fake/<job id>`."""

    name: ClassVar[str] = "fake"
    remote: ClassVar[bool] = False
    failure = ""

    def __init__(self, queue: Path) -> None:
        self.queue = queue

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> "FakeEngine":
        return cls(Path(main.dora.dir).absolute() / "fake")

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        return ""  # never by default, only with AUDIOTOK_LAUNCHER=fake

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        return iter(())

    def has_open(self) -> bool:
        return False

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        return [self._start(task, profile) for task in tasks]

    def refresh(self, *, repair: bool = True) -> None:
        """States are read from files when they are needed."""

    def resume(self) -> None:
        """Each job has a process that starts it."""

    def verdict(self, job: Job) -> Verdict:
        found = experiment_state(job.folder)
        if found is not None and found.state.live and not is_locked(self.queue / job.job_id):
            found = experiment_state(job.folder)  # it may have ended properly between the two looks
            if found is not None and found.state.live:
                return Verdict(State.NODE_FAIL, "its process vanished")
        return found or Verdict(State.MISSING, f"no {JOB_FILE} in {job.folder}")

    def cancel(self, jobs: Sequence[Job]) -> None:
        self._stop(jobs, "CANCELLED")
        while any(is_locked(self.queue / job.job_id) for job in jobs):
            time.sleep(0.05)

    def requeue(self, jobs: Sequence[Job]) -> None:
        self._stop(jobs, "REQUEUED")

    def _start(self, task: Task, profile: Profile) -> Job:
        job_id = f"F{time.time_ns()}"
        content = {"launcher": self.name, "job_id": job_id, "sig": task.sig, "submitted": time.time()}
        content |= {"user": user_and_host(), "log": str(task.folder / f"{job_id}_0_log.out")}
        content |= {"mem_factor": task.mem_factor, "profile": asdict(profile), "code": task.code}
        write_json(task.folder / JOB_FILE, content)
        environ = {**os.environ, **profile.environment(), **task.environ, "AUDIOTOK_JOB_ID": job_id}
        environ |= frozen_environment(task.folder)
        command = [sys.executable, __file__, str(self.queue / job_id), str(task.folder), *task.command]
        silent: Any = dict.fromkeys(("stdin", "stdout", "stderr"), sp.DEVNULL)
        sp.Popen(command, cwd=task.cwd, env=environ, start_new_session=True, **silent)
        while not is_locked(self.queue / job_id):
            time.sleep(0.02)
        return Job(task.folder, content)

    def _stop(self, jobs: Sequence[Job], cause: str) -> None:
        for job in jobs:
            if is_locked(self.queue / job.job_id):
                (self.queue / f"{job.job_id}.stop").write_text(cause)


def run(ticket: Path, folder: Path, command: Sequence[str]) -> None:
    """Run a job to its end: wait for its turn, again after each requeue, and keep `task.json`."""
    job, stop, timeouts = read_json(folder / JOB_FILE) or {}, ticket.with_suffix(".stop"), 0
    signals = Signals({signal.SIGTERM: "PREEMPTED"})
    with hold_lock(ticket):
        while True:
            while _ahead(ticket) >= AT_ONCE and not stop.exists():
                time.sleep(0.05)
            mark: dict[str, Any] = {"job_id": job["job_id"], "attempt": timeouts, "started": time.time()}
            ended = Outcome("CANCELLED", "cancelled before it started")
            if not stop.exists():
                ended = _attempt(job, folder, command, stop, signals, mark)
            if ended.state == "TIMEOUT" and timeouts < job["profile"]["max_num_timeout"]:
                ended, timeouts = ended._replace(state="REQUEUED"), timeouts + 1
            _write(folder, mark, state=ended.state, reason=ended.reason, exit_code=ended.exit_code, ended=time.time())
            stop.unlink(missing_ok=True)
            if ended.state != "REQUEUED":
                break
        ticket.unlink()


def _attempt(
    job: Mapping[str, Any], folder: Path, command: Sequence[str], stop: Path, signals: Signals, mark: dict[str, Any]
) -> Outcome:
    profile, log, began = job["profile"], Path(job["log"]), time.time()
    environ = {**os.environ, **rank_environment(0, 1, 0, "127.0.0.1", 0)}
    child = start(command, environ=environ, log=log)

    def poll() -> str | None:
        if time.time() - mark.get("updated", 0.0) > BEAT_S:
            _write(folder, mark, state="RUNNING")
        if stop.exists():
            return stop.read_text() or None
        return "TIMEOUT" if time.time() > began + 60 * profile["time"] - profile["signal_s"] else None

    grace_s = {"CANCELLED": GRACE_S}
    cause = attend([child], signals, poll=poll, poll_s=0.05, grace_s=lambda one: grace_s.get(one, profile["signal_s"]))
    return outcome(child.returncode, cause, folder=folder, log=log, began=began)


def _ahead(ticket: Path) -> int:
    """Number of jobs that were submitted before and have not ended."""
    return sum(is_locked(path) for path in ticket.parent.glob("F*") if not path.suffix and path.name < ticket.name)


def _write(folder: Path, mark: dict[str, Any], **fields: Any) -> None:
    mark |= {"updated": time.time(), **fields}
    write_json(folder / TASK_FILE, mark)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
