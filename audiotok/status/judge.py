"""The one verdict on an experiment, from the files of its folder alone."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiotok.files import is_locked, read_json
from audiotok.status.folder import JOB_FILE, STATUS_FILE, TASK_FILE
from audiotok.status.state import State, Verdict

STALE_S = 600.0  # a job whose parent process, which beats every 15 s, is silent for this long does not count as running
TRAINER_STALE_S = 3600.0  # the same for a trainer by itself, which beats between steps only


def experiment_state(folder: Path, *, stale_s: float | None = None) -> Verdict | None:
    """Judge an experiment from its folder alone; None if it was never submitted nor run.

    What counts is the latest job, or a run by hand that began after it: what an earlier one wrote is left out. Of what
    is told about it, the first of these that says anything wins: what the scheduler said at its end; how its parent
    process saw it end; the parent's heartbeat, if it is fresh; how the trainer says that it ended; the trainer's
    heartbeat. The trainer alone knows that it diverged, which makes DIVERGED of any FAILED.

    Args:
        folder: of the experiment.
        stale_s: seconds after which a heartbeat counts no more; by default STALE_S for that of a parent process, and
            TRAINER_STALE_S for that of a trainer.
    """
    folder = Path(folder)
    job, task, status = (read_json(folder / name) for name in (JOB_FILE, TASK_FILE, STATUS_FILE))
    if job is not None and task is not None and task.get("job_id") != job.get("job_id"):
        task = None
    owner = job or task
    if owner is not None and status is not None and status.get("job_id") != owner.get("job_id"):
        began = max(_time(job or {}, "submitted"), _time(task or {}, "started"))
        by_hand = status.get("job_id") is None and _time(status, "started") >= began
        job, task, status = (None, None, status) if by_hand else (job, task, None)
    if status is not None and task is not None and _time(status, "updated") < _time(task, "started"):
        status = None  # of an earlier attempt of this job
    recorded = job is not None and job.get("launcher") == "local" and "state" in job
    state = _judge_local(folder, job) if job and recorded else _judge(job or {}, task, status, stale_s)
    if state is not None and state.state == "FAILED" and status is not None and status.get("state") == "DIVERGED":
        return _told(status)
    return state


def _judge(
    job: Mapping[str, Any], task: Mapping[str, Any] | None, status: Mapping[str, Any] | None, stale_s: float | None
) -> Verdict | None:
    """Judge a job, its parent process and its trainer, each as far as it is there."""
    told, cancelled = job.get("verdict"), "cancelled" in job
    alive_at = max(_time(entry, "updated") for entry in (task or {}, status or {}))
    if isinstance(told, dict) and "state" in told and ("time" not in told or alive_at <= _time(told, "time")):
        return _told(told)
    if task is not None and task.get("state") not in ("RUNNING", "REQUEUED"):
        return _told(task)
    if status is not None and status.get("state") != "RUNNING" and (task is None or _is_stale(task, stale_s, STALE_S)):
        return _told(status)
    if cancelled:
        return Verdict(State.CANCELLED, "")
    if task is not None:
        return _told(task) if task.get("state") == "REQUEUED" else _beating(task, stale_s, STALE_S)
    if status is not None:
        return _beating(status, stale_s, TRAINER_STALE_S)
    return Verdict(State.PENDING, "") if job else None


def _told(content: Mapping[str, Any]) -> Verdict:
    return Verdict(State.of(content.get("state")), str(content.get("reason") or ""))


def _beating(content: Mapping[str, Any], stale_s: float | None, default_s: float) -> Verdict:
    if _is_stale(content, stale_s, default_s):
        silence_s = time.time() - _time(content, "updated")
        return Verdict(State.STALE, f"no sign of life for {silence_s / 60:.0f} minutes")
    return Verdict(State.RUNNING, "")


def _is_stale(content: Mapping[str, Any], stale_s: float | None, default_s: float) -> bool:
    return time.time() - _time(content, "updated") > (default_s if stale_s is None else stale_s)


def _judge_local(folder: Path, job: dict[str, Any]) -> Verdict:
    """Judge a local job that has a record, by it and by the lock that its process holds: exact."""
    if job.get("state") == "RUNNING" and not is_locked(Path(str(job.get("lock")))):
        job = read_json(folder / JOB_FILE) or job  # it may have ended properly between the two looks
        if job.get("state") == "RUNNING":
            return Verdict(State.NODE_FAIL, "its process vanished")
    return _told(job)


def _time(content: Mapping[str, Any], name: str) -> float:
    value = content.get(name)
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:  # JSON allows integers of any size
        return 0.0
