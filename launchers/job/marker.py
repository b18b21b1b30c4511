"""The `task.json` with which a task of SLURM marks its start, its life and its end. Standard library only."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from audiotok.launchers.job.place import Place
from audiotok.launchers.job.verdict import Outcome
from audiotok.status import TASK_FILE, read_json, write_json

BEAT_S = 15.0


class Marker:
    """The `task.json` of an experiment. What cannot be written is told once on stderr.

    Args:
        folder: of the experiment.
        place: this task.
        token: name of its submission.
    """

    def __init__(self, folder: Path, place: Place, token: str) -> None:
        self.path = folder / TASK_FILE
        before = read_json(self.path) or {}
        ours = before.get("job_id") == place.job_id
        self.timeouts = int(before.get("timeouts") or 0) if ours else 0
        self._rank = place.rank
        self._beaten = float("-inf")
        self._failure = ""
        self._fields: dict[str, Any] = {
            "job_id": place.job_id,
            "token": token,
            "attempt": place.attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "updated": None,
            "ended": None,
            "state": "RUNNING",
            "reason": "",
            "exit_code": None,
            "timeouts": self.timeouts,
        }

    def beat(self) -> None:
        """Say that the job is alive, every `BEAT_S`; rank 0 only."""
        if self._rank == 0 and time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self._write()

    def end(self, ended: Outcome) -> None:
        """Say how the job ended; of several ranks the first that failed is heard."""
        reason = ended.reason if self._rank == 0 else f"rank {self._rank}: {ended.reason}"
        self._fields.update(state=ended.state, reason=reason, exit_code=ended.exit_code, ended=time.time())
        self._fields["timeouts"] = self.timeouts
        self._write()

    def has_ended(self, *states: str) -> bool:
        """Tell whether some rank has written an end of this attempt, other than these."""
        now = read_json(self.path) or {}
        ours = all(now.get(key) == self._fields[key] for key in ("job_id", "attempt"))
        return ours and now.get("ended") is not None and now.get("state") not in states

    def _write(self) -> None:
        now = read_json(self.path) or {}
        if self.has_ended() and (now.get("host"), now.get("pid")) != (self._fields["host"], self._fields["pid"]):
            return  # another rank failed first
        self._fields["updated"] = time.time()
        try:
            write_json(self.path, self._fields, sync=self._fields["ended"] is not None)
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                tell(f"cannot write {self.path} ({error}); the run goes on without")


def tell(words: str) -> None:
    """Say something in the log of the job."""
    sys.stderr.write(f"audiotok.launchers.slurm.inside: {words}.\n")
    sys.stderr.flush()
