"""The line that shows how far a command is through hours of audio."""

import sys
import time
from collections.abc import Callable

from audiotok.text import duration_text

_EVERY_S = 0.5  # between two lines


def hours_line() -> Callable[[float, float], None] | None:
    """A line that a terminal shows in its place, by the seconds of audio done and all; None without a terminal."""
    if not sys.stderr.isatty():
        return None
    started = shown = time.monotonic()

    def show(done_s: float, total_s: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < _EVERY_S or not done_s or not total_s:
            return
        shown = now
        left = (total_s - done_s) * (now - started) / done_s
        line = f"{done_s / total_s:4.0%} of {total_s / 3600:.3g} h, {done_s / (now - started):.3g} × real time, "
        print(f"\r\x1b[K{line}{duration_text(left)} left", end="", file=sys.stderr, flush=True)

    return show


def clear_line() -> None:
    """Remove the line."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
