"""Segments of tracks in batches: random ones for training, the same ones every time for everything else.

A segment is a function of (seed, epoch, index) alone, never of the number of workers or of what was read before. The
epoch travels with each index from the sampler, in the main process, to the workers: a worker that persists over epochs
(persistent_workers) holds no epoch that could be stale.
"""

import logging
import math
import os
import signal
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from audiotok.data.audio import read_segment
from audiotok.data.levels import HotFiles
from audiotok.data.limits import require_open_files
from audiotok.data.manifest import AudioMeta, read_manifest
from audiotok.errors import AudiotokError, ConfigError, DataError, one_line

logger = logging.getLogger(__name__)

_MAX_DRAWS = 10_000  # for one segment: enough unless the readable files are next to never drawn
JUDGED_AFTER = 50  # distinct files to try (fewer if the split is smaller) before a share of bad ones means anything
_TILES = 8  # of a track, where it has as many: dependence within a track is seen in several only
_NAMED = 5  # bad files in the final error; the log names all
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "segment_s": (lambda x: x is None or x > 0, "above 0, or null for whole tracks"),
    "sample_rate": (lambda x: x > 0, "above 0, in Hz"),
    "channels": (lambda x: x > 0, "1 or more"),
    "num_samples": (lambda x: x is None or x > 0, "1 or more, or null"),
    "seed": (lambda x: x >= 0, "0 or more"),
    "min_segment_ratio": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "max_bad_fraction": (lambda x: 0 <= x <= 1, "from 0 to 1"),
}


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Where a segment came from: its file, and in it the start in seconds."""

    path: Path
    start_s: float
    n_frames: int  # of audio, the rest is padding
    total_frames: int  # padding included
    sample_rate: int  # of the segment, in Hz
    track: str = ""  # path seen from the folder that holds all tracks of the manifest: the same wherever that lies


Item: TypeAlias = torch.Tensor | tuple[torch.Tensor, SegmentInfo]
Batch: TypeAlias = torch.Tensor | tuple[torch.Tensor, list[SegmentInfo]]


class Drawn(Protocol):
    """What a loader needs of a dataset whose items are a function of (epoch, index)."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the items."""

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch."""

    def __len__(self) -> int:
        """Items of an epoch."""

    def __getitem__(self, key: Any) -> Any:
        """The item of an (epoch, index) pair."""


class AudioDataset(Dataset[Item]):
    """Segments [channels, T] float32 of the tracks of a manifest, at one sample rate.

    With `segment_s`, each index is an independent draw: a track with probability proportional to duration × weight,
    then a start such that at least `min_segment_ratio` of the segment lies inside the track. Without it, index i is the
    i-th track, whole. An unreadable file is named once in the log and another segment is drawn in its place.

    Args:
        metas: the tracks.
        segment_s: seconds per segment; None for whole tracks.
        sample_rate: in Hz; tracks at other rates are resampled.
        channels: 1 or 2 (or that of every track); stereo is averaged to mono, mono copied to stereo.
        num_samples: segments per epoch, over all processes together; of whole tracks the first ones. None: as many
            as the tracks hold, or every track.
        shuffle: draw anew each epoch (whole tracks: another order each epoch); otherwise all epochs are the same.
        seed: 0 or more.
        pad: zeros up to `segment_s` where the track ends before; otherwise such segments are shorter.
        sample_on_duration, sample_on_weight: draw tracks in proportion to duration, and to weight in the manifest.
        min_segment_ratio: in (0, 1]; tracks shorter than this share of a segment are left out.
        max_bad_fraction: share of unreadable files to bear (see `_ReadLedger`).
        max_sample_rate, max_channels: highest rate (Hz) and most channels that the data supports; None: not checked.
        return_info: return (wav, SegmentInfo) instead of wav.
        tile: segments that do not overlap and hold no padding, the same in every epoch and for every seed, evenly
            chosen from the tracks and in them, in their order: see `_tiles`. Weights and `shuffle` have no effect.

    Raises:
        ConfigError: for a value out of its range.
        DataError: if the data does not support the sample rate or the channels, or no track can be used.
    """

    def __init__(
        self,
        metas: Sequence[AudioMeta],
        *,
        segment_s: float | None,
        sample_rate: int,
        channels: int,
        num_samples: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        pad: bool = True,
        sample_on_duration: bool = True,
        sample_on_weight: bool = True,
        min_segment_ratio: float = 0.5,
        max_bad_fraction: float = 0.1,
        max_sample_rate: int | None = None,
        max_channels: int | None = None,
        return_info: bool = False,
        tile: bool = False,
    ) -> None:
        sizes = {"segment_s": segment_s, "sample_rate": sample_rate, "channels": channels, "num_samples": num_samples}
        shares = {"min_segment_ratio": min_segment_ratio, "max_bad_fraction": max_bad_fraction}
        _check_ranges({**sizes, "seed": seed, **shares})
        _check_supported("sample_rate", sample_rate, max_sample_rate)
        _check_supported("channels", channels, max_channels)
        self.segment_s, self.sample_rate, self.channels = segment_s, sample_rate, channels
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.pad, self.return_info = pad, return_info
        self._folder = _common_folder(metas) if return_info else ""
        # Tiles hold no padding; a header may round a whole length.
        self._min_duration_s = (segment_s or 0.0) * (1 - 1e-6 if tile else min_segment_ratio)
        self.metas = _usable(metas, segment_s, self._min_duration_s, channels)
        self._tiles: list[tuple[AudioMeta, float]] = []
        if tile and segment_s is not None:
            self._tiles = _tiles(self.metas, segment_s, num_samples)
            self.num_samples = len(self._tiles)
        elif segment_s is None:
            self.metas = self.metas[:num_samples]
            self.num_samples = len(self.metas)
        else:
            weights = [
                (meta.duration if sample_on_duration else 1.0)
                * (meta.weight if sample_on_weight and meta.weight is not None else 1.0)
                for meta in self.metas
            ]
            self.metas, self._cumulative = _drawable(self.metas, weights)
            self.num_samples = num_samples or max(1, int(sum(meta.duration for meta in self.metas) / segment_s))
        self._target = None if segment_s is None else round(segment_s * sample_rate)
        self.ledger = _ReadLedger(len({meta.path for meta in self.metas}), max_bad_fraction)
        self._hot = HotFiles([meta.path for meta in self.metas])
        lowest = min(meta.sample_rate for meta in self.metas)
        if sample_rate > lowest:
            logger.warning("sample_rate=%d Hz, but some tracks have only %d Hz", sample_rate, lowest)

    @classmethod
    def from_manifest(cls, path: str | Path, **options: Any) -> Self:
        """A dataset of the tracks of a manifest file (or of a folder with data.jsonl.gz)."""
        return cls(read_manifest(path), **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0 or more) of the segments; before iterating over the loader, not during."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """The segment of an index, or of an (epoch, index) pair as the loader sends it to its workers.

        DataError if too many files cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index {index} of a dataset of {self.num_samples} segments")
        for meta, start_s in islice(self._draws(epoch, index), _MAX_DRAWS):
            # A bad file is drawn and passed over all the same: the draws must not depend on which worker knows it.
            if meta.path in self.ledger.bad:
                continue
            try:
                item = self._read(meta, start_s)
            except DataError as err:
                self.ledger.note_bad(meta.path, str(err))
                continue
            self.ledger.note_good(meta.path)
            return item
        raise DataError(
            f"epoch {epoch}, index {index}: {_MAX_DRAWS} draws met only unreadable files: "
            f"{', '.join(str(path) for path in self.ledger.bad)}. Repair them or leave them out."
        )

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch: in another order only for whole tracks (segments are random anyway)."""
        if self.segment_s is None and self.shuffle:
            return [int(i) for i in np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)]
        return list(range(self.num_samples))

    def _draws(self, epoch: int, index: int) -> Iterator[tuple[AudioMeta, float]]:
        """Tracks and starts to try for an index, best first; without end."""
        if self.segment_s is None:
            while True:
                yield self.metas[index % len(self.metas)], 0.0
                index += 1
        while self._tiles:
            yield self._tiles[index % len(self._tiles)]
            index += 1
        # Of its own for each index: a draw depends neither on the worker nor on the draws before.
        rng = np.random.default_rng((self.seed, epoch if self.shuffle else 0, index))
        while True:
            mark = rng.random() * self._cumulative[-1]
            # min: mark may round up to the last sum.
            meta = self.metas[min(int(np.searchsorted(self._cumulative, mark, side="right")), len(self.metas) - 1)]
            yield meta, rng.random() * (meta.duration - self._min_duration_s)

    def _read(self, meta: AudioMeta, start_s: float) -> Item:
        wav, start_s = read_segment(
            meta.path, start_s=start_s, n_frames=self._target, sample_rate=self.sample_rate, channels=self.channels
        )
        n_frames = wav.shape[-1]
        self._hot.note(meta.path, wav, start_s)
        if self.pad and self._target is not None:
            wav = F.pad(wav, (0, self._target - n_frames))
        if not self.return_info:
            return wav
        track = os.path.relpath(meta.path, self._folder)
        return wav, SegmentInfo(meta.path, start_s, n_frames, wav.shape[-1], self.sample_rate, track)


class AudioLoader:
    """Batches of one process's share of a dataset.

    A thin wrapper around a DataLoader: `set_epoch` reaches the sampler, and an error raised in a worker comes
    out as the same one-line error that it is without workers.
    """

    def __init__(self, dataset: Drawn, sampler: "_ShardSampler", build: Callable[[], DataLoader[Any]]) -> None:
        self.dataset = dataset
        self._sampler, self._build = sampler, build
        self._loader = build()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many of its batches are passed over without reading."""
        self.dataset.set_epoch(epoch)
        self._sampler.start = start

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._loader
            return
        except AudiotokError as err:
            # A worker's error arrives with the worker's whole traceback as its message.
            kind, message = type(err), str(err.args[0]).rsplit(f"{type(err).__name__}: ", 1)[-1].strip()
            err.__traceback__ = None
        # Without the traceback, and outside the handler, nothing else holds the old loader: its workers end
        # here and at once. Left to the garbage collector they take torch's 5 s timeout to go.
        self._loader = self._build()
        raise kind(message)


