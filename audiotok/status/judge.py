"""One verdict on an experiment, from the three files of its folder and from its scheduler."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from audiotok.files import is_locked, read_json
from audiotok.status.amendments import extended
from audiotok.status.state import JOB_FILE, STATUS_FILE, TASK_FILE, SchedulerWord, State, Verdict, same_job
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
    | RUNNING     |              | COMPLETED                        |                      | task      |
    | RUNNING     |              | mute                             |                      | RUNNING   |
    | live        |              |                                  |                      | scheduler |
    | CANCELLED   | cancelled    |                                  |                      | CANCELLED |
    | FAILED      |              | failed                           |                      | task      |
    | COMPLETED   |              | settled                          |                      | task      |
    | COMPLETED   |              |                                  | settled              | trainer   |
    | COMPLETED   |              |                                  |                      | FAILED    |
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
    trainer if its heartbeat is too old; a RUNNING task is mute if its heartbeat is too old. An ended scheduler takes
    the reason of a task that agrees, and for FAILED the first of the task's, the trainer's and its own. COMPLETED by a
    scheduler is an exit code of 0, which a script also has that ends before the task begins: it needs the job's own
    word. A verdict FAILED gives way to the trainer's DIVERGED, which nothing else can know, and RUNNING without a
    reason has the trainer's warning for it.

    Args:
        job: content of `job.json`, None without one.
        task: content of `task.json`, by the parent process in the job.
        status: content of `status.json`, by the trainer.
        scheduler: what the scheduler reports of the job, None to judge from the files alone.
        now: unix seconds; by default the present.
        stale_s: seconds after which a heartbeat is too old, by default STALE_S and TRAINER_STALE_S.
    """
    job, task, status, scheduler = _select(job or {}, task or {}, status or {}, scheduler)
    now = time.time() if now is None else now
    verdict = _by_scheduler(job, task, status, scheduler, now) or _by_record(job, task, status)
    verdict = verdict or _by_files(job, task, status, scheduler, now, stale_s)
    if verdict is not None and verdict.state is State.FAILED and status.get("state") == State.DIVERGED:
        return _reported(status)
    if verdict == (State.RUNNING, ""):
        return Verdict(State.RUNNING, str(status.get("warning") or ""))
    return verdict


def experiment_state(folder: Path, *, stale_s: float | None = None) -> Verdict | None:
    """Judge an experiment by its folder, and what it waits for by theirs, without a scheduler; see `judge`."""
    verdict, needs = _state_of(folder, stale_s), (read_json(folder / JOB_FILE) or {}).get("needs")
    if verdict is None or verdict.state is not State.PENDING or not isinstance(needs, dict):
        return verdict
    return waiting(verdict, unmet(folder, needs))


def _state_of(folder: Path, stale_s: float | None = None) -> Verdict | None:
    """`experiment_state` by its own files alone, in which what waits for others is PENDING."""
    job, task, status = (read_json(folder / name) for name in (JOB_FILE, TASK_FILE, STATUS_FILE))
    word = None
    if job is not None and _waits_elsewhere(job, folder):
        return Verdict(State.NODE_FAIL, queued_elsewhere(job))
    if job is not None and _has_no_process(job):
        job = read_json(folder / JOB_FILE) or job  # it may have ended properly between the two looks
        word = SchedulerWord(State.NODE_FAIL, "its process vanished") if _has_no_process(job) else None
    return extended(judge(job, task, status, word, stale_s=stale_s), folder)


def hold_up(needs: Mapping[str, Verdict]) -> Verdict | None:
    """What keeps an experiment from starting, by the states of those that it needs: WAITING or BLOCKED, and why."""
    waits = []
    for sig, (state, reason) in needs.items():
        if state is State.NOT_STARTED:
            return Verdict(State.BLOCKED, reason or f"needs {sig}, which is not submitted")
        if not state.live and state is not State.COMPLETED:
            return Verdict(State.BLOCKED, f"needs {sig}, which is {state}{f': {reason}' if reason else ''}")
        waits += [f"{sig} ({state}{f' {reason}' * (state is State.WAITING)})"] if state.live else []
    return Verdict(State.WAITING, f"for {', '.join(waits)}") if waits else None


def unmet(folder: Path, needs: Iterable[str]) -> Verdict | None:
    """`hold_up` of an experiment from the folders beside its own alone; `needs` are signatures."""
    found = {sig: _state_of(folder.parent / Path(sig).name) or Verdict(State.NOT_STARTED, "") for sig in needs}
    # What is in the queue or half way was submitted for the weights that are there; only new ones wait for the rest.
    met = {sig: Verdict(State.COMPLETED, "") if one.state is State.EXTENDED else one for sig, one in found.items()}
    return hold_up(met)


def waiting(pending: Verdict, held: Verdict | None) -> Verdict:
    """The verdict on a pending job by what holds it up; its queue ends what is BLOCKED, and not at once."""
    return held if held is not None and held.state is State.WAITING else pending


def queued_elsewhere(job: Content) -> str:
    """Why a local job waits and never starts: its folder was copied, moved, or came from elsewhere."""
    root = job.get("root")
    where = f"{job.get('user')} in {Path(str(root)).parent}" if root else "an earlier version"
    return f"not queued here, --retry does it (but by {where})"


