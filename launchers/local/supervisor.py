"""Starts queued local jobs, a bounded number at once, oldest first: `python -m ….local.supervisor ROOT`.

One supervisor per Dora folder, alone by a lock. It keeps nothing in memory: what runs is what holds a lock,
what waits is in the queue. So it can be killed at any moment: running jobs go on under their runners, and the
next `dora` command starts another supervisor, which finds everything as it was. It leaves when nothing is
left to do.
Standard library only.
"""

import os
import signal
import subprocess as sp
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from audiotok.errors import LaunchError
from audiotok.launchers.local.queue import VANISHED, JobStore
from audiotok.launchers.local.record import JobRecord
from audiotok.launchers.local.runner import end_leftovers

POLL_S = 0.2
LINGER_S = 3.0  # a supervisor without work waits this long for more before it leaves
START_S = 30.0  # a runner must have taken up its job within this time
_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def ensure(store: JobStore) -> None:
    """Make sure that a supervisor looks after this book; call it under `store.submitting()`.

    Raises:
        LaunchError: if the supervisor cannot be started.
    """
    if store.is_held("supervisor"):
        return
    process = _spawn(["audiotok.launchers.local.supervisor", str(store.root)], store)
    deadline = time.monotonic() + START_S
    while not store.is_held("supervisor"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LaunchError(f"the supervisor of local jobs did not start; read {log_file(store)} and try again.")
        time.sleep(0.02)


def log_file(store: JobStore) -> Path:
    """Return the file that the supervisor and the runners print their own mishaps to."""
    return store.root / "supervisor.log"


def supervise(root: Path) -> None:
    """Look after the queue until everything has ended; returns at once if another one does."""
    store = JobStore(root)
    store.create()
    with ExitStack() as stack:
        held = stack.enter_context(store.holding("supervisor"))
        idle_since = time.monotonic()
        while held:
            running, waiting = survey(store)
            if running or waiting is not None:
                idle_since = time.monotonic()
            if waiting is not None and may_start(waiting, running):
                start(store, waiting, running)
                continue
            if time.monotonic() - idle_since > LINGER_S:
                with store.submitting():  # nobody can submit between this look and giving up the lock
                    if not store.unfinished():
                        stack.close()
                        return
            _reap()
            time.sleep(POLL_S)


def survey(store: JobStore) -> tuple[list[JobRecord], JobRecord | None]:
    """Return the running jobs and the first that waits; writes down those that vanished.

    Of the others in the queue none is read: a job that no runner ever took up has no lock, and it is not its turn.
    """
    taken_up = {path.name for path in store.locks.iterdir()}
    running, waiting = [], None
    for job_id in store.unfinished():
        if job_id not in taken_up and waiting is not None:
            continue
        record = store.judge(job_id)
        if record is not None and not record.is_over and store.is_held(job_id):
            running.append(record)
        elif record is not None and record.state == "PENDING":
            waiting = waiting or record
        else:
            _bury(store, job_id)
    return running, waiting


def may_start(job: JobRecord, running: Sequence[JobRecord]) -> bool:
    """Tell whether the machine has a slot and enough free GPUs for this job."""
    return len(running) < job.slots and len(free_devices(job, running)) >= job.gpus


def free_devices(job: JobRecord, running: Sequence[JobRecord]) -> list[str]:
    """Return the GPUs that this job may use and no running job holds."""
    taken = {name for other in running for name in other.devices}
    return [name for name in job.visible if name not in taken]


def start(store: JobStore, job: JobRecord, running: Sequence[JobRecord]) -> None:
    """Start the runner of a job and wait until it has taken the job up (or failed to)."""
    devices = ",".join(free_devices(job, running)[: job.gpus])
    process = _spawn(["audiotok.launchers.local.runner", str(store.root), job.job_id, devices], store)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        record = store.read(job.job_id)
        if record is None or record.state != "PENDING":
            return
        time.sleep(0.02)
    with store.holding(job.job_id) as held:
        record = store.read(job.job_id)
        if held and record is not None and record.state == "PENDING":
            store.finish(record, "FAILED", f"could not be started; see {log_file(store)}")


def _bury(store: JobStore, job_id: str) -> None:
    """Write the verdict on a job that vanished, and take a job that is over from the queue."""
    with store.holding(job_id) as held:
        if not held:
            return
        record = store.read(job_id)
        if record is not None and record.state == "RUNNING":
            end_leftovers(record)
            store.finish(record, "NODE_FAIL", VANISHED)
        elif record is None or record.is_over:
            store.forget(job_id)


def _spawn(module: list[str], store: JobStore) -> "sp.Popen[bytes]":
    """Start one of our modules, detached from the terminal and from the directory that the user works in."""
    path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    with log_file(store).open("ab") as output:
        return sp.Popen(
            [sys.executable, "-P", "-m", *module],
            cwd=store.root,
            env={**os.environ, "PYTHONPATH": path},
            stdin=sp.DEVNULL,
            stdout=output,
            stderr=sp.STDOUT,
            start_new_session=True,
        )


def _reap() -> None:
    """Let ended runners go, so that they do not stay behind as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervise(Path(sys.argv[1]))
