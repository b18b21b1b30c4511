"""What codebooks look like if they are independent: their clips shuffled against each other, as far as a shuffle holds.

Clips of one recording resemble each other, so that they are no independent draws and exchanging them one by one finds
dependence everywhere. A shift turns the clips of a recording in a circle, by another angle for each codebook; it keeps
each codebook's law in every recording, and how its clips follow each other. All angles together form a group, zero
included: p-values are exact where a recording has no beginning and no end, however alike its clips are.

Sources: Hemerik and Goeman, "Exact testing with random permutations", TEST 2018 (random draws of a group); Lancaster et
al., "Surrogate data for hypothesis testing of physical systems", Physics Reports 2018 (cyclic shifts).
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from audiotok.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SHUFFLES = ("shifts", "recordings", "frames")
RUN = 8  # clips of a recording to shift, where it has as many
BASELINES = 40  # shuffles behind a baseline and its error: more would change little
RECORDINGS = 20  # with fewer, an exchange leaves many in their place and their law too little known
ARRANGEMENTS = 20  # of two codebooks; with fewer no p-value can be 0.05
FRAMES_ALONE = 200  # a recording of one clip is turned by frames, from this many on
_APART = 4  # shuffles for baselines part codebooks by 1 / (_APART * K) of a recording

Ints = npt.NDArray[np.int64]
Tracks = Sequence[int] | Ints | torch.Tensor | None


class Shuffles:
    """Shuffles of clips [B, T] against each other, K codebooks at once.

    Attributes:
        clips: which clips take part, in the order of their recordings, [B']; their samples are n = b * T + t.
        samples: how many samples that are, N.
        missing: why there is no shuffle at all; None if there is.
        missing_p: why there is no p-value; None if there is.
        missing_error: why shuffles of `draw_apart` have no spread to rely on; None if they do.

    Args:
        clips: how many clips there are, B.
        frames: samples in each clip, T.
        tracks: recording of each clip, B integers; clips of one recording in the order of time. None: each clip is a
            recording of its own.
        shuffle: 'shifts' turns the clips of each recording in a circle (the frames, where it has one clip);
            'recordings' exchanges whole recordings, from 20 on, of which equally many clips take part; 'frames' lets
            every frame go anywhere, for frames that are independent draws.
        frames_alone: samples that a recording of one clip needs to be turned by them.

    Raises:
        ConfigError: for an unknown shuffle.
        DataError: if tracks do not fit the clips.
    """

    def __init__(self, clips: int, frames: int, tracks: Tracks, shuffle: str, frames_alone: int) -> None:
        if shuffle not in SHUFFLES:
            raise ConfigError(f"shuffle={shuffle!r}; choose one of: {', '.join(SHUFFLES)}.")
        recordings = _recordings(clips, tracks)
        self.missing: str | None = None
        self._exchange = shuffle != "shifts"
        if shuffle == "frames":
            kept, units = [np.arange(clips)], [1]
        elif shuffle == "recordings":
            kept = _equally_many(recordings)
            units = [len(kept[0]) * frames]
            if len(kept) < RECORDINGS:
                self.missing = f"{len(kept)} recording(s) are too few to exchange; it takes {RECORDINGS}"
        else:
            kept = [r for r in recordings if len(r) > 1 or frames >= frames_alone]
            if 0 < len(kept) < len(recordings):
                short = len(recordings) - len(kept)
                logger.warning("%d of %d recordings have one short clip, which no shift moves", short, len(recordings))
            if not kept:
                self.missing = (
                    f"none of {len(recordings)} recording(s) has two clips, or one of {frames_alone} frames or more; "
                    f"give more clips of each, or, from {RECORDINGS} recordings on, use shuffle='recordings'"
                )
                kept = recordings
            units = [frames if len(r) > 1 else 1 for r in kept]
        self.clips = np.concatenate(kept)
        self.samples = len(self.clips) * frames
        # Circles of samples that are turned by a number of units: a recording each, or all of what is exchanged.
        lengths = np.array([self.samples] if self._exchange else [len(r) * frames for r in kept])
        self._units = np.array(units)
        self._angles = lengths // self._units
        self._circle = np.repeat(np.arange(len(lengths)), lengths)
        self._start = (np.cumsum(lengths) - lengths)[self._circle]
        self._place = np.arange(self.samples) - self._start
        self._length = lengths[self._circle]
        self.missing_p = self.missing
        arrangements = math.exp(min(float(np.log(self._angles).sum()), 50.0))  # of two codebooks
        if shuffle == "shifts" and not self.missing and round(arrangements) < ARRANGEMENTS:
            self.missing_p = (
                f"shifts of the clips arrange two codebooks in {round(arrangements)} way(s), and a p-value of 0.05 "
                f"takes {ARRANGEMENTS}; give more clips of each recording, or more recordings"
            )
        self.missing_error = self.missing
        apart = 1 + math.exp(min(float(np.log(np.maximum(1, self._angles - 1)).sum()), 50.0))  # and the one observed
        if shuffle == "shifts" and not self.missing and round(apart) < ARRANGEMENTS:
            self.missing_error = (
                f"shifts of the clips take two codebooks apart in {round(apart) - 1} way(s), and their spread takes "
                f"{ARRANGEMENTS - 1}; give 3 clips or more of each recording, or more recordings"
            )

    def draw(self, codebooks: int, rng: np.random.Generator) -> Ints:
        """A random element of the group, [K, N]: codebook q of sample n becomes that of sample draw[q, n]."""
        if not self._exchange:
            return self._turned(rng.integers(self._angles, size=(codebooks, len(self._angles))))
        return self._spread(np.stack([rng.permutation(self._angles[0]) for _ in range(codebooks)]))

    def draw_apart(self, codebooks: int, rng: np.random.Generator) -> Ints:
        """A shuffle that takes codebooks away from each other in each recording, as far as it has clips, [K, N]."""
        offsets = np.stack([_apart(int(n), codebooks, rng) for n in self._angles], axis=1)
        if not self._exchange:
            return self._turned(offsets)
        ring: Ints = rng.permutation(self._angles[0])
        return self._spread(ring[(np.argsort(ring) + offsets) % len(ring)])

    def _turned(self, offsets: Ints) -> Ints:
        """Samples [K, N] of circles turned by offsets [K, circles]."""
        turned: Ints = self._start + (self._place + (offsets * self._units)[:, self._circle]) % self._length
        return turned

    def _spread(self, units: Ints) -> Ints:
        """Samples [K, N] of the units [K, n] of the one circle."""
        size = int(self._units[0])
        return (units[:, :, None] * size + np.arange(size)).reshape(len(units), -1)


def evenly_in_runs(n: int, most: int) -> Ints:
    """At most so many of 0..n-1, evenly spread in runs of RUN: neighbours often belong to one recording."""
    if n <= most or most < RUN:
        return np.arange(min(n, most)) * n // max(1, min(n, most))
    runs = -(-n // RUN)
    starts = np.arange(most // RUN) * runs // (most // RUN) * RUN
    chosen: Ints = (starts[:, None] + np.arange(RUN)).ravel()
    return chosen[chosen < n]


def _recordings(clips: int, tracks: Tracks) -> list[Ints]:
    """Clips of each recording, in their order."""
    if tracks is None:
        return [np.array([clip]) for clip in range(clips)]
    owner = np.asarray(tracks)
    if owner.shape != (clips,) or owner.dtype.kind not in "iu":
        raise DataError(f"tracks {list(owner.shape)} of {owner.dtype}; give one integer for each of {clips} clip(s).")
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)


def _equally_many(recordings: list[Ints]) -> list[Ints]:
    """Recordings with equally many clips each, evenly chosen from theirs, such that most clips take part."""
    sizes = sorted((len(r) for r in recordings), reverse=True)
    counts = {size: (rank + 1) * size for rank, size in enumerate(sizes)}  # with the last rank of each size
    enough = {size: kept for size, kept in counts.items() if kept // size >= min(RECORDINGS, len(sizes))}
    m = max(enough, key=lambda size: (enough[size], -size))
    return [r[np.arange(m) * len(r) // m] for r in recordings if len(r) >= m]


def _apart(n: int, codebooks: int, rng: np.random.Generator) -> Ints:
    """Offsets of K codebooks on a circle of n places, any two at least n / (_APART * K) apart and not equal."""
    if n < codebooks:  # as few of them in one place as can be
        return rng.permutation(np.resize(rng.permutation(n), codebooks))
    gap = max(1, n // (_APART * codebooks))
    places = np.sort(rng.choice(n - codebooks * (gap - 1), codebooks, replace=False))
    return rng.permutation(places + np.arange(codebooks) * (gap - 1)) + rng.integers(n)