def _select(
    job: Content, task: Content, status: Content, word: SchedulerWord | None
) -> tuple[Content, Content, Content, SchedulerWord | None]:
    """Leave out what is of another job or an earlier attempt, or of a job that a run by hand came after."""
    if job and not same_job(task, job):
        task = {}
    owner = job or task
    if owner and not same_job(status, owner):
        began = max(_number(job, "submitted"), _number(task, "started"))
        if status and status.get("job_id") is None and _number(status, "started") >= began:
            return {}, {}, status, None
        status = {}
    if _number(status, "updated") < _number(task, "started"):
        status = {}  # of an earlier attempt
    return job, task, status, word


def _by_scheduler(
    job: Content, task: Content, status: Content, word: SchedulerWord | None, now: float
) -> Verdict | None:
    """The rows of a scheduler that knows the job."""
    if word is None or (not word.live and word.state in (State.MISSING, State.UNKNOWN)):
        return None
    state, task_state = word.state, State.of(task.get("state"))
    # SLURM is COMPLETING for seconds after all processes are gone; after a stop, other ranks may still be ending.
    if state is State.COMPLETING and task_state in (State.COMPLETED, State.FAILED, State.OUT_OF_MEMORY):
        return _reported(task)
    if state is State.RUNNING and task_state is State.COMPLETED:
        return _reported(task)  # a controller that was restarted has jobs running until their nodes have reported
    silence_s = now - _number(task, "updated")
    if state is State.RUNNING and task_state is State.RUNNING and silence_s > STALE_S:
        # Not STALE, which is retried: the job has its nodes, and may go on.
        advice = "look at its log and its node, or cancel it"
        return Verdict(state, f"no sign of life for {silence_s / 60:.0f} minutes, though its job runs: {advice}")
    if word.live:
        return Verdict(state, word.reason)
    if state is State.CANCELLED and "cancelled" in job:
        return _cancelled(job)
    if state is State.FAILED and task_state.failed:
        return _reported(task)
    if state is State.COMPLETED:
        reported = (one for one in (task, status) if State.of(one.get("state")).settled)
        unknown = {"state": State.FAILED, "reason": word.reason or "ended without reporting its result; see the log"}
        return _reported(next(reported, unknown))
    agreeing = (task, status) if state is State.FAILED else (task,) if task_state is state else ()
    return Verdict(state, next((str(one["reason"]) for one in agreeing if one.get("reason")), word.reason))


def _by_record(job: Content, task: Content, status: Content) -> Verdict | None:
    """The next two rows, of what is recorded."""
    if job.get("launcher") == "local" and "state" in job:
        return _reported(job)
    verdict = job.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("state"):
        return None
    alive_at = max(_number(task, "updated"), _number(status, "updated"))
    requeued_since = "time" in verdict and alive_at > _number(verdict, "time")
    return None if requeued_since else _reported(verdict)


def _by_files(
    job: Content, task: Content, status: Content, word: SchedulerWord | None, now: float, stale_s: float | None
) -> Verdict | None:
    """All other rows."""
    gone, task_state = word is not None and word.state is State.MISSING, State.of(task.get("state"))
    # The heartbeat of the parent counts where there is one: it beats in long steps of the trainer, too.
    silence_s = now - _number(task or status, "updated")
    stale = silence_s > ((STALE_S if task else TRAINER_STALE_S) if stale_s is None else stale_s)
    parent_is_silent = not task or (task_state in (State.RUNNING, State.REQUEUED) and (gone or stale))
    if task_state.settled:
        return _reported(task)
    if word is not None and word.state is State.UNKNOWN:
        return Verdict(State.UNKNOWN, word.reason)
    if parent_is_silent and State.of(status.get("state")).settled:
        return _reported(status)
    if "cancelled" in job:
        return _cancelled(job)
    if gone and task_state is State.REQUEUED:
        return Verdict(State.CANCELLED, "left the queue before it started again")
    if task and task_state is not State.RUNNING:
        return _reported(task)
    began = task or status
    if began and gone:
        host = task.get("host") or status.get("host")
        return Verdict(State.NODE_FAIL, f"vanished while it ran{f' on {host}' if host else ''}")
    if parent_is_silent and status.get("state", State.RUNNING) != State.RUNNING:
        return _reported(status)
    if began and stale:
        return Verdict(State.STALE, f"no sign of life for {silence_s / 60:.0f} minutes")
    if began:
        return Verdict(State.RUNNING, "")
    if job and gone:
        return Verdict(State.CANCELLED, "left the queue before it started")
    return Verdict(State.PENDING, "") if job else None


def _has_no_process(job: Content) -> bool:
    """True if a local job is recorded as RUNNING while no process holds its lock."""
    runs = job.get("launcher") == "local" and job.get("state") == State.RUNNING
    return runs and not is_locked(Path(str(job.get("lock"))))


def _waits_elsewhere(job: Content, folder: Path) -> bool:
    """True if a local job waits in the queue of another folder than that of this experiment."""
    waits = job.get("launcher") == "local" and job.get("state") == State.PENDING
    try:
        return waits and (not job.get("root") or Path(str(job.get("folder"))).resolve() != folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that no folder can have, a loop of links
        return True


def _reported(content: Content) -> Verdict:
    return Verdict(State.of(content.get("state")), str(content.get("reason") or ""))


def _cancelled(job: Content) -> Verdict:
    return Verdict(State.CANCELLED, f"cancelled by {job['cancelled_by']}" if job.get("cancelled_by") else "")


def _number(content: Content, name: str) -> float:
    return number_in(content, name) or 0.0
