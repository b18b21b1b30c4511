"""What a job says about itself, for anybody to read, and the one verdict on an experiment from its files alone.

Three files of an experiment folder, none of which needs torch, Dora or a scheduler:

- `job.json`: what the launcher submitted (`launchers.engine.Job`): launcher, job_id, submitted; `cancelled` (unix
  seconds) once one of our commands cancelled it; `verdict` {state, reason, time} once the scheduler told the end.
- `task.json`: what the parent of the training process saw inside the job: job_id, attempt, started, updated (its
  heartbeat), ended, state (RUNNING, REQUEUED, or how it ended in SLURM's words), reason, exit_code.
- `status.json`: what the trainer says itself. Fields (times are unix seconds): state (one of STATES), reason, kind (one
  of KINDS: what kind of reason), launcher (local, slurm or none), job_id, host, pid, started, updated (the heartbeat),
  ended, epoch (epochs finished), epochs (asked for), update (updates done in the current epoch), updates_per_epoch,
  epoch_s (mean duration of an epoch so far, in s), commit (of the code), world_size and gpus (of the run).

`experiment_state` makes one verdict of them.
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
KINDS = ("", "config", "data", "diverged", "error", "interrupted")
STATUS_FILE = "status.json"
JOB_FILE = "job.json"
TASK_FILE = "task.json"
BEAT_S = 10.0  # a heartbeat within the same epoch is written at most this often
STALE_S = 600.0  # a job whose parent process, which beats every 15 s, is silent for this long does not count as running
TRAINER_STALE_S = 3600.0  # the same for a trainer by itself, which beats between steps only

logger = logging.getLogger(__name__)


class StatusWriter:
    """Keeps the `status.json` of one run up to date; a full disk is logged and does not stop training.

    Args:
        folder: the experiment folder; must exist.
        epochs: epochs asked for, if known.
        beat_s: least number of seconds between two heartbeats of the same epoch.
        silent: write nothing, as all ranks but the first do.
    """

    def __init__(
        self, folder: Path, *, epochs: int | None = None, beat_s: float = BEAT_S, silent: bool = False
    ) -> None:
        self.path = Path(folder) / STATUS_FILE
        self.beat_s = beat_s
        self.silent = silent
        launcher, job_id = job_identity(os.environ)
        self._fields: dict[str, Any] = {
            "state": "RUNNING",
            "reason": "",
            "kind": "",
            "launcher": launcher,
            "job_id": job_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": None,
            "updated": None,
            "ended": None,
            "epoch": None,
            "epochs": epochs,
            "update": None,
            "updates_per_epoch": None,
            "epoch_s": None,
            "commit": None,
            "world_size": None,
            "gpus": None,
        }
        self._written = float("-inf")

    def start(self, *, epoch: int | None = None) -> None:
        """Say that the run has begun; `epoch` is the number of epochs restored from a checkpoint."""
        self._fields.update(state="RUNNING", reason="", kind="", started=time.time(), ended=None, epoch=epoch)
        self._write()

    def describe(self, *, commit: str, world_size: int, gpus: int) -> None:
        """Say what the run is made with: commit of the code, processes, and the GPUs that they use in all."""
        self._fields.update(commit=commit, world_size=world_size, gpus=gpus)
        self._write()

    def beat(
        self,
        *,
        epoch: int | None = None,
        update: int | None = None,
        updates_per_epoch: int | None = None,
        epoch_s: float | None = None,
    ) -> None:
        """Say that the run is alive; cheap enough for every step: it writes each epoch or `beat_s` only.

        Args:
            epoch: epochs finished; like all below, None leaves what was said before.
            update: updates done in the current epoch.
            updates_per_epoch: how many there are.
            epoch_s: mean duration of an epoch so far, in s.
        """
        told = {"epoch": epoch, "update": update, "updates_per_epoch": updates_per_epoch, "epoch_s": epoch_s}
        changed = epoch is not None and epoch != self._fields["epoch"]
        self._fields.update((name, value) for name, value in told.items() if value is not None)
        if changed or time.monotonic() - self._written >= self.beat_s:
            self._write()

    def end(self, state: str, reason: str = "", kind: str = "") -> None:
        """Say how the run ended: one of STATES but RUNNING, in a few words why, and the kind of reason."""
        assert state in STATES and state != "RUNNING", state
        assert kind in KINDS, kind
        self._fields.update(state=state, reason=reason, kind=kind, ended=time.time())
        self._write()

    def _write(self) -> None:
        if self.silent:
            return
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


def experiment_state(folder: Path, *, stale_s: float | None = None) -> ExperimentState | None:
    """Judge an experiment from its folder alone; None if it was never submitted nor run.

    What counts is the latest job, or a run by hand that began after it: what an earlier one wrote is left out. Of what
    is told about it, the first of these that says anything wins: what the scheduler said at its end; how its parent
    process saw it end; the parent's heartbeat, if it is fresh; how the trainer says that it ended; the trainer's
    heartbeat. The trainer alone knows that it diverged, which makes DIVERGED of any FAILED.

    Args:
        folder: of the experiment.
        stale_s: seconds after which a heartbeat counts no more; by default STALE_S for that of a parent process, and
            TRAINER_STALE_S for that of a trainer.
    """
    folder = Path(folder)
    job, task, status = (read_json(folder / name) for name in (JOB_FILE, TASK_FILE, STATUS_FILE))
    if job is not None and task is not None and task.get("job_id") != job.get("job_id"):
        task = None
    owner = job or task
    if owner is not None and status is not None and status.get("job_id") != owner.get("job_id"):
        began = max(_time(job or {}, "submitted"), _time(task or {}, "started"))
        by_hand = status.get("job_id") is None and _time(status, "started") >= began
        job, task, status = (None, None, status) if by_hand else (job, task, None)
    if status is not None and task is not None and _time(status, "updated") < _time(task, "started"):
        status = None  # of an earlier attempt of this job
    recorded = job is not None and job.get("launcher") == "local" and "state" in job
    state = _judge_local(folder, job) if job and recorded else _judge(job or {}, task, status, stale_s)
    if state is not None and state.state == "FAILED" and status is not None and status.get("state") == "DIVERGED":
        return _told(status)
    return state


def _judge(
    job: Mapping[str, Any], task: Mapping[str, Any] | None, status: Mapping[str, Any] | None, stale_s: float | None
) -> ExperimentState | None:
    """Judge a job, its parent process and its trainer, each as far as it is there."""
    told, cancelled = job.get("verdict"), "cancelled" in job
    alive_at = max(_time(entry, "updated") for entry in (task or {}, status or {}))
    if isinstance(told, dict) and "state" in told and ("time" not in told or alive_at <= _time(told, "time")):
        return _told(told)
    if task is not None and task.get("state") not in ("RUNNING", "REQUEUED"):
        return _told(task)
    if status is not None and status.get("state") != "RUNNING" and (task is None or _is_stale(task, stale_s, STALE_S)):
        return _told(status)
    if cancelled:
        return ExperimentState("CANCELLED", "")
    if task is not None:
        return _told(task) if task.get("state") == "REQUEUED" else _beating(task, stale_s, STALE_S)
    if status is not None:
        return _beating(status, stale_s, TRAINER_STALE_S)
    return ExperimentState("PENDING", "") if job else None


def _told(content: Mapping[str, Any]) -> ExperimentState:
    return ExperimentState(str(content.get("state")), str(content.get("reason") or ""))


def _beating(content: Mapping[str, Any], stale_s: float | None, default_s: float) -> ExperimentState:
    if _is_stale(content, stale_s, default_s):
        silence_s = time.time() - _time(content, "updated")
        return ExperimentState("STALE", f"no sign of life for {silence_s / 60:.0f} minutes")
    return ExperimentState("RUNNING", "")


def _is_stale(content: Mapping[str, Any], stale_s: float | None, default_s: float) -> bool:
    return time.time() - _time(content, "updated") > (default_s if stale_s is None else stale_s)


def _judge_local(folder: Path, job: dict[str, Any]) -> ExperimentState:
    """Judge a local job that has a record, by it and by the lock that its process holds: exact."""
    if job.get("state") == "RUNNING" and not is_locked(Path(str(job.get("lock")))):
        job = read_json(folder / JOB_FILE) or job  # it may have ended properly between the two looks
        if job.get("state") == "RUNNING":
            return ExperimentState("NODE_FAIL", "its process vanished")
    return _told(job)


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
    """Return the launcher (local, slurm or none) and the job id that this process runs under.

    The parent process inside a job names both in the environment. An allocation of SLURM in which somebody runs a
    trainer by hand is no job of ours.
    """
    if "AUDIOTOK_JOB_ID" in environ:
        return "slurm" if environ.get("AUDIOTOK_LAUNCHER") == "slurm" else "local", environ["AUDIOTOK_JOB_ID"]
    if environ.get("SUBMITIT_EXECUTOR") == "slurm":
        if "SLURM_ARRAY_JOB_ID" in environ:
            return "slurm", f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}"
        return "slurm", environ.get("SLURM_JOB_ID")
    return "none", None
