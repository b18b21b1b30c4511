"""How far an experiment is, by the `status.json` of its trainer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiotok.status.amendments import amended_epochs
from audiotok.status.state import read_status
from audiotok.text import number_in


@dataclass(frozen=True)
class Progress:
    """Where one experiment is; None where that is not known yet."""

    done: float = 0.0  # epochs, with the part of the current one
    epochs: int | None = None  # in all
    epoch_s: float | None = None  # duration of an epoch

    @property
    def share(self) -> float:
        """Part of the work that is done, 0 to 1."""
        return min(self.done / self.epochs, 1.0) if self.epochs else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds of work left, None if not known."""
        if self.epochs is None or self.epoch_s is None:
            return None
        return max(self.epochs - self.done, 0.0) * self.epoch_s

    @property
    def whole_s(self) -> float | None:
        """Seconds that the whole experiment takes, None if not known."""
        return None if self.epochs is None or self.epoch_s is None else self.epochs * self.epoch_s

    def __str__(self) -> str:
        return f"{math.floor(self.done)}/{self.epochs}" if self.epochs else ""


def progress_of(status: Mapping[str, Any] | None) -> Progress:
    """Progress in a `status.json`; damaged values count as not known."""
    if not status:
        return Progress()
    epoch, epochs = _number(status, "epoch") or 0.0, _number(status, "epochs")
    update, updates = _number(status, "update"), _number(status, "updates_per_epoch")
    part = min(update / updates, 0.999) if update and updates else 0.0  # an epoch counts as whole once it is recorded
    return Progress(min(epoch + part, epochs or epoch + part), int(epochs) if epochs else None, _epoch_s(status, epoch))


def progress_in(folder: Path) -> Progress:
    """Progress of the experiment in a folder, with the epochs that it was extended to since it ran last."""
    return with_amended_epochs(progress_of(read_status(folder)), folder)


def with_amended_epochs(progress: Progress, folder: Path) -> Progress:
    """The same with the epochs that an experiment was extended to, if it was."""
    epochs = amended_epochs(folder)
    return progress if epochs is None else replace(progress, epochs=epochs)


def _epoch_s(status: Mapping[str, Any], epoch: float) -> float | None:
    """Mean duration of an epoch as the trainer recorded it, else from its start and its last heartbeat."""
    if (recorded := _number(status, "epoch_s")) is not None:
        return recorded
    started, last = _number(status, "started"), _number(status, "ended") or _number(status, "updated")
    if started is None or last is None or epoch < 1.0 or last <= started:
        return None
    return (last - started) / epoch


def _number(status: Mapping[str, Any], name: str) -> float | None:
    value = number_in(status, name)
    return None if value is None or value < 0 else value
