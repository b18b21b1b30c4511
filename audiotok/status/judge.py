"""One verdict on an experiment, from the three files of its folder and from its scheduler."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    and `status.json` of other jobs, and `status.json` of an earlier attempt. Of the rest, the first line that applies
    decides. FAILED is replaced by the trainer's DIVERGED, as nothing else knows of a divergence.

    | evidence                                                          | verdict                               |
    | ----------------------------------------------------------------- | ------------------------------------- |
    | scheduler: COMPLETING; task: COMPLETED, FAILED or OUT_OF_MEMORY   | the task's                            |
    | scheduler: live                                                   | the scheduler's                       |
    | scheduler: CANCELLED; job: cancelled                              | CANCELLED, by whom                    |
    | scheduler: FAILED; task: ended, but not COMPLETED                 | the task's                            |
    | scheduler: FAILED                                                 | FAILED; task's, trainer's, its reason |
    | scheduler: any other end                                          | that; the task's reason if it agrees  |
    | job: record of a local job                                        | the record's                          |
    | job: verdict, not older than the last heartbeat                   | that                                  |
    | task: COMPLETED, FAILED, OUT_OF_MEMORY, CANCELLED or TIMEOUT      | the task's                            |
    | scheduler: no answer                                              | UNKNOWN                               |
    | trainer: COMPLETED, FAILED or DIVERGED; task: none or silent      | the trainer's                         |
    | job: cancelled                                                    | CANCELLED, by whom                    |
    | task: REQUEUED; scheduler: job unknown                            | CANCELLED: left the queue             |
    | task: PREEMPTED or REQUEUED                                       | the task's                            |
    | task: RUNNING, or trainer: RUNNING or INTERRUPTED; job unknown    | NODE_FAIL: vanished                   |
    | trainer: INTERRUPTED; task: none or silent                        | INTERRUPTED                           |
    | task: RUNNING, or none and trainer: RUNNING                       | RUNNING, or STALE if it is silent     |
    | job: submitted; scheduler: job unknown                            | CANCELLED: left the queue             |
    | job: submitted                                                    | PENDING                               |

    A RUNNING or REQUEUED task is silent if its heartbeat is too old, or if the scheduler does not know its job.

    Args:
        job: content of `job.json`, None without one; so are the other two.
        task: content of `task.json`.
        status: content of `status.json`.
        scheduler: what the scheduler reports of the job, None to judge from the files alone.
        now: unix seconds; by default the present.
        stale_s: seconds after which a heartbeat is too old, by default STALE_S and TRAINER_STALE_S.
    """
    job, task, status, scheduler = _select(job or {}, task or {}, status or {}, scheduler)
    silence_s = (time.time() if now is None else now) - _number(task or status, "updated")
    stale = silence_s > ((STALE_S if task else TRAINER_STALE_S) if stale_s is None else stale_s)
    gone = scheduler is not None and scheduler.state is State.MISSING
    silent = not task or (task.get("state") in (State.RUNNING, State.REQUEUED) and (gone or stale))
    verdict = _live(scheduler, task) or _end_in_scheduler(scheduler, job, task, status)
    verdict = verdict or _end_in_files(scheduler, job, task, status, silent=silent)
    verdict = verdict or _stopped(task, gone=gone) or _beating(task, status, silence_s, gone, silent, stale)
    if verdict is None and job:
        return Verdict(State.CANCELLED, "left the queue before it started") if gone else Verdict(State.PENDING, "")
    if verdict is not None and verdict.state is State.FAILED and status.get("state") == State.DIVERGED:
        return _reported(status)
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


def _select(
    job: Content, task: Content, status: Content, scheduler: SchedulerWord | None
) -> tuple[Content, Content, Content, SchedulerWord | None]:
    """Leave out what is about another job, an earlier attempt, or a job that a run by hand came after."""
    if job and task.get("job_id") != job.get("job_id"):
        task = {}
    owner = job or task
    if owner and status and status.get("job_id") != owner.get("job_id"):
        began = max(_number(job, "submitted"), _number(task, "started"))
        if status.get("job_id") is None and _number(status, "started") >= began:
            return {}, {}, status, None
        status = {}
    return job, task, {} if _number(status, "updated") < _number(task, "started") else status, scheduler


def _live(word: SchedulerWord | None, task: Content) -> Verdict | None:
    if word is None or not word.live:
        return None
    # SLURM is COMPLETING for seconds after all processes are gone; after a stop, other ranks may still be ending.
    if word.state is State.COMPLETING and task.get("state") in (State.COMPLETED, State.FAILED, State.OUT_OF_MEMORY):
        return _reported(task)
    return Verdict(word.state, word.reason)


def _end_in_scheduler(word: SchedulerWord | None, job: Content, task: Content, status: Content) -> Verdict | None:
    if word is None or word.state in (State.MISSING, State.UNKNOWN):
        return None
    if word.state is State.CANCELLED and "cancelled" in job:
        return _cancelled(job)
    ended = task.get("state")
    if word.state is not State.FAILED:
        return Verdict(word.state, (_reason(task) if ended == word.state else "") or word.reason)
    if ended in (None, State.RUNNING, State.REQUEUED, State.COMPLETED):
        return Verdict(State.FAILED, _reason(task) or _reason(status) or word.reason)
    return _reported(task)


def _end_in_files(
    word: SchedulerWord | None, job: Content, task: Content, status: Content, *, silent: bool
) -> Verdict | None:
    if _is_local_record(job):
        return _reported(job)
    recorded = job.get("verdict")
    if isinstance(recorded, dict) and recorded.get("state"):
        alive_at = max(_number(task, "updated"), _number(status, "updated"))
        if "time" not in recorded or alive_at <= _number(recorded, "time"):  # else it was requeued since
            return _reported(recorded)
    if State.of(task.get("state")).settled:
        return _reported(task)
    if word is not None and word.state is State.UNKNOWN:
        return Verdict(State.UNKNOWN, word.reason)
    if silent and State.of(status.get("state")).settled:
        return _reported(status)
    return _cancelled(job) if "cancelled" in job else None


def _stopped(task: Content, *, gone: bool) -> Verdict | None:
    if not task or task.get("state") == State.RUNNING:
        return None
    if gone and task.get("state") == State.REQUEUED:
        return Verdict(State.CANCELLED, "left the queue before it started again")
    return _reported(task)


def _beating(
    task: Content, status: Content, silence_s: float, gone: bool, silent: bool, stale: bool
) -> Verdict | None:
    if not task and not status:
        return None
    if gone:
        host = task.get("host") or status.get("host")
        return Verdict(State.NODE_FAIL, f"vanished while it ran{f' on {host}' if host else ''}")
    if silent and status and status.get("state") != State.RUNNING:
        return _reported(status)
    return Verdict(State.STALE, f"no sign of life for {silence_s / 60:.0f} minutes") if stale else Verdict(State.RUNNING, "")


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
