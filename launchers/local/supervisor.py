"""Starts queued local jobs, a bounded number at once, oldest first: `python -m ….local.supervisor ROOT`.

One supervisor per Dora folder and user, alone by a lock; it starts jobs of that user alone. It keeps nothing in memory,
so it can be killed at any moment: running jobs continue under their runners, and the next command that launches starts
another supervisor, which finds everything as it was. It leaves when nothing is left to do. Standard library only.
"""

import math
import os
import signal
import subprocess as sp
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import audiotok
from audiotok.errors import LaunchError
from audiotok.launchers.local import claims
from audiotok.launchers.local.queue import VANISHED, JobRecord, JobStore
from audiotok.launchers.local.runner import LOCK_VARIABLE
from audiotok.status import State
from audiotok.status.judge import unmet

LINGER_S = 3.0  # a supervisor without work waits this long for more before it leaves
LOOK_S = 1.0  # between two looks at the experiments that a job needs
START_S = 30.0  # a runner must have started its job within this time
# Where `audiotok` is imported from: the checkout, or the site-packages of an installed wheel. This file may be reached
# through the symlink audiotok/launchers, so its own path does not show that.
_IMPORT_ROOT = Path(audiotok.__file__).resolve().parent.parent


def ensure(store: JobStore) -> None:
    """Make sure that a supervisor looks after this book; call it under `store.submitting()`.

    Raises:
        LaunchError: if the supervisor cannot be started.
    """
    if store.is_held(store.supervisor):
        return
    process = _spawn(["audiotok.launchers.local.supervisor", str(store.root)], store)
    deadline = time.monotonic() + START_S
    while not store.is_held(store.supervisor):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LaunchError(f"the supervisor of local jobs did not start; read {_log_file(store)} and try again.")
        time.sleep(0.02)


def supervise(root: Path) -> None:
    """Look after the queue until everything has ended; returns at once if another one does."""
    store = JobStore(root)
    with ExitStack() as stack:
        held = stack.enter_context(store.holding(store.supervisor))
        idle_since, looks = time.monotonic(), dict[str, float]()
        while held:
            running, waiting = _survey(store, looks)
            if running or waiting is not None or looks:
                idle_since = time.monotonic()
            if waiting is not None and _may_start(waiting, running):
                _start(store, waiting, running)
                continue
            if time.monotonic() - idle_since > LINGER_S:
                with store.submitting():  # no command can submit between this look and giving up the lock
                    if not store.own():
                        stack.close()
                        return
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):  # ended runners must not stay behind as zombies
                    pass
            time.sleep(0.2)


def _survey(store: JobStore, looks: dict[str, float]) -> tuple[list[JobRecord], JobRecord | None]:
    """The running jobs of all users and the first of this user that may start; ends those of his that never can.

    Of those behind it only what has a lock is read (a job that no runner ever started has none), and every LOOK_S what
    waits for other experiments: `looks` says when next, by job, infinity for one that has all that it needs.
    """
    started, own, now = {path.name for path in store.locks.iterdir()}, set(store.own()), time.monotonic()
    running, waiting = [], None
    for job_id in (unfinished := store.unfinished()):
        look_at = looks.get(job_id, now)
        is_due = look_at <= now or (waiting is None and look_at == math.inf)
        if job_id not in started and not (is_due and job_id in own):
            continue
        record = store.checked(job_id)
        if record is not None and not record.is_over and store.is_held(job_id):
            running.append(record)
        elif job_id not in own:
            continue
        elif record is not None and record.state == "PENDING":
            lacking = unmet(Path(record.folder), record.needs)
            looks[job_id] = now + LOOK_S if lacking else math.inf
            if lacking is None:
                waiting = waiting or record
            elif lacking.state is State.BLOCKED:
                store.finish_waiting(job_id, State.BLOCKED, lacking.reason)
        else:
            _bury(store, job_id)
    for job_id in looks.keys() - {*unfinished}:
        del looks[job_id]
    return running, waiting


def _may_start(job: JobRecord, running: Sequence[JobRecord]) -> bool:
    return len(running) < job.slots and len(_free_devices(job, running)) >= job.gpus


def _free_devices(job: JobRecord, running: Sequence[JobRecord]) -> list[str]:
    taken = {name for other in running for name in other.devices}
    taken |= claims.holders({name: job.gpu_ids.get(name, name) for name in job.visible if job.gpus}).keys()
    return [name for name in job.visible if name not in taken]


def _start(store: JobStore, job: JobRecord, running: Sequence[JobRecord]) -> None:
    """Start the runner of a job and wait until it has started the job, or failed to."""
    devices = ",".join(_free_devices(job, running)[: job.gpus])
    process = _spawn(["audiotok.launchers.local.runner", str(store.root), job.job_id, devices], store)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        record = store.read(job.job_id)
        if record is None or record.state != "PENDING":
            return
        time.sleep(0.02)
    if process.poll() == claims.BUSY:
        return
    store.finish_waiting(job.job_id, "FAILED", f"could not be started; see {_log_file(store)}")


def _bury(store: JobStore, job_id: str) -> None:
    """Record the end of a job that vanished, and remove a job that is over from the queue."""
    with store.holding(job_id) as held:
        if not held:
            return
        record = store.read(job_id)
        if record is not None and record.state == "RUNNING":
            _kill_leftovers(store.locks / job_id)
            store.finish(record, "NODE_FAIL", VANISHED)
        elif record is None or record.is_over:
            store.forget(job_id)


def _kill_leftovers(lock: Path) -> None:
    """Kill what a job had started whose runner vanished; known by its environment, as process ids may be reused."""
    mark = f"{LOCK_VARIABLE}={lock}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _log_file(store: JobStore) -> Path:
    """What supervisor and runners print their own errors to."""
    return store.root / f"{store.supervisor}.log"


def _spawn(module: list[str], store: JobStore) -> "sp.Popen[bytes]":
    """Start one of our modules, detached from the terminal and from the directory that the user works in."""
    path = os.pathsep.join(filter(None, [str(_IMPORT_ROOT), os.environ.get("PYTHONPATH")]))
    with _log_file(store).open("ab") as output:
        return sp.Popen(
            [sys.executable, "-P", "-m", *module],
            cwd=store.root,
            env={**os.environ, "PYTHONPATH": path},
            stdin=sp.DEVNULL,
            stdout=output,
            stderr=sp.STDOUT,
            start_new_session=True,
        )


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervise(Path(sys.argv[1]))
