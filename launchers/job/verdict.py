"""How a job ended and why, from the exit code of its process, its `status.json`, its log and the kernel.

Shared by a task of SLURM and a local job. Standard library only.
"""

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

from audiotok.status import read_status

TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
REASON_CHARS = 200
LOG_TAIL_BYTES = 8192
_STOPPED = {
    "TIMEOUT": "reached its time limit",
    "PREEMPTED": "told to end from outside: preempted, or the machine went down",
    "CANCELLED": "cancelled while it was running",
    "REQUEUED": "queued again while it was running",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(
    r"^(?:error: |(?=[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b)|.*\[(?:ERROR|CRITICAL)\] - )(.*)"
)
_OUT_OF_MEMORY = re.compile(r"^MemoryError\b|DefaultCPUAllocator: can't allocate memory")
_LOST_WORKER = re.compile(r"killed by signal: Killed|exited unexpectedly")


class Outcome(NamedTuple):
    """How a job ended: its state in SLURM's words, why, and the exit code (minus the signal, if one ended it)."""

    state: str
    reason: str
    exit_code: int | None = None


def verdict(
    code: int, cause: str | None, *, folder: Path, log: Path | None, began: float, oom_killed: bool = False
) -> Outcome:
    """Tell how a job ended.

    Exit code 0 is success even after a stop: it was done before. A job that was stopped has the state of that cause,
    whatever its exit code. Exit code 2 is a mistake of the user, with its message as the reason.

    Args:
        code: exit code of the child, minus the signal if one ended it.
        cause: what stopped it, None if it ended by itself.
        folder: of the experiment, whose `status.json` may tell a reason.
        log: file with its output; its last error is the reason otherwise.
        began: unix seconds; a `status.json` older than this is not about this job.
        oom_killed: whether the kernel has killed a process of this job's memory group since it began.
    """
    if code == 0:
        return Outcome("COMPLETED", "", 0)
    status = read_status(folder) or {}
    updated = status.get("updated")
    told = str(status.get("reason") or "") if isinstance(updated, int | float) and updated >= began else ""
    if cause is not None:
        remark = f" (exit code {code}: {told or last_error(log)})" if code not in TERMINATED else ""
        remark = " (killed, as it did not end in time)" if code in KILLED else remark
        return Outcome(cause, _STOPPED[cause] + remark, code)
    told = told or last_error(log)
    if oom_killed and (code in KILLED or _LOST_WORKER.search(told)):
        return Outcome("OUT_OF_MEMORY", "killed by the kernel: out of memory", code)
    if _OUT_OF_MEMORY.search(told):
        return Outcome("OUT_OF_MEMORY", told, code)
    if code in KILLED:
        return Outcome("FAILED", "killed by SIGKILL (out of memory?)", code)
    if code < 0:
        return Outcome("FAILED", f"killed by {_signal_name(-code)}", code)
    return Outcome("FAILED", f"exit code {code}" + (f": {told}" if told else ""), code)


def last_error(log: Path | None) -> str:
    """Return what the last line of a log that reads as an error says, else the last line; "" if there is none."""
    try:
        with (log or Path()).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            tail = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in _COLOUR.sub("", tail).splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
    return next(iter(errors[-1:] or lines[-1:]), "")[:REASON_CHARS]


def oom_kills(root: Path = Path("/")) -> int:
    """Return how many processes of our memory group the kernel has killed for want of memory; 0 if it does not tell.

    Read from `memory.events` (cgroup v2) or `memory.oom_control` (v1); `root` is where /proc and /sys stand.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    mounts, count = root / "sys/fs/cgroup", 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            name, mount = ("memory.oom_control", mounts / "memory") if controllers else ("memory.events", mounts)
            for folder in (mount / path.lstrip("/"), mount):  # a container may show its own group as the root
                with contextlib.suppress(OSError):
                    words = (folder / name).read_text().split()
                    count = max(count, int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0)
                    break
    return count


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
