"""Stopping at any step and resuming there: signals, the clock of checkpoints, the position within an epoch.

A signal stops the trainer after the current step, and every rank after the same step. Beside the usual states, a
checkpoint within an epoch holds the entry `PROGRESS`: the updates done, the metrics of the stages done, and for each
rank its random states and running averages. All of it is plain data.
"""

import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Self

from audiotok.solvers.averages import MetricAverages

PROGRESS = "progress"  # entry of a checkpoint that was written within an epoch, or by several ranks
SAVE = 1  # request for a checkpoint without a stop; of all requests the ranks agree on the largest, so a signal wins
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(SystemExit):
    """Training stopped by a signal in `where` (`epoch 3, update 17 of 2000`); all it needs to resume is on disk."""

    # A SystemExit, as a stop is no error: `except Exception` lets it through, and the process ends with its code
    # and without a traceback.
    def __init__(self, signum: int, where: str) -> None:
        # 143 for every signal but Ctrl-C: SIGUSR1, the scheduler's warning of the time limit, is a stop like SIGTERM.
        super().__init__(128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM))
        self.signum = signum
        self.where = where

    @property
    def reason(self) -> str:
        """For logs and `status.json`."""
        return f"stopped by {signal.Signals(self.signum).name} in {self.where}; the same command resumes from there"


class StopSignals:
    """Records the signals that request a stop, while its block runs; a second Ctrl-C ends the process at once.

    Before `patient` is set there is nothing to save, and the signal raises `Interrupted` where it arrives.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.patient = False
        self._keyboard = 0

    def __enter__(self) -> Self:
        self._old = {signum: signal.signal(signum, self._handle) for signum in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # No logging here: a handler may run in the middle of a log line.
        self._keyboard += signum == signal.SIGINT
        if self._keyboard > 1:
            raise KeyboardInterrupt
        self.signum = signum
        if not self.patient:
            raise Interrupted(signum, "the preparations")


class SaveClock:
    """Reports once that a checkpoint is due, `minutes` after the last one; never for 0."""

    def __init__(self, minutes: float) -> None:
        self.period_s = 60.0 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint has been written."""
        self._last, self._reported = time.monotonic(), False

    def due(self) -> bool:
        """Whether to request one now."""
        # Between ranks, a request is granted a step later: repeating it would save twice.
        if self._reported or not self.period_s or time.monotonic() - self._last < self.period_s:
            return False
        self._reported = True
        return True


@dataclass
class Progress:
    """Position within an epoch."""

    updates: int = 0  # done in the train stage
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)  # metrics of the stages done
    elapsed_s: float = 0.0  # that the train stage took before the last stop
    own: dict[str, Any] | None = None  # this rank's state to restore; no random states if the number of ranks changed

    @property
    def begun(self) -> bool:
        """Whether the epoch has begun."""
        return self.updates > 0

    def state_dict(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {"updates": self.updates, "stages": self.stages, "elapsed_s": self.elapsed_s, "ranks": ranks}

    @classmethod
    def from_state(cls, state: dict[str, Any], rank: int, world_size: int) -> Self:
        """Position that `state_dict` stored, for one of `world_size` ranks."""
        ranks = state["ranks"]
        same = len(ranks) == world_size
        own = ranks[rank] if same else {"averages": MetricAverages.merge([one["averages"] for one in ranks])}
        stages = {name: dict(metrics) for name, metrics in state["stages"].items()}
        return cls(int(state["updates"]), stages, float(state["elapsed_s"]), own)
