"""What a running job says about itself: `status.json` in its experiment folder, for anybody to read.

The trainer writes it; the launchers and the results read it, without torch, Dora or a scheduler at hand.
Beside it stands `job.json`, which the launcher writes when it submits. `experiment_state` makes one verdict
of the two.

Fields of `status.json` (times are unix seconds): state (one of STATES), reason, launcher (local, slurm or
none), job_id, host, pid, started, updated (the heartbeat), ended, epoch (epochs finished), epochs (asked
for).
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

STATES = ("RUNNING", "COMPLETED", "FAILED", "DIVERGED", "INTERRUPTED")
STATUS_FILE = "status.json"
JOB_FILE = "job.json"
BEAT_S = 10.0  # a heartbeat within the same epoch is written at most this often
STALE_S = 3600.0  # a job without a heartbeat for this long no longer counts as running

logger = logging.getLogger(__name__)


class StatusWriter:
    """Keeps the `status.json` of one run up to date; a full disk is logged and does not stop training.

    Args:
        folder: the experiment folder; must exist.
        epochs: epochs asked for, if known.
        beat_s: least number of seconds between two heartbeats of the same epoch.
    """

    def __init__(self, folder: Path, *, epochs: int | None = None, beat_s: float = BEAT_S) -> None:
        self.path = Path(folder) / STATUS_FILE
        self.beat_s = beat_s
        launcher, job_id = job_identity(os.environ)
        self._fields: dict[str, Any] = {
            "state": "RUNNING",
            "reason": "",
            "launcher": launcher,
            "job_id": job_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": None,
            "updated": None,
            "ended": None,
            "epoch": None,
            "epochs": epochs,
        }
        self._written = float("-inf")

    def start(self, *, epoch: int | None = None) -> None:
        """Say that the run has begun; `epoch` is the number of epochs restored from a checkpoint."""
        self._fields.update(state="RUNNING", reason="", started=time.time(), ended=None, epoch=epoch)
        self._write()

    def beat(self, *, epoch: int | None = None) -> None:
        """Say that the run is alive; cheap enough for every step: it writes each epoch or `beat_s` only."""
        changed = epoch is not None and epoch != self._fields["epoch"]
        if changed:
            self._fields["epoch"] = epoch
        if changed or time.monotonic() - self._written >= self.beat_s:
            self._write()

    def end(self, state: str, reason: str = "") -> None:
        """Say how the run ended: one of STATES but RUNNING, and in a few words why."""
        assert state in STATES and state != "RUNNING", state
        self._fields.update(state=state, reason=reason, ended=time.time())
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._fields["updated"] = time.time()
        try:
            write_json(self.path, self._fields, sync=False)
        except OSError as error:
            logger.warning("could not write %s: %s", self.path, error)


class ExperimentState(NamedTuple):
    """A verdict on an experiment: its state (SLURM's word, DIVERGED, INTERRUPTED or STALE) and the reason."""

    state: str
    reason: str


def experiment_state(folder: Path, *, stale_s: float = STALE_S) -> ExperimentState | None:
    """Judge an experiment from its folder alone; None if it was never submitted nor run.

    A local job is judged by its record and by the lock that its process holds, so it is exact. Any other job is judged
    by what it wrote itself: PENDING until it starts, STALE if its heartbeat is older than `stale_s`. What counts is the
    latest job, or a run by hand that began after it.
    """
    job, status = read_json(Path(folder) / JOB_FILE), read_status(folder)
    if job is not None and status is not None and status.get("job_id") != job.get("job_id"):
        by_hand = status.get("job_id") is None and _time(status, "started") >= _time(job, "submitted")
        job, status = (None, status) if by_hand else (job, None)
    if job is not None and job.get("launcher") == "local":
        return _judge_local(Path(folder), job, status or {})
    if status is None:
        return None if job is None else ExperimentState("CANCELLED" if "cancelled" in job else "PENDING", "")
    if status.get("state") != "RUNNING":
        return ExperimentState(str(status.get("state")), str(status.get("reason") or ""))
    if job is not None and "cancelled" in job:
        return ExperimentState("CANCELLED", "")
    silence_s = time.time() - _time(status, "updated")
    if silence_s > stale_s:
        return ExperimentState("STALE", f"no sign of life for {silence_s / 60:.0f} minutes")
    return ExperimentState("RUNNING", "")


def _judge_local(folder: Path, job: dict[str, Any], status: dict[str, Any]) -> ExperimentState:
    """Judge a local job by its record; what it wrote itself only tells that it diverged."""
    if job.get("state") == "RUNNING" and not is_locked(Path(str(job.get("lock")))):
        job = read_json(folder / JOB_FILE) or job  # it may have ended properly between the two looks
        if job.get("state") == "RUNNING":
            return ExperimentState("NODE_FAIL", "its process vanished")
    if job.get("state") == "FAILED" and status.get("state") == "DIVERGED":
        return ExperimentState("DIVERGED", str(status.get("reason") or ""))
    return ExperimentState(str(job.get("state")), str(job.get("reason") or ""))


def _time(content: Mapping[str, Any], name: str) -> float:
    value = content.get(name)
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:  # JSON allows integers of any size
        return 0.0


def read_status(folder: Path) -> dict[str, Any] | None:
    """Read the `status.json` of an experiment folder; None if it is missing or damaged."""
    return read_json(Path(folder) / STATUS_FILE)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, unreadable, half-written or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write a JSON object so that a reader sees the old or the new one; `sync` makes it survive a power cut.

    Raises:
        OSError: if the disk refuses; the old file is then intact.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the exclusive flock on `path`; it loses it however it ends."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def job_identity(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the launcher (local, slurm or none) and the job id that this process runs under."""
    if "AUDIOTOK_JOB_ID" in environ:
        return "local", environ["AUDIOTOK_JOB_ID"]
    if environ.get("SUBMITIT_EXECUTOR") == "slurm":
        if "SLURM_ARRAY_JOB_ID" in environ:
            return "slurm", f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}"
        return "slurm", environ.get("SLURM_JOB_ID")
    return "none", None
