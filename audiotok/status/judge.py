"""One verdict on an experiment, from the three files of its folder and from its scheduler."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from audiotok.files import is_locked, read_json
from audiotok.status.state import JOB_FILE, STATUS_FILE, TASK_FILE, SchedulerWord, State, Verdict
from audiotok.text import number_in

STALE_S = 600.0  # a parent process, which beats every 15 s, is silent for this long before it does not count as running
TRAINER_STALE_S = 3600.0  # the same for a trainer by itself, which beats between steps only

Content = Mapping[str, Any]


def judge(
    job: Content | None,
    task: Content | None,
    status: Content | None,
    scheduler: SchedulerWord | None = None,
    *,
    now: float | None = None,
    stale_s: float | None = None,
) -> Verdict | None:
    """Judge an experiment; reads and writes nothing. None if it was never submitted nor run.

    Only the latest job counts, or a run by hand that began after it, which has no scheduler: left out are `task.json`
    and `status.json` of other jobs, and `status.json` of an earlier attempt. Of the rest, the first row that applies
    decides, and names the source of the verdict or its state:

    | scheduler   | job          | task                             | trainer              | verdict   |
    | ----------- | ------------ | -------------------------------- | -------------------- | --------- |
    | COMPLETING  |              | COMPLETED, FAILED, OUT_OF_MEMORY |                      | task      |
    | live        |              |                                  |                      | scheduler |
    | CANCELLED   | cancelled    |                                  |                      | CANCELLED |
    | FAILED      |              | failed                           |                      | task      |
    | ended       |              |                                  |                      | scheduler |
    |             | local record |                                  |                      | job       |
    |             | verdict      |                                  |                      | job       |
    |             |              | settled                          |                      | task      |
    | no answer   |              |                                  |                      | UNKNOWN   |
    |             |              | none, silent                     | settled              | trainer   |
    |             | cancelled    |                                  |                      | CANCELLED |
    | unknown job |              | REQUEUED                         |                      | CANCELLED |
    |             |              | PREEMPTED, REQUEUED              |                      | task      |
    | unknown job |              | RUNNING                          |                      | NODE_FAIL |
    | unknown job |              |                                  | RUNNING, INTERRUPTED | NODE_FAIL |
    |             |              | none, silent                     | INTERRUPTED          | trainer   |
    |             |              | silent                           |                      | STALE     |
    |             |              | RUNNING                          |                      | RUNNING   |
    |             |              |                                  | silent               | STALE     |
    |             |              |                                  | RUNNING              | RUNNING   |
    | unknown job | submitted    |                                  |                      | CANCELLED |
    |             | submitted    |                                  |                      | PENDING   |

    Some cells name a property of `State`. A job's `verdict` applies unless a heartbeat is later than it. A
    RUNNING or REQUEUED task is silent if its heartbeat is too old or the scheduler does not know its job, a RUNNING
    trainer if its heartbeat is too old. An ended scheduler takes the reason of a task that agrees, and for FAILED the
    first of the task's, the trainer's and its own. A verdict FAILED gives way to the trainer's DIVERGED, which nothing
    else can know.

    Args:
        job: content of `job.json`, None without one; so are the other two.
        task: content of `task.json`.
        status: content of `status.json`, by the trainer.
        scheduler: what the scheduler reports of the job, None to judge from the files alone.
        now: unix seconds; by default the present.
        stale_s: seconds after which a heartbeat is too old, by default STALE_S and TRAINER_STALE_S.
    """
    evidence = _select(job or {}, task or {}, status or {}, scheduler)
    evidence = evidence._replace(now=time.time() if now is None else now, stale_s=stale_s)
    verdict = next(filter(None, (rule(evidence) for rule in _RULES)), None)
    if verdict is not None and verdict.state is State.FAILED and evidence.status.get("state") == State.DIVERGED:
        return _reported(evidence.status)
    return verdict


def experiment_state(folder: Path, *, stale_s: float | None = None) -> Verdict | None:
    """Judge an experiment from its folder alone, without its scheduler; see `judge`."""
    folder = Path(folder)
    job, task, status = (read_json(folder / name) for name in (JOB_FILE, TASK_FILE, STATUS_FILE))
    word = None
    if job is not None and _has_no_process(job):
        job = read_json(folder / JOB_FILE) or job  # it may have ended properly between the two looks
        word = SchedulerWord(State.NODE_FAIL, "its process vanished") if _has_no_process(job) else None
    return judge(job, task, status, word, stale_s=stale_s)


class _Evidence(NamedTuple):
    """All about the latest job or run; a file that is missing or left out is empty."""

    job: Content
    task: Content
    status: Content
    word: SchedulerWord | None
    now: float = 0.0
    stale_s: float | None = None

    @property
    def silence_s(self) -> float:
        return self.now - _number(self.task or self.status, "updated")

    @property
    def stale(self) -> bool:
        default_s = STALE_S if self.task else TRAINER_STALE_S
        return self.silence_s > (default_s if self.stale_s is None else self.stale_s)

    @property
    def gone(self) -> bool:
        return self.word is not None and self.word.state is State.MISSING

    @property
    def parent_is_silent(self) -> bool:
        unfinished = self.task.get("state") in (State.RUNNING, State.REQUEUED)
        return not self.task or (unfinished and (self.gone or self.stale))


def _select(job: Content, task: Content, status: Content, word: SchedulerWord | None) -> _Evidence:
    """Leave out what is about another job, an earlier attempt, or a job that a run by hand came after."""
    if job and task.get("job_id") != job.get("job_id"):
        task = {}
    owner = job or task
    if owner and status.get("job_id") != owner.get("job_id"):
        began = max(_number(job, "submitted"), _number(task, "started"))
        if status and status.get("job_id") is None and _number(status, "started") >= began:
            return _Evidence({}, {}, status, None)
        status = {}
    if _number(status, "updated") < _number(task, "started"):
        status = {}  # of an earlier attempt
    return _Evidence(job, task, status, word)


def _live(e: _Evidence) -> Verdict | None:
    if e.word is None or not e.word.live:
        return None
    # SLURM is COMPLETING for seconds after all processes are gone; after a stop, other ranks may still be ending.
    completing = e.word.state is State.COMPLETING
    if completing and e.task.get("state") in (State.COMPLETED, State.FAILED, State.OUT_OF_MEMORY):
        return _reported(e.task)
    return Verdict(e.word.state, e.word.reason)


def _ended(e: _Evidence) -> Verdict | None:
    if e.word is None or e.word.state in (State.MISSING, State.UNKNOWN):
        return None
    state, task_state = e.word.state, State.of(e.task.get("state"))
    if state is State.CANCELLED and "cancelled" in e.job:
        return _cancelled(e.job)
    if state is State.FAILED and task_state.failed:
        return _reported(e.task)
    agreeing = (e.task, e.status) if state is State.FAILED else (e.task,) if task_state is state else ()
    return Verdict(state, next(filter(None, map(_reason, agreeing)), e.word.reason))


def _recorded(e: _Evidence) -> Verdict | None:
    if _is_local_record(e.job):
        return _reported(e.job)
    verdict = e.job.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("state"):
        return None
    alive_at = max(_number(e.task, "updated"), _number(e.status, "updated"))
    requeued_since = "time" in verdict and alive_at > _number(verdict, "time")
    return None if requeued_since else _reported(verdict)


def _settled(e: _Evidence) -> Verdict | None:
    if State.of(e.task.get("state")).settled:
        return _reported(e.task)
    if e.word is not None and e.word.state is State.UNKNOWN:
        return Verdict(State.UNKNOWN, e.word.reason)
    if e.parent_is_silent and State.of(e.status.get("state")).settled:
        return _reported(e.status)
    return _cancelled(e.job) if "cancelled" in e.job else None


def _stopped(e: _Evidence) -> Verdict | None:
    if not e.task or e.task.get("state") == State.RUNNING:
        return None
    if e.gone and e.task.get("state") == State.REQUEUED:
        return Verdict(State.CANCELLED, "left the queue before it started again")
    return _reported(e.task)


def _beating(e: _Evidence) -> Verdict | None:
    if not e.task and not e.status:
        return None
    if e.gone:
        host = e.task.get("host") or e.status.get("host")
        return Verdict(State.NODE_FAIL, f"vanished while it ran{f' on {host}' if host else ''}")
    if e.parent_is_silent and e.status.get("state", State.RUNNING) != State.RUNNING:
        return _reported(e.status)
    if e.stale:
        return Verdict(State.STALE, f"no sign of life for {e.silence_s / 60:.0f} minutes")
    return Verdict(State.RUNNING, "")


def _submitted(e: _Evidence) -> Verdict | None:
    if e.job and e.gone:
        return Verdict(State.CANCELLED, "left the queue before it started")
    return Verdict(State.PENDING, "") if e.job else None


_RULES = (_live, _ended, _recorded, _settled, _stopped, _beating, _submitted)  # the rows of the table, in its order


def _is_local_record(job: Content) -> bool:
    return job.get("launcher") == "local" and "state" in job


def _has_no_process(job: Content) -> bool:
    """True if a local job is recorded as RUNNING while no process holds its lock."""
    return _is_local_record(job) and job["state"] == State.RUNNING and not is_locked(Path(str(job.get("lock"))))


def _reported(content: Content) -> Verdict:
    return Verdict(State.of(content.get("state")), _reason(content))


def _cancelled(job: Content) -> Verdict:
    return Verdict(State.CANCELLED, f"cancelled by {job['cancelled_by']}" if job.get("cancelled_by") else "")


def _reason(content: Content) -> str:
    return str(content.get("reason") or "")


def _number(content: Content, name: str) -> float:
    return number_in(content, name) or 0.0
