"""The `status.json` that a trainer keeps: its start, its heartbeat and its end."""

import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiotok.files import write_json
from audiotok.status.state import STATUS_FILE, State

KINDS = ("", "config", "data", "diverged", "error", "interrupted")

logger = logging.getLogger(__name__)


class StatusWriter:
    """Keeps the `status.json` of one run up to date; a full disk is logged and does not stop training.

    Args:
        folder: the experiment folder; must exist.
        epochs: epochs requested, if known.
        beat_s: least number of seconds between two heartbeats within an epoch.
        silent: write nothing, as all ranks but the first do.
    """

    def __init__(self, folder: Path, *, epochs: int | None = None, beat_s: float = 10.0, silent: bool = False) -> None:
        self.path, self.beat_s, self.silent = Path(folder) / STATUS_FILE, beat_s, silent
        launcher, job_id = job_identity(os.environ)
        self._fields: dict[str, Any] = {"state": State.RUNNING, "reason": "", "kind": ""}
        token = os.environ.get("AUDIOTOK_JOB_TOKEN") if job_id else None
        self._fields |= {"launcher": launcher, "job_id": job_id, "token": token}
        self._fields |= {"host": socket.gethostname(), "pid": os.getpid()}
        self._fields |= dict.fromkeys(("started", "updated", "ended", "epoch")) | {"epochs": epochs}
        self._fields |= dict.fromkeys(("update", "updates_per_epoch", "epoch_s", "commit", "world_size", "gpus"))
        self._fields["warning"] = ""
        self._written = float("-inf")

    def start(self, *, epoch: int | None = None) -> None:
        """Write that the run has begun; `epoch` is the number of epochs restored from a checkpoint."""
        self._fields.update(state=State.RUNNING, reason="", kind="", started=time.time(), ended=None, epoch=epoch)
        self._write()

    def describe(self, *, commit: str, world_size: int, gpus: int) -> None:
        """Write what the run is made with: commit of the code, processes, and the GPUs that they use in all."""
        self._fields.update(commit=commit, world_size=world_size, gpus=gpus)
        self._write()

    def beat(
        self,
        *,
        epoch: int | None = None,
        update: int | None = None,
        updates_per_epoch: int | None = None,
        epoch_s: float | None = None,
        warning: str | None = None,
    ) -> None:
        """Write a heartbeat; cheap enough for every step: it writes each epoch, warning or `beat_s` only.

        Args:
            epoch: epochs finished; like all below, None leaves the value before.
            update: updates done in the current epoch.
            updates_per_epoch: how many there are.
            epoch_s: mean duration of an epoch so far, in s.
            warning: signs of trouble in a few words, "" for none.
        """
        given: dict[str, Any] = {"epoch": epoch, "update": update, "epoch_s": epoch_s, "warning": warning}
        given["updates_per_epoch"] = updates_per_epoch
        changed = any(given[name] not in (None, self._fields[name]) for name in ("epoch", "warning"))
        self._fields.update((name, value) for name, value in given.items() if value is not None)
        if changed or time.monotonic() - self._written >= self.beat_s:
            self._write()

    def end(self, state: str, reason: str = "", kind: str = "") -> None:
        """Write how the run ended: COMPLETED, FAILED, DIVERGED or INTERRUPTED, the reason, and one of KINDS."""
        assert state in (State.COMPLETED, State.FAILED, State.DIVERGED, State.INTERRUPTED), state
        assert kind in KINDS, kind
        self._fields.update(state=state, reason=reason, kind=kind, ended=time.time())
        self._write()

    def _write(self) -> None:
        if self.silent:
            return
        self._written = time.monotonic()
        self._fields["updated"] = time.time()
        try:
            write_json(self.path, self._fields, sync=False)  # often; the next one repairs what a power cut lost
        except OSError as error:
            logger.warning("could not write %s: %s", self.path, error)


def job_identity(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The launcher ("none" without one) and the job id that this process runs under, as the parent process names them.

    A trainer run by hand within an allocation of SLURM is no job of ours.
    """
    if "AUDIOTOK_JOB_ID" in environ:
        return environ.get("AUDIOTOK_LAUNCHER") or "local", environ["AUDIOTOK_JOB_ID"]
    if environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return "none", None
    if "SLURM_ARRAY_JOB_ID" in environ:
        return "slurm", f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return "slurm", environ.get("SLURM_JOB_ID")
