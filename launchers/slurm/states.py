"""What became of a job of SLURM: the verdict of SLURM's own word and of what the job wrote about itself.

SLURM's word counts most, but it forgets a job minutes after its end, and many sites have no accounting. So the job
writes down its start, life and end (`task.json`, see `launchers.job.marker`; `status.json`, see `audiotok.status`), and
whatever SLURM does not know any more is judged by these. No state here lasts for ever.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiotok.launchers.slurm.commands import ENDED, Entry
from audiotok.status import TASK_FILE, State, Verdict, read_json, read_status

FRESH_S = 45.0  # three of the heartbeats of `launchers.job.marker`
_TOLD = frozenset({"COMPLETED", "FAILED", "OUT_OF_MEMORY", "CANCELLED", "TIMEOUT"})


def marker_of(folder: Path, job_id: str) -> dict[str, Any]:
    """What a task wrote about itself, empty if what stands there is of another job."""
    marker = read_json(folder / TASK_FILE) or {}
    return marker if marker.get("job_id") == job_id else {}


def judge(folder: Path, job: Mapping[str, Any], said: Entry | None) -> Verdict:
    """The last word on a task that neither waits nor runs.

    Args:
        folder: of its experiment.
        job: its `job.json`, or at least `job_id`; with `cancelled` if one of our commands cancelled it.
        said: SLURM's last word, None if it has forgotten the task.
    """
    job_id = str(job.get("job_id"))
    marker, status = marker_of(folder, job_id), read_status(folder) or {}
    status = status if status.get("job_id") == job_id else {}
    if said is not None and not said.is_live:
        return _judge_by_slurm(said, marker, status, job)
    return _judge_alone(marker, status, job)


def beats(folder: Path, job_id: str) -> bool:
    """Tell whether a task runs by its own account, even if SLURM has lost its memory: its heartbeat is fresh.

    On the machine that it runs on its process tells better.
    """
    marker = marker_of(folder, job_id)
    updated, pid = marker.get("updated"), marker.get("pid")
    if marker.get("state") != "RUNNING" or not isinstance(updated, int | float):
        return False
    if marker.get("host") == socket.gethostname() and isinstance(pid, int):
        return Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()
    return abs(time.time() - updated) < FRESH_S


def ended_by_itself(folder: Path, job_id: str) -> Verdict | None:
    """How a task says that it has ended, None if it does not, or if something else ended it.

    SLURM goes on for seconds about a job whose processes are gone. Nothing of it writes any more.
    """
    marker, status = marker_of(folder, job_id), read_status(folder) or {}
    if marker.get("state") not in ("COMPLETED", "FAILED", "OUT_OF_MEMORY"):
        return None
    return _own_words(marker, status if status.get("job_id") == job_id else {})


def needs_accounting(folder: Path, job_id: str) -> bool:
    """Tell whether the task has left open how it ended, so that SLURM's books are worth a look."""
    return marker_of(folder, job_id).get("state") not in _TOLD


def _judge_by_slurm(
    said: Entry, marker: Mapping[str, Any], status: Mapping[str, Any], job: Mapping[str, Any]
) -> Verdict:
    if said.state == "COMPLETED":
        return Verdict(State.COMPLETED, "")
    if said.state == "CANCELLED" and "cancelled" in job:
        return Verdict(State.CANCELLED, _cancelled_by(job))
    told = str(marker.get("reason") or "")
    if said.state != "FAILED":
        own = told if marker.get("state") == said.state else ""
        by = f" {said.reason}" if said.state == "CANCELLED" and said.reason.startswith("by ") else ""
        return Verdict(
            State.CANCELLED if said.state == "REVOKED" else State.of(said.state), own or ENDED[said.state] + by
        )
    if "oom" in said.reason.lower().replace("outofmemory", "oom"):
        return Verdict(State.OUT_OF_MEMORY, told or ENDED["OUT_OF_MEMORY"])
    if marker.get("state") in (None, "RUNNING", "REQUEUED", "COMPLETED"):
        reason = told or _reason(status) or _plain(said.reason)
        marker = {"state": "FAILED", "reason": reason}
    return _own_words(marker, status)


def _judge_alone(marker: Mapping[str, Any], status: Mapping[str, Any], job: Mapping[str, Any]) -> Verdict:
    state = marker.get("state")
    if state in _TOLD:
        return _own_words(marker, status)
    if "cancelled" in job:
        return Verdict(State.CANCELLED, _cancelled_by(job))
    if state == "PREEMPTED":
        return Verdict(State.PREEMPTED, str(marker.get("reason") or ENDED["PREEMPTED"]))
    if state == "REQUEUED":
        return Verdict(State.CANCELLED, "left the queue before it started again")
    if status and status.get("state") in ("COMPLETED", "FAILED", "DIVERGED"):
        return Verdict(State.of(status["state"]), _reason(status))
    if state is not None or status:
        host = marker.get("host") or status.get("host")
        return Verdict(State.NODE_FAIL, f"vanished while it ran{f' on {host}' if host else ''}")
    return Verdict(State.CANCELLED, "left the queue before it started")


def _own_words(marker: Mapping[str, Any], status: Mapping[str, Any]) -> Verdict:
    """What the task said; that it diverged, only the trainer knows."""
    if marker.get("state") == "FAILED" and status.get("state") == "DIVERGED":
        return Verdict(State.DIVERGED, _reason(status))
    return Verdict(State.of(marker.get("state")), str(marker.get("reason") or ""))


def _cancelled_by(job: Mapping[str, Any]) -> str:
    return f"cancelled by {job['cancelled_by']}" if job.get("cancelled_by") else "cancelled"


def _reason(content: Mapping[str, Any]) -> str:
    return str(content.get("reason") or "")


def _plain(reason: str) -> str:
    """SLURM's reason for a failure in plain words."""
    return {"NonZeroExitCode": "its script failed; see the log", "None": "", "": ""}.get(reason, reason)
