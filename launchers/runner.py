"""Runs one local job and writes down the truth about it: `python -m launchers.runner ROOT JOB_ID [GPU,GPU]`.

Each running job has such a small process as its parent. It holds the lock of the job, so that others see
that it runs; it knows the exit code, so that the verdict stays right when the supervisor is killed; and it
stops the job when a cancel mark appears. If the runner itself is killed, the kernel ends the job with it, and
the supervisor ends what the job had started (Linux). Standard library only.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess as sp
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from audiotok.status import read_status
from launchers.jobs import JobRecord, JobStore

POLL_S = 0.1
LOCK_VARIABLE = "AUDIOTOK_JOB_LOCK"  # path of the lock of a job: tells its processes from all others
REASON_CHARS = 200
LOG_TAIL_BYTES = 8192
_PR_SET_PDEATHSIG = 1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(
    r"^(?:error: |(?=[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b)|.*\[(?:ERROR|CRITICAL)\] - )(.*)"
)
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(root: Path, job_id: str, devices: list[str]) -> None:
    """Run a pending job to its end; does nothing if it is cancelled or another runner has it."""
    store = JobStore(root)
    with store.holding(job_id) as held:
        record = store.read(job_id) if held else None
        if record is None:
            return
        if record.state != "PENDING":
            store.forget(job_id)
            return
        record.devices = devices
        environ = job_environment(record, store.environment(job_id))
        try:
            process = _start(record, environ)
        except OSError as error:
            store.finish(record, "FAILED", f"could not be started: {error}")
            return
        record.state, record.started, record.pid = "RUNNING", time.time(), process.pid
        store.write(record)
        cancelled = _wait(process, store.cancel_mark(job_id), record.grace_s)
        state, reason = verdict(record, process.returncode, cancelled=cancelled)
        store.finish(record, state, reason, process.returncode)


def job_environment(record: JobRecord, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job: that of its submission, its share of the machine, its identity.

    A job of one process also gets its rank, so that `dora run` does not look for jobs of the experiment.
    """
    result = {key: value for key, value in environ.items() if key not in _RANK_VARIABLES}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        result.setdefault(name, str(record.threads))
    result.setdefault("PYTHONUNBUFFERED", "1")
    result.setdefault("HYDRA_FULL_ERROR", "1")
    result["AUDIOTOK_JOB_ID"], result[LOCK_VARIABLE] = record.job_id, record.lock
    if record.visible:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(record.devices)
    if record.gpus <= 1:
        result.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    return result


def verdict(record: JobRecord, code: int, *, cancelled: bool) -> tuple[str, str]:
    """Return the final state and the reason, from the exit code (minus the signal, if one ended it)."""
    if code == 0:
        return "COMPLETED", ""
    if cancelled:
        return "CANCELLED", "cancelled while it was running"
    if code < 0:
        return "FAILED", f"killed by {_signal_name(-code)}"
    told = str((read_status(Path(record.folder)) or {}).get("reason") or "") or last_error(Path(record.log))
    return "FAILED", f"exit code {code}" + (f": {told}" if told else "")


def last_error(log: Path) -> str:
    """Return what the last line of a log that reads as an error says, else the last line; "" if it is empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            tail = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in _COLOUR.sub("", tail).splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
    return next(iter(errors[-1:] or lines[-1:]), "")[:REASON_CHARS]


def end_leftovers(record: JobRecord) -> None:
    """Kill the processes of a job whose runner vanished; they are known by their environment, not by an id."""
    mark = f"{LOCK_VARIABLE}={record.lock}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _start(record: JobRecord, environ: Mapping[str, str]) -> "sp.Popen[bytes]":
    """Start the command of a job in a session of its own, its output in its log."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_the_runner() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with Path(record.log).open("wb") as log:
        return sp.Popen(
            record.command,
            cwd=record.cwd,
            env=dict(environ),
            stdin=sp.DEVNULL,
            stdout=log,
            stderr=sp.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_the_runner,  # safe, as there is one thread here
        )


def _wait(process: "sp.Popen[bytes]", cancel_mark: Path, grace_s: float) -> bool:
    """Wait for the end of a job and of its children; True if it was told to stop, by the mark or a signal."""
    stop = _StopRequest(cancel_mark)
    deadline = float("inf")
    while not _has_ended(process.pid):
        if deadline == float("inf") and stop.is_asked():
            _signal_group(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        elif time.monotonic() > deadline:
            _signal_group(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    # End what it left behind. It is not reaped yet, so its id can be nobody else's.
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    return deadline < float("inf")


class _StopRequest:
    """A cancel mark, or a polite signal to the runner itself (the machine shuts down)."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, *_: object) -> None:
        self._signalled = True

    def is_asked(self) -> bool:
        return self._signalled or self._mark.exists()


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run(Path(sys.argv[1]), sys.argv[2], [name for name in sys.argv[3].split(",") if name])
