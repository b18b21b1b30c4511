"""What becomes of a task of SLURM that was stopped: who stopped it, and whether it is queued again.

Standard library only.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audiotok.launchers.child import ask
from audiotok.launchers.job.marker import Marker
from audiotok.launchers.job.place import ASK_S, Place
from audiotok.launchers.job.verdict import Outcome
from audiotok.status import JOB_FILE, read_json

PATIENCE_S = 900.0  # a controller that does not answer is asked again for so long
PAUSE_S = 2.0
_CANCELLED = "it was cancelled"


def settle(ended: Outcome, place: Place, marker: Marker, folder: Path, profile: Mapping[str, Any]) -> Outcome:
    """Find out who stopped the job, and have it queued again if it was the time limit."""
    if "cancelled" in _job_of(folder, place):
        return ended._replace(state="CANCELLED", reason="cancelled while it was running")
    if marker.has_ended():
        return ended  # another rank failed, and srun ends the others for it
    if ended.state == "PREEMPTED":
        shown, _ = _show(place)
        ended = ended._replace(state=stopped_by(shown, place.attempt))
        if ended.state == "PREEMPTED" and "JobState=RUNNING" in shown.split():
            # A partition with a GraceTime: SLURM takes a job that leaves within it for one that has ended.
            return _queue_again(ended, place, marker, folder, ended.reason)
    if ended.state == "CANCELLED":
        return ended._replace(reason="cancelled with scancel")
    if ended.state != "TIMEOUT":
        return ended
    ended = ended._replace(reason=ended.reason.replace("told to end from outside", "reached its time limit"))
    most = int(profile.get("max_num_timeout", 0))
    if marker.timeouts >= most:
        return ended._replace(reason=f"{ended.reason}, after {most} times more time" if most else ended.reason)
    marker.timeouts += 1
    settled = _queue_again(ended, place, marker, folder, f"{ended.reason} ({marker.timeouts} of {most})")
    if settled.state != "REQUEUED":
        marker.timeouts -= 1
    return settled


def _queue_again(ended: Outcome, place: Place, marker: Marker, folder: Path, reason: str) -> Outcome:
    """Have a job queued again that has written its checkpoint; the verdict says whether that went well."""
    queued = ended._replace(state="REQUEUED", reason=f"{reason}; queued again to go on")
    marker.end(queued)  # first, as SLURM may end us while it answers
    failure = requeue(place, lambda: "cancelled" in _job_of(folder, place))
    if not failure:
        return queued
    if failure == _CANCELLED:
        return ended._replace(state="CANCELLED", reason=f"cancelled when it had {ended.reason}")
    return ended._replace(reason=f"{ended.reason}; could not be queued again: {failure}")


def stopped_by(shown: str, attempt: int) -> str:
    """Tell from `scontrol show job` what ended a job with SIGTERM; PREEMPTED if it does not tell."""
    told = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if told.get("Reason") == "TimeLimit":
        return "TIMEOUT"
    stopping = told.get("JobState") in ("COMPLETING", "CANCELLED") and told.get("PreemptTime", "None") == "None"
    queued_again = told.get("Restarts", str(attempt)) != str(attempt)
    return "CANCELLED" if stopping and not queued_again else "PREEMPTED"


def requeue(place: Place, cancelled: Callable[[], bool], patience_s: float = PATIENCE_S) -> str:
    """Have a job queued again, however long the controller is away; returns why it is not, "" if it is.

    A job that somebody cancels meanwhile stays cancelled.
    """
    deadline = time.monotonic() + patience_s
    asked = False
    while True:
        shown, failure = _show(place)
        stopping = not failure and stopped_by(shown, place.attempt) == "CANCELLED"
        if cancelled() or (stopping and not asked):
            return _CANCELLED
        if stopping:
            return ""  # on its way to the queue, though the answer to our question was lost
        asked = asked or not failure
        if not failure and not (failure := ask(["scontrol", "requeue", place.job_id], ASK_S)[1]):
            return ""
        answers = not ask(["scontrol", "ping"], ASK_S)[1]
        if answers or time.monotonic() > deadline:
            return failure
        time.sleep(PAUSE_S)


def _show(place: Place) -> tuple[str, str]:
    return ask(["scontrol", "show", "job", "-o", place.job_id], ASK_S)


def _job_of(folder: Path, place: Place) -> dict[str, Any]:
    job = read_json(folder / JOB_FILE) or {}
    return job if job.get("job_id") == place.job_id else {}