def get_loader(
    dataset: Drawn,
    *,
    batch_size: int,
    num_workers: int,
    world_size: int = 1,
    rank: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
    collate: Callable[[Sequence[Any]], Any] | None = None,
) -> AudioLoader:
    """A loader over one process's share of a dataset.

    Args:
        dataset: with the same seed and epoch in every process.
        batch_size: per process: an update sees batch_size × world_size segments.
        num_workers: processes that read; 0 reads in this one. They persist over epochs.
        world_size: number of training processes.
        rank: of this one; it takes indices rank, rank + world_size, … All ranks get the same number of batches.
        drop_last: True drops what does not fill a batch in every process. False keeps all (the last batch may be
            smaller) and repeats up to world_size - 1 of the first indices, so that all ranks have as many.
        pin_memory: put batches where a GPU can fetch them.
        collate: makes a batch of items; by default [B, C, T] of segments, with their SegmentInfo if there are any.

    Raises:
        ConfigError: for a value out of its range, if `drop_last` leaves no batch, or if the workers need more open
            files than this process may have.
    """
    if batch_size < 1 or num_workers < 0 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size={batch_size}, num_workers={num_workers}, rank={rank}, world_size={world_size}: "
            "expected batch_size >= 1, num_workers >= 0 and 0 <= rank < world_size."
        )
    sampler = _ShardSampler(dataset, batch_size=batch_size, world_size=world_size, rank=rank, drop_last=drop_last)
    if len(sampler) == 0:
        raise ConfigError(
            f"num_samples={len(dataset)} does not fill one batch of {batch_size} in each of {world_size} "
            "processes, and drop_last leaves out the rest: raise num_samples or lower batch_size."
        )
    require_open_files(num_workers)
    options: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "pin_memory": pin_memory}
    options |= {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    build = partial(
        DataLoader, cast(Dataset[Any], dataset), worker_init_fn=shield_worker, collate_fn=collate or _collate, **options
    )
    return AudioLoader(dataset, sampler, build)


def _collate(items: Sequence[Item]) -> Batch:
    """Batch [B, C, T] of segments, zeros after the shorter ones, with the B SegmentInfo if the dataset returns them."""
    wavs = [item if isinstance(item, torch.Tensor) else item[0] for item in items]
    longest = max(wav.shape[-1] for wav in wavs)
    batch = torch.stack([F.pad(wav, (0, longest - wav.shape[-1])) for wav in wavs])
    if isinstance(items[0], torch.Tensor):
        return batch
    return batch, [item[1] for item in cast(Sequence[tuple[torch.Tensor, SegmentInfo]], items)]


@dataclass(slots=True)
class _ReadLedger:
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
        if path not in self.good:
            self.good.add(path)
            self._check()

    def note_bad(self, path: Path, reason: str) -> None:
        """Name an unreadable file in the log, of many only their number; raise DataError if there are too many."""
        if path not in self.bad:
            self.good.discard(path)
            self.bad[path] = reason
            count = len(self.bad)
            if count <= _NAMED:
                logger.warning("left out: %s", reason)
            elif count & (count - 1) == 0:  # at 8, 16, 32, …
                logger.warning("left out: %d files so far", count)
            self._check()

    def _check(self) -> None:
        tried = len(self.good) + len(self.bad)
        enough = tried >= min(JUDGED_AFTER, self.n_files)
        too_many = enough and len(self.bad) > max(1.0, self.max_bad_fraction * tried)
        strict = self.max_bad_fraction == 0 and self.bad
        if strict or too_many or len(self.bad) == self.n_files:
            named = list(self.bad.values())
            more = f" … and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            raise DataError(
                f"{len(named)} of {tried} audio files tried (of {self.n_files}) cannot be used, more than "
                f"max_bad_fraction={self.max_bad_fraction} allows: {' | '.join(named[:_NAMED])}{more}. Repair "
                "them, or leave them out and run `audiotok data prepare` again."
            )


