"""How far experiments are, and how long the rest of a grid takes: arithmetic on what jobs write about themselves."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from audiotok.launchers.engine import LIVE_STATES

T = TypeVar("T")

_UNITS = (("d", 86400.0, 2.0), ("h", 3600.0, 1.5), ("m", 60.0, 1.5))


class FileCache(Generic[T]):
    """What files hold, read again only where they changed.

    Args:
        parse: makes of a path what is to be kept; it must bear a missing or damaged file.
    """

    def __init__(self, parse: Callable[[Path], T]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    def read(self, path: Path) -> T:
        """Content of a file, as of now."""
        try:
            stat = path.stat()
        except OSError:
            self._known.pop(path, None)
            return self._parse(path)
        key = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, self._parse(path))
        return known[1]


@dataclass(frozen=True)
class Progress:
    """Where one experiment is.

    Attributes:
        done: epochs done, with the part of the one under way.
        epochs: epochs asked for; None if it has not said so.
        epoch_s: seconds that an epoch takes; None if not known yet.
    """

    done: float = 0.0
    epochs: int | None = None
    epoch_s: float | None = None

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
    """Read the progress out of a `status.json`; whatever is damaged counts as not known."""
    if not status:
        return Progress()
    epoch, epochs = _number(status, "epoch") or 0.0, _number(status, "epochs")
    update, updates = _number(status, "update"), _number(status, "updates_per_epoch")
    part = min(update / updates, 0.999) if update and updates else 0.0  # an epoch counts as whole when it says so
    return Progress(min(epoch + part, epochs or epoch + part), int(epochs) if epochs else None, _epoch_s(status, epoch))


def grid_left_s(states: Sequence[str | None], progress: Sequence[Progress]) -> float | None:
    """Seconds until a grid is done, as it goes now: the work left over what runs at once; None if nobody can tell.

    What waits is taken to last as long as the others of its grid; where nothing runs, nothing is foretold.
    """
    known = [one.whole_s for one in progress if one.whole_s is not None]
    running = [one.left_s for state, one in zip(states, progress, strict=True) if state == "RUNNING"]
    if not known or not running:
        return None
    usual = statistics.fmean(known)
    rest = [usual if left is None else left for left in running]
    waiting = [
        usual * (1.0 - one.share)
        for state, one in zip(states, progress, strict=True)
        if state in LIVE_STATES and state != "RUNNING"
    ]
    return max(max(rest), (sum(rest) + sum(waiting)) / len(rest))


def in_words(seconds: float) -> str:
    """A duration as people say it: `45s`, `12m`, `3.2h`, `2.5d`."""
    for unit, size, least in _UNITS:
        if seconds >= size * least:
            value = seconds / size
            return f"{value:.0f}{unit}" if unit == "m" else f"{value:.1f}{unit}"
    return f"{max(seconds, 0.0):.0f}s"


def totals_line(states: Sequence[str | None], progress: Sequence[Progress], jobs: Sequence[str]) -> str:
    """Sum up a grid: states, how much is done, when it ends, and the jobs that are still in the queue.

    Args:
        states: one for each experiment, None without a job.
        progress: likewise.
        jobs: ids of the jobs that wait or run, `12_3` being part of `12`.
    """
    counts = Counter(state or "not submitted" for state in states)
    parts = [", ".join(f"{number} {state}" for state, number in counts.most_common())]
    shares = [1.0 if state == "COMPLETED" else one.share for state, one in zip(states, progress, strict=True)]
    parts.append(f"{100.0 * statistics.fmean(shares):.0f} % done" if shares else "nothing to do")
    left = grid_left_s(states, progress)
    if left is not None:
        parts.append(f"about {in_words(left)} left")
    roots = list(dict.fromkeys(job.split("_")[0] for job in jobs))
    if roots:
        shown = " ".join(roots[:4]) + (f" and {len(roots) - 4} more" if len(roots) > 4 else "")
        parts.append(f"{'job' if len(roots) == 1 else 'jobs'} {shown}")
    return f"{len(states)} experiments: " + " · ".join(parts)


def _epoch_s(status: Mapping[str, Any], epoch: float) -> float | None:
    """Mean duration of an epoch as the trainer tells it, else as its start and its last sign of life tell."""
    told = _number(status, "epoch_s")
    if told is not None:
        return told
    started, last = _number(status, "started"), _number(status, "ended") or _number(status, "updated")
    if started is None or last is None or epoch < 1.0 or last <= started:
        return None
    return (last - started) / epoch


def _number(content: Mapping[str, Any], name: str) -> float | None:
    value = content.get(name)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON allows integers of any size
        return None
    return number if math.isfinite(number) and number >= 0.0 else None
