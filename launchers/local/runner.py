"""Runs one local job and records how it ended: `python -m ….local.runner ROOT JOB_ID [GPU,GPU]`.

The parent process of a job: it holds the lock of the job, so that others see that it runs, records how it ended even
when the supervisor is killed, and stops it when it is cancelled, at its time limit, or when the machine goes down. If
the runner itself is killed, the kernel ends the job with it (Linux). Standard library only.
"""

import signal
import socket
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from audiotok.files import read_json
from audiotok.launchers import child
from audiotok.launchers.local import claims
from audiotok.launchers.local.queue import JobRecord, JobStore
from audiotok.status import JOB_FILE
from audiotok.utils.threads import spin_briefly

CAUSES = {signal.SIGTERM: "PREEMPTED", signal.SIGINT: "PREEMPTED"}
DISK_S = 600.0  # a record that the disk refuses is written again for so long
LOCK_VARIABLE = "AUDIOTOK_JOB_LOCK"  # path of the lock of a job: by it its processes are found
_OF_A_RANK = frozenset(child.rank_environment(0, 1, 0, "", 0))


def run(root: Path, job_id: str, devices: list[str]) -> None:
    """Run a pending job of this user once; does nothing if it is cancelled or another runner has it."""
    store = JobStore(root)
    with store.holding(job_id) as held:
        record = store.read(job_id) if held else None
        if record is None:
            return
        if record.state != "PENDING":
            store.forget(job_id)
            return
        if not store.is_ours(record):
            return
        latest = (read_json(Path(record.folder) / JOB_FILE) or {}).get("job_id", job_id)
        if latest != job_id:  # queued again from where this folder has another name
            store.finish(record, "CANCELLED", f"replaced by job {latest}")
            return
        holder = f"{record.user}, job {job_id} of {store.root.parent}"
        gpus = sorted(record.gpu_ids.get(name, name) for name in devices)  # in one order: of two jobs one gets all
        if not all(claims.take(gpu, holder) for gpu in gpus):
            sys.exit(claims.BUSY)
        record.devices, record.started = devices, time.time()
        record.ended, record.exit_code, record.reason = None, None, ""
        ended = _run(store, record)
        if ended.state == "TIMEOUT":
            ended = child.at_time_limit(ended, record.timeouts, record.max_num_timeout)
            record.timeouts += ended.state == "REQUEUED"
        if ended.state == "REQUEUED":
            record.attempt += 1
            _insist(lambda: store.queue_again(record, ended.reason, ended.exit_code))
        else:
            _insist(lambda: store.finish(record, *ended))


def _environments(record: JobRecord, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each process: that of the submission, its share of the machine, its rank and job."""
    shared = {key: value for key, value in environ.items() if key not in _OF_A_RANK}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(record.threads))
    shared = {**threads, "PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1", **shared}  # the user's own values win
    spin_briefly(shared)
    shared.update({"AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_JOB_ID": record.job_id, LOCK_VARIABLE: record.lock})
    shared.update(child.frozen_environment(Path(record.folder)))
    if record.visible:
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(record.devices)
    port, ranks = 0, range(record.ranks)
    if len(ranks) > 1:
        with socket.socket() as probe:  # for a port that is free
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    return [{**shared, **child.rank_environment(rank, record.ranks, rank, "127.0.0.1", port)} for rank in ranks]


def _log_of(record: JobRecord, rank: int) -> Path:
    log = Path(record.log)
    return log.with_name(log.name.replace("_0_", f"_{rank}_"))


def _run(store: JobStore, record: JobRecord) -> child.Outcome:
    """Start the processes of a job and wait for their end, or for what stops them."""
    signals, killed, children = child.Signals(CAUSES), child.oom_kills(), list[sp.Popen[bytes]]()
    stop_at = time.monotonic() + record.time_s - record.checkpoint_s if record.time_s else float("inf")
    try:
        environs = _environments(record, store.environment(record))
        Path(record.log).parent.mkdir(exist_ok=True)
        for rank, environ in enumerate(environs):
            children.append(child.start(record.command, environ=environ, cwd=record.cwd, log=_log_of(record, rank)))
    except (OSError, LookupError, ValueError) as error:
        for process in children:
            process.kill()
        return child.Outcome("FAILED", f"could not be started: {error}")
    record.state, record.pid = "RUNNING", children[0].pid
    _insist(lambda: store.write(record))

    def poll() -> str | None:
        return store.stop_cause(record.job_id) or ("TIMEOUT" if time.monotonic() > stop_at else None)

    def grace_s(cause: str) -> float:
        return record.grace_s if cause == "CANCELLED" else max(record.checkpoint_s, record.grace_s)

    cause = child.attend(children, signals, poll=poll, poll_s=0.1, grace_s=grace_s)
    if cause is not None and store.stop_cause(record.job_id) == "CANCELLED":
        cause = "CANCELLED"
    codes = [process.returncode for process in children]
    # Of several ranks the one that failed by itself knows why, not those that were ended for it.
    stopped = (*child.KILLED, *child.TERMINATED)
    rank = min(range(record.ranks), key=lambda rank: (codes[rank] == 0, codes[rank] in stopped, rank))
    return child.outcome(
        codes[rank],
        cause,
        folder=Path(record.folder),
        log=_log_of(record, rank),
        began=record.started or 0.0,
        oom_killed=child.oom_kills() > killed,
    )


def _insist(write: Callable[[], None]) -> None:
    """Write, again and again while the disk is full."""
    deadline = time.monotonic() + DISK_S
    while True:
        try:
            write()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            sys.stderr.write(f"audiotok.launchers.local.runner: {error}; trying again.\n")
            time.sleep(5.0)


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run(Path(sys.argv[1]), sys.argv[2], [name for name in sys.argv[3].split(",") if name])