class _ShardSampler(Sampler[tuple[int, int]]):
    """The (epoch, index) pairs of one process: every `world_size`-th index, as many for each process.

    Indices that do not divide evenly are either dropped (down to whole batches everywhere) or filled up by
    repeating the first ones (up to the same count everywhere).
    """

    def __init__(self, dataset: Drawn, *, batch_size: int, world_size: int, rank: int, drop_last: bool) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.world_size, self.rank = world_size, rank
        self.start = 0  # batches to pass over
        unit = world_size * batch_size if drop_last else world_size
        whole = len(dataset) // unit if drop_last else math.ceil(len(dataset) / unit)
        self.total = whole * unit

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.dataset.epoch
        order = self.dataset.order(epoch)
        first = self.rank + self.start * self.batch_size * self.world_size
        for position in range(first, self.total, self.world_size):
            yield epoch, order[position % len(order)]  # modulo: beyond the end, the first ones again


def shield_worker(worker_id: int) -> None:
    """Let a data worker outlive the signals that stop the trainer, or its whole process group.

    The trainer still reads until its current step is done; torch would turn the death of a worker into an error in the
    middle of it. SIGTERM ends a worker only if the trainer itself sent it.
    """
    # SLURM and Ctrl-C signal the whole process group.
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform != "linux":  # elsewhere sigwaitinfo does not give the sender
        return
    # Blocked and taken by a thread: a handler does not learn who sent the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _usable(
    metas: Sequence[AudioMeta], segment_s: float | None, min_duration_s: float, channels: int
) -> list[AudioMeta]:
    """The tracks that are long enough and whose channels can be mixed; the others are counted in the log."""
    if not metas:
        raise DataError("no tracks: the list is empty. Write a manifest with `audiotok data prepare`.")
    longest = max(metas, key=lambda meta: meta.duration)
    if segment_s is not None and longest.duration < segment_s:
        raise DataError(
            f"segment_s={segment_s} is longer than every track: the longest is {longest.path} with "
            f"{longest.duration:.3f} s. Lower the segment_duration of this split or add longer tracks."
        )
    long_enough = [meta for meta in metas if meta.duration >= min_duration_s and meta.duration > 0]
    mixable, odd = list[AudioMeta](), list[AudioMeta]()
    for meta in long_enough:
        fits = meta.channels in (None, channels) or {meta.channels, channels} == {1, 2}
        (mixable if fits else odd).append(meta)
    if len(long_enough) < len(metas):
        short = len(metas) - len(long_enough)
        logger.warning("left out %d of %d tracks: under %.3f s", short, len(metas), min_duration_s)
    if odd:
        first = f"{one_line(str(odd[0].path))} has {odd[0].channels} channels"
        logger.warning("left out %d tracks: %s, which cannot be mixed to %d", len(odd), first, channels)
    if not mixable:
        found = sorted({meta.channels for meta in long_enough if meta.channels is not None})
        raise DataError(f"channels={channels} cannot be made from any track (they have {found}): use 1 or 2.")
    return mixable


