"""Runs other programs: short commands, and the training processes of a job, on SLURM and on this machine.

A stop, whatever its cause, reaches a child as one SIGTERM: the trainer then writes a checkpoint and exits with 143.
What a child leaves behind is killed with it, and a child dies with its parent (Linux). Standard library only.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from audiotok.status import read_status
from audiotok.text import number_in

TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
SETTLE_S = 1.0  # a signal for parent and child may end the child before the parent receives it
PEERS_S = 30.0  # when one process of a job has failed, the others get this long to notice
_FAILURE_CHARS, _REASON_CHARS, _LOG_TAIL_BYTES = 300, 200, 8192
_PR_SET_PDEATHSIG = 1
# Reason of a job that was stopped, by the state that it ends in.
STOPPED = {
    "TIMEOUT": "reached its time limit",
    "PREEMPTED": "stopped from outside: preempted, or the machine went down",
    "CANCELLED": "cancelled while it was running",
    "REQUEUED": "queued again while it was running",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b"
_ERROR_LINE = re.compile(rf"^(?:error: |(?={_EXCEPTION})|.*\[(?:ERROR|CRITICAL)\] - )(.*)")
_OUT_OF_MEMORY = re.compile(r"^MemoryError\b|DefaultCPUAllocator: can't allocate memory")
_LOST_WORKER = re.compile(r"killed by signal: Killed|exited unexpectedly")


def run_command(
    command: Sequence[str], seconds: float = 20.0, *, environ: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Run a command without input; returns its output and, if it failed, why in one line. Never raises.

    `environ` is all of its environment, by default ours.
    """
    try:
        process = sp.run(
            command, env=environ, stdin=sp.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except sp.TimeoutExpired:
        return "", f"no answer within {seconds:g} s"
    except OSError as error:
        return "", str(error)
    if process.returncode == 0:
        return process.stdout, ""
    message = " ".join(process.stderr.split())[-_FAILURE_CHARS:]
    return process.stdout, message or f"{command[0]} exit code {process.returncode}"


class Signals:
    """Remembers the first signal that requests a stop, and wakes the sleep of this process for any of them.

    Args:
        causes: the state that a job stopped by each signal ends in: TIMEOUT, PREEMPTED, …
    """

    def __init__(self, causes: Mapping[signal.Signals, str]) -> None:
        self.cause: str | None = None
        self.count = 0
        self._causes = causes
        # A signal that arrives just before select() would not interrupt it; a byte in this pipe does.
        self._wakeup, write = os.pipe()
        for end in (self._wakeup, write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in causes:
            signal.signal(number, self._remember)

    def sleep(self, seconds: float) -> None:
        """Sleep until a signal arrives or a child ends, at most this long."""
        select.select([self._wakeup], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)

    def wait_for_cause(self, seconds: float) -> str | None:
        """Wait for a signal that requests a stop, at most this long; returns its cause."""
        deadline = time.monotonic() + seconds
        while self.cause is None and (left := deadline - time.monotonic()) > 0:
            self.sleep(left)
        return self.cause

    def _remember(self, number: int, _: object) -> None:
        self.count += 1
        self.cause = self.cause or self._causes[signal.Signals(number)]


def start(
    command: Sequence[str], *, environ: Mapping[str, str], cwd: str | None = None, log: Path | None = None
) -> "sp.Popen[bytes]":
    """Start a child in a session of its own, deaf to SIGUSR2, to be killed with this process.

    `environ` is all of its environment; its output is appended to `log`, by default it shares ours.

    Raises:
        OSError: if it cannot be started.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:  # runs in the child; safe, as there is one thread here
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to all processes of a job
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the call above
                os._exit(128 + signal.SIGKILL)

    with contextlib.nullcontext() if log is None else log.open("ab") as output:
        return sp.Popen(
            command, cwd=cwd, env=dict(environ), stdin=sp.DEVNULL, stdout=output, stderr=sp.STDOUT if output else None,
            start_new_session=True, preexec_fn=prepare,
        )  # fmt: skip


def rank_environment(rank: int, world_size: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """Environment variables of one process of a distributed job (`env://` in PyTorch)."""
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": local_rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": address, **{name: str(number) for name, number in numbers.items()}}


def frozen_environment(folder: Path) -> dict[str, str]:
    """The environment variable that names the frozen configuration of an experiment, nothing if it has none."""
    frozen = folder / "frozen.json"
    return {"AUDIOTOK_FROZEN": str(frozen)} if frozen.is_file() else {}


def attend(
    children: Sequence["sp.Popen[bytes]"],
    signals: Signals,
    *,
    poll: Callable[[], str | None],
    poll_s: float,
    grace_s: Callable[[str], float],
) -> str | None:
    """Wait for the end of all children and of what they started; returns what stopped them, None if nothing did.

    Args:
        children: processes made by `start`.
        signals: stops requested by a signal.
        poll: called every `poll_s`; returns another cause of a stop, if there is one.
        poll_s: seconds between two polls.
        grace_s: seconds between SIGTERM and SIGKILL for a cause; infinity to leave SIGKILL to others.
    """
    cause, deadline = None, float("inf")
    while running := [child for child in children if child.poll() is None]:
        requested = poll()
        if cause is None and (cause := signals.cause or requested) is not None:
            _signal(running, signal.SIGTERM)
            deadline = time.monotonic() + grace_s(cause)
        elif time.monotonic() > deadline:
            _signal(running, signal.SIGKILL)
        elif deadline == float("inf") and any(child.returncode for child in children):
            deadline = time.monotonic() + PEERS_S
        signals.sleep(poll_s)
    if cause is None and any(child.returncode in TERMINATED for child in children):
        cause = signals.wait_for_cause(SETTLE_S)
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    return cause


def _signal(children: Sequence["sp.Popen[bytes]"], number: signal.Signals) -> None:
    for child in children:
        child.send_signal(number)  # not to its group: a trainer ends the workers of its data loader itself


class Outcome(NamedTuple):
    """How a job ended: its state in SLURM's words, why, and the exit code (minus the signal, if one ended it)."""

    state: str
    reason: str
    exit_code: int | None = None


def outcome(
    code: int, cause: str | None, *, folder: Path, log: Path | None, began: float, oom_killed: bool = False
) -> Outcome:
    """How a job ended.

    Exit code 0 is success even after a stop: it was done before. A job that was stopped has the state of that cause,
    whatever its exit code.

    Args:
        code: exit code of the child, minus the signal if one ended it.
        cause: what stopped it, None if it ended by itself.
        folder: of the experiment, whose `status.json` may hold the reason.
        log: file with its output; its last error is the reason otherwise.
        began: unix seconds; a `status.json` older than this is not about this job.
        oom_killed: whether the kernel has killed a process of this job's memory group since it began.
    """
    if code == 0:
        return Outcome("COMPLETED", "", 0)
    status = read_status(folder) or {}
    if (number_in(status, "updated") or 0.0) < began:
        status = {}  # of an earlier job
    reason = str(status.get("reason") or last_error(log))
    if cause is not None:
        remark = f" (exit code {code}: {reason})" if code not in TERMINATED else ""
        remark = " (killed, as it did not end in time)" if code in KILLED else remark
        return Outcome(cause, STOPPED[cause] + remark, code)
    if oom_killed and (code in KILLED or _LOST_WORKER.search(reason)):
        return Outcome("OUT_OF_MEMORY", "killed by the kernel: out of memory", code)
    if _OUT_OF_MEMORY.search(reason):
        return Outcome("OUT_OF_MEMORY", reason, code)
    if code in KILLED:
        return Outcome("FAILED", "killed by SIGKILL (out of memory?)", code)
    if code < 0:
        name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
        return Outcome("FAILED", f"killed by {name}", code)
    return Outcome("FAILED", f"exit code {code}" + (f": {reason}" if reason else ""), code)


def at_time_limit(ended: Outcome, timeouts: int, most: int) -> Outcome:
    """What follows a TIMEOUT: REQUEUED, or TIMEOUT if it was requeued `most` times (`timeouts` so far) already."""
    if timeouts >= most:
        return ended._replace(reason=f"{ended.reason}, after {most} times more time" if most else ended.reason)
    return requeued(ended._replace(reason=f"{ended.reason} ({timeouts + 1} of {most})"))


def requeued(ended: Outcome) -> Outcome:
    """The outcome of a job that is queued again after this end."""
    return ended._replace(state="REQUEUED", reason=f"{ended.reason}; queued again to go on")


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes of our memory group the kernel has killed for lack of memory; 0 if that cannot be read.

    Read from `memory.events` (cgroup v2) or `memory.oom_control` (v1); `root` is where /proc and /sys stand.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    count, mounts = 0, root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name, mount = ("memory.oom_control", mounts / "memory") if controllers else ("memory.events", mounts)
        for folder in (mount / path.lstrip("/"), mount):  # a container may show its own group as the root
            with contextlib.suppress(OSError):
                found = re.search(r"^oom_kill (\d+)", (folder / name).read_text(), re.MULTILINE)
                count = max(count, int(found[1]) if found else 0)
                break
    return count


def last_error(log: Path | None) -> str:
    """The last line of a log that reads as an error, else its last line; "" if there is none."""
    try:
        with (log or Path()).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            tail = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in _COLOUR.sub("", tail).splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
    return next(iter(errors[-1:] or lines[-1:]), "")[:_REASON_CHARS]
