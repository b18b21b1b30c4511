"""Samples beyond full scale that are used as they are, and named; `audiotok.data.audio.MAX_PEAK` ends that."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from audiotok.errors import one_line

logger = logging.getLogger(__name__)

HOT_PEAK = 2.0  # +6 dB: lossy encodings of loud masters pass full scale by less
_NAMED = 100  # files in the log of a run, more of them only as a number


def hot_text(path: Path, peak: float) -> str:
    """A line about a file whose samples pass `HOT_PEAK`."""
    return f"{one_line(str(path))}: peak {peak:.3g}, {20 * math.log10(peak):.1f} dB beyond full scale"


class HotFiles:
    """Names files whose segments pass `HOT_PEAK` in the log: each once, whichever data worker meets it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places = {path: place for place, path in enumerate(dict.fromkeys(paths))}
        self._named = torch.zeros(len(self._places), dtype=torch.bool).share_memory_()  # by all workers

    def note(self, path: Path, wav: torch.Tensor, start_s: float) -> None:
        """Look at a segment [C, T] of a file, which starts at `start_s`."""
        low, high = map(float, wav.aminmax())
        peak, place = max(-low, high), self._places[path]
        if peak <= HOT_PEAK or self._named[place]:
            return
        self._named[place] = True
        count = int(self._named.sum())
        if count <= _NAMED:
            text = hot_text(path, peak)
            logger.warning("%s, in a segment from %.3f s; it is used as it is", text, start_s)
        elif count & (count - 1) == 0:  # at 128, 256, 512, …
            logger.warning("%d files with peaks beyond %g so far", count, HOT_PEAK)