def _common_folder(metas: Sequence[AudioMeta]) -> str:
    """The innermost folder that holds all tracks."""
    return os.path.commonpath({str(meta.path.absolute().parent) for meta in metas} or "/")


def _tiles(metas: Sequence[AudioMeta], segment_s: float, most: int | None) -> list[tuple[AudioMeta, float]]:
    """At most so many tracks and starts of segments that lie end to end in their tracks, evenly spread.

    Every track counts alike. With fewer segments than _TILES for each, some tracks are left out rather than all cut
    short.
    """
    counts = np.array([int(meta.duration / segment_s + 1e-6) for meta in metas])  # a header may round a whole length
    most = int(counts.sum()) if most is None else most
    used = min(len(metas), max(1, most // _TILES))
    while counts[_evenly(len(metas), used)].sum() < min(most, counts.sum()):
        used = min(len(metas), 2 * used)
    chosen = _evenly(len(metas), used)
    # The highest level with room for all, then one more for the first tracks that have it.
    level = bisect_right(range(1, most + 1), most, key=lambda n: int(np.minimum(counts[chosen], n).sum()))
    share = np.minimum(counts[chosen], level)
    longer = np.flatnonzero(counts[chosen] > share)
    share[longer[_evenly(len(longer), min(len(longer), most - int(share.sum())))]] += 1
    return [
        (metas[i], float(place * segment_s))
        for i, count in zip(chosen, share, strict=True)
        for place in _evenly(int(counts[i]), int(count))
    ]


def _evenly(n: int, count: int) -> np.ndarray[Any, Any]:
    """So many of 0..n-1, evenly spread."""
    return (2 * np.arange(count) + 1) * n // (2 * max(count, 1))


def _drawable(metas: list[AudioMeta], weights: list[float]) -> tuple[list[AudioMeta], np.ndarray[Any, Any]]:
    """The tracks with a weight above zero, and the running sum of their weights."""
    kept = [(meta, weight) for meta, weight in zip(metas, weights, strict=True) if weight > 0]
    if not kept:
        raise DataError("no track can be drawn: the manifest gives every usable track weight 0.")
    return [meta for meta, _ in kept], np.cumsum([weight for _, weight in kept])


def _check_supported(name: str, value: int, most: int | None) -> None:
    if most is not None and value > most:
        raise DataError(f"{name}={value}, but the data supports at most max_{name}={most}: lower {name}.")


def _check_ranges(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        good, allowed = _RANGES[name]
        if not good(value):
            raise ConfigError(f"dataset: {name}={value!r}; expected a value {allowed}.")
