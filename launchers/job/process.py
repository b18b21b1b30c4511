"""Runs the command of a job: what a task of SLURM and a local job have in common.

A parent starts its children with `start`, waits in `attend` and judges with `launchers.job.verdict`. A stop, wherever
it comes from, reaches a child as one SIGTERM: the trainer then writes a checkpoint and exits with 143. What a child
leaves behind is killed with it, and a child dies with its parent (Linux). Standard library only.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from audiotok.launchers.job.verdict import TERMINATED

FROZEN_VARIABLE, FROZEN_FILE = "AUDIOTOK_FROZEN", "frozen.json"
SETTLE_S = 1.0  # a signal for parent and child may end the child before the parent hears of it
PEERS_S = 30.0  # when one process of a job has failed, the others get this long to notice
_PR_SET_PDEATHSIG = 1


class Signals:
    """Remembers the first signal that asks for a stop, and wakes the sleep of this process for any of them.

    Args:
        causes: what each signal asks for: TIMEOUT, PREEMPTED, …
    """

    def __init__(self, causes: Mapping[signal.Signals, str]) -> None:
        self.cause: str | None = None
        self.count = 0
        self._causes = causes
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
        """Wait for a signal that asks for a stop, at most this long; returns what was asked for."""
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

    Args:
        command: what to run.
        environ: all of its environment.
        cwd: where; by default here.
        log: file that gets its output, after what is there already; by default it shares our output.

    Raises:
        OSError: if it cannot be started.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:  # runs in the child; safe, as there is one thread here
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to all processes of a job
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(128 + signal.SIGKILL)

    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        return sp.Popen(
            command,
            cwd=cwd,
            env=dict(environ),
            stdin=sp.DEVNULL,
            stdout=output,
            stderr=None if output is None else sp.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,
        )


def rank_environment(rank: int, world_size: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """Return the variables that tell a process of a distributed job who it is (`env://` in PyTorch)."""
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": local_rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": address, **{name: str(number) for name, number in numbers.items()}}


def frozen_environment(folder: Path) -> dict[str, str]:
    """Return the variable that names the frozen configuration of an experiment, nothing if it has none."""
    frozen = folder / FROZEN_FILE
    return {FROZEN_VARIABLE: str(frozen)} if frozen.is_file() else {}


def attend(
    children: Sequence["sp.Popen[bytes]"],
    signals: Signals,
    *,
    look: Callable[[], str | None],
    poll_s: float,
    grace_s: Callable[[str], float],
) -> str | None:
    """Wait for the end of all children and of what they started; returns what stopped them, None if nothing did.

    Args:
        children: processes made by `start`.
        signals: stops asked for by a signal.
        look: called every `poll_s`; returns what else asks for a stop, if anything does.
        poll_s: seconds between two looks.
        grace_s: seconds between SIGTERM and SIGKILL for a cause; infinity to leave SIGKILL to others.
    """
    cause, deadline = None, float("inf")
    while running := [child for child in children if child.poll() is None]:
        asked = look()
        if cause is None and (cause := signals.cause or asked) is not None:
            _send(running, signal.SIGTERM)
            deadline = time.monotonic() + grace_s(cause)
        elif time.monotonic() > deadline:
            _send(running, signal.SIGKILL)
        elif deadline == float("inf") and any(child.returncode for child in children):
            deadline = time.monotonic() + PEERS_S
        signals.sleep(poll_s)
    if cause is None and any(child.returncode in TERMINATED for child in children):
        cause = signals.wait_for_cause(SETTLE_S)
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    return cause


def _send(children: Sequence["sp.Popen[bytes]"], number: signal.Signals) -> None:
    """Signal the children; not what they started, as the workers of a data loader are theirs to end."""
    for child in children:
        child.send_signal(number)
