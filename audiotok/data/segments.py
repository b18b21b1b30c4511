"""Segments: reading one at the model's rate, where it came from, batching, giving up on bad files."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F

from audiotok.data.audio import convert_audio, open_audio, read_frames, resample_reach
from audiotok.errors import DataError

logger = logging.getLogger(__name__)

JUDGED_AFTER = 50
"""Distinct files to try (fewer if the split is smaller) before a share of bad ones means anything."""
NAMED = 5
"""Bad files named in the final error; the log names all."""


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Where a segment came from.

    Args:
        path: the audio file.
        start_s: where in the file it starts, in seconds.
        n_frames: how many frames of it are audio; the rest is padding.
        total_frames: its length, padding included.
        sample_rate: of the segment, in Hz.
    """

    path: Path
    start_s: float
    n_frames: int
    total_frames: int
    sample_rate: int


Item: TypeAlias = torch.Tensor | tuple[torch.Tensor, SegmentInfo]
Batch: TypeAlias = torch.Tensor | tuple[torch.Tensor, list[SegmentInfo]]


def read_segment(
    path: str | Path, *, start_s: float, n_frames: int | None, sample_rate: int, channels: int
) -> tuple[torch.Tensor, float]:
    """Read a segment so that it equals the same stretch of the whole file, resampled.

    A segment resampled alone has a click's worth of error at both ends, where the filter sees zeros instead
    of the neighbouring audio. So a few more frames are read on each side and cut off again, and the start
    is moved back to the grid on which source and target frames coincide (every 3 frames from 48 to 32 kHz,
    10 ms from 44.1).

    Args:
        path: audio file.
        start_s: where to start, in seconds; moved back to the grid.
        n_frames: length at `sample_rate`; None reads to the end.
        sample_rate: wanted rate in Hz.
        channels: wanted number of channels.

    Returns:
        wav [channels, at most n_frames] (fewer where the file ends) and the true start in seconds.

    Raises:
        DataError: if the file cannot be read, has ended before `start_s`, or has channels that cannot be
            mixed.
    """
    with open_audio(path) as handle:
        rate = int(handle.samplerate)
        step, step_out = Fraction(rate, sample_rate).as_integer_ratio()
        first = int(start_s * rate) // step
        margin = math.ceil(resample_reach(rate, sample_rate) / step)
        lead = min(first, margin)
        blocks = None if n_frames is None else (lead + math.ceil(n_frames / step_out) + margin) * step
        source = read_frames(handle, (first - lead) * step, blocks)
    wav = convert_audio(source, rate, sample_rate, channels)[:, lead * step_out :]
    if wav.shape[-1] == 0:
        raise DataError(f"{path}: has ended before {start_s:.3f} s. Run `audiotok data prepare` again.")
    return (wav if n_frames is None else wav[:, :n_frames]), first * step / rate


def collate(items: Sequence[Item]) -> Batch:
    """Stack segments into a batch [B, C, T], with zeros after those shorter than the longest.

    Returns:
        wav [B, C, T], or wav and the list of B SegmentInfo where the dataset returns them.
    """
    wavs = [item if isinstance(item, torch.Tensor) else item[0] for item in items]
    longest = max(wav.shape[-1] for wav in wavs)
    batch = torch.stack([F.pad(wav, (0, longest - wav.shape[-1])) for wav in wavs])
    if isinstance(items[0], torch.Tensor):
        return batch
    return batch, [item[1] for item in cast(Sequence[tuple[torch.Tensor, SegmentInfo]], items)]


@dataclass(slots=True)
class ReadLedger:
    """Which files could be read so far, and when to stop trying.

    One bad file among several never stops a run. Two or more do, once they are more than `max_bad_fraction`
    of the distinct files tried and at least `JUDGED_AFTER` files (or all, if fewer) were tried. A split
    whose every file is bad always stops it, and so does the first bad file if the fraction is 0. Each data
    worker keeps a ledger of its own.
    """

    n_files: int
    max_bad_fraction: float
    good: set[Path] = field(default_factory=set)
    bad: dict[Path, str] = field(default_factory=dict)

    def note_good(self, path: Path) -> None:
        """Count a file that was read."""
        if path not in self.good:
            self.good.add(path)
            self._judge()

    def note_bad(self, path: Path, reason: str) -> None:
        """Name an unreadable file in the log, once, and raise DataError if there are too many."""
        if path not in self.bad:
            self.good.discard(path)
            self.bad[path] = reason
            logger.warning("left out: %s", reason)
            self._judge()

    def _judge(self) -> None:
        tried = len(self.good) + len(self.bad)
        enough = tried >= min(JUDGED_AFTER, self.n_files)
        too_many = enough and len(self.bad) > max(1.0, self.max_bad_fraction * tried)
        strict = self.max_bad_fraction == 0 and self.bad
        if strict or too_many or len(self.bad) == self.n_files:
            named = list(self.bad.values())
            more = f" … and {len(named) - NAMED} more" if len(named) > NAMED else ""
            raise DataError(
                f"{len(named)} of {tried} audio files tried (of {self.n_files}) cannot be used, more than "
                f"max_bad_fraction={self.max_bad_fraction} allows: {' | '.join(named[:NAMED])}{more}. Repair "
                "them, or leave them out and run `audiotok data prepare` again."
            )
