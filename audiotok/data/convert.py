"""Tracks decoded once for all epochs: copies as flac or wav, at the rate and channels of training.

A copy stands below the output folder where its track stands below the folders of the tracks, so folders that are
labels stay labels, and is named after it: `calm/intro.opus` becomes `calm/intro.opus.flac`. It appears complete or not
at all. A later call leaves it as it is unless it is older than its track or has another length, rate or channels.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from audiotok.data.audio import WRITE_BLOCK, audio_info, read_audio, read_segment
from audiotok.data.duplicates import Each
from audiotok.data.levels import HOT_PEAK, hot_text
from audiotok.data.manifest import AudioMeta
from audiotok.data.scan import LeftOut
from audiotok.errors import ConfigError, DataError
from audiotok.files import NoLocksError, hold_lock, replacing

logger = logging.getLogger(__name__)

FOLDER = "audio"  # of the copies, in the output folder
_BLOCK_S = 30  # decoded at once, in whole seconds: a point at which frames of any two rates coincide
_LONG = 3 << 30  # bytes beyond which a wav is an RF64
_LENGTH_S = 0.1  # a lossy file may hold so much less than its header counts


class _Format(NamedTuple):
    container: str
    subtype: str
    sample_bytes: float  # flac: music takes 0.4 to 0.7 of 16 bits


FORMATS = {"flac": _Format("FLAC", "PCM_16", 1.4), "wav": _Format("WAV", "FLOAT", 4.0)}
Progress = Callable[[float, float], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How tracks are copied.

    Args:
        format: "flac" (16 bits, cut at full scale) or "wav" (32-bit floating point, as decoded).
        sample_rate: in Hz; tracks of a lower rate keep theirs. None: all do.
        channels: 1 mixes stereo down to mono; None and 2 leave the channels as they are.
        workers: threads; None: one for each core.
        progress: called with the seconds of audio done and those to do.
    """

    format: str
    sample_rate: int | None = None
    channels: int | None = None
    workers: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Check the values; ConfigError for one that is not allowed."""
        if self.format not in FORMATS:
            raise ConfigError(f"--convert {self.format}: choose one of {', '.join(FORMATS)}.")
        if self.sample_rate is not None and not 1000 <= self.sample_rate <= 655_350:  # what flac can hold
            raise ConfigError(f"--sample-rate {self.sample_rate}: expected 1000 to 655350 Hz.")
        if self.channels not in (None, 1, 2):
            raise ConfigError(f"--channels {self.channels}: choose 1 or 2.")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: expected 1 or more.")

    def kind(self, meta: AudioMeta) -> tuple[int, int]:
        """Sample rate and channels of the copy of a track."""
        found = meta.channels or 1
        rate = meta.sample_rate if self.sample_rate is None else min(self.sample_rate, meta.sample_rate)
        return rate, 1 if self.channels == 1 and found == 2 else found


@dataclass
class Converted:
    """What a conversion made.

    Args:
        copies: the copy of each track that could be converted.
        left_out: tracks that could not be read to their end.
        kept: number of copies that were there.
        size: bytes of all copies.
        peaks: of the tracks whose copies are made now and pass `HOT_PEAK`, by path of the track.
    """

    folder: Path
    format: str
    copies: dict[Path, AudioMeta] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    kept: int = 0
    size: int = 0
    peaks: dict[Path, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line: how many, how large and where."""
        kept = f", of which {self.kept} were there" if self.kept else ""
        return f"{len(self.copies)} {self.format} copies{kept}, {_size_text(self.size)}, in {self.folder}"


def convert_tracks(
    tracks: Mapping[Path, AudioMeta], names: Mapping[Path, str], output: Path, how: Conversion, each: Each
) -> Converted:
    """Copy tracks into `output`/audio, of which what is there already is kept.

    Args:
        tracks: by path.
        names: of each track, its path below the folders of all, with `/`.
        output: folder of the manifests.
        how: the format.
        each: does it, in threads.

    Raises:
        ConfigError: if another process converts into the folder.
        DataError: if there is too little room on the disk, or a copy cannot be written.
    """
    folder = output / FOLDER
    report = Converted(folder, how.format)
    targets = {path: folder / f"{names[path]}.{how.format}" for path in tracks}
    try:
        with _alone_in(folder):
            sources = _Sources(folder)
            done = each(
                lambda path: _kept(path, targets[path], tracks[path], how, sources), list(tracks), "looking for copies"
            )
            there = {path: meta for path, meta in zip(tracks, done, strict=True) if meta is not None}
            todo = [path for path in tracks if path not in there]
            _require_room(folder, [tracks[path] for path in todo], how)
            copying = _Copying(how, sum(tracks[path].duration for path in todo), sources)
            try:
                made = each(lambda path: copying(path, targets[path], tracks[path]), todo, "converting")
            except BaseException:  # Ctrl-C: the threads end with their block, not with their track
                copying.stopped.set()
                raise
            found = there | dict(zip(todo, made, strict=True))
            for path in tracks:
                what = found[path]
                if isinstance(what, LeftOut):
                    report.left_out.append(what)
                else:
                    report.copies[path] = what
                    report.size += what.path.stat().st_size
    except OSError as err:
        raise DataError(
            f"cannot write below {folder}: {err.strerror or err}. Make room, or choose another --output; the same "
            "command goes on with what is done."
        ) from err
    report.kept, report.peaks = len(there), dict(sorted(copying.peaks.items()))
    return report


class _Sources:
    """Which file each copy is of: `.sources.jsonl` beside the copies, a line a copy, of which the last counts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file, self._lock = folder, folder / ".sources.jsonl", threading.Lock()
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError):
            for line in self._file.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # one that a kill has cut off
                    name, *source = json.loads(line)
                    self._known[name] = source

    def holds(self, copy: Path, path: Path) -> bool:
        """Whether a copy was made of this file, as it is now."""
        return self._known.get(self._name(copy)) == self.of(path)

    def add(self, copy: Path, source: list[Any]) -> None:
        """Note what a copy was made of, as `of` gave it before."""
        with self._lock, self._file.open("ab") as file:
            file.write(json.dumps([self._name(copy), *source]).encode() + b"\n")

    @staticmethod
    def of(path: Path) -> list[Any]:
        """What identifies a file, and a change of it: its path, size and time."""
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]

    def _name(self, copy: Path) -> str:
        return copy.relative_to(self._folder).as_posix()


class _Copying:
    """Copies tracks, in any number of threads, and counts the seconds done."""

    def __init__(self, how: Conversion, total_s: float, sources: _Sources) -> None:
        self._sources = sources
        self.stopped, self.peaks = threading.Event(), dict[Path, float]()
        self._how, self._total_s, self._done_s, self._lock = how, total_s, 0.0, threading.Lock()

    def __call__(self, path: Path, target: Path, meta: AudioMeta) -> AudioMeta | LeftOut:
        """The manifest entry of a copy that is made; why there is none if the track cannot be read.

        Raises:
            OSError: if it cannot be written.
        """
        rate, channels = self._how.kind(meta)
        container, subtype, sample_bytes = FORMATS[self._how.format]
        if container == "WAV" and meta.duration * rate * channels * sample_bytes > _LONG:
            container = "RF64"
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = {"format": container, "subtype": subtype}  # the suffix of a draft gives soundfile no format
        source = self._sources.of(path)
        try:
            with replacing(target, sync=True) as draft:
                with soundfile.SoundFile(os.fsencode(draft), "w", rate, channels, **kind) as handle:
                    frames, peak = self._copy(path, meta, rate, channels, handle.write)
                _check_whole(draft, frames)
        except DataError as err:
            return LeftOut(path, "unreadable", str(err).removeprefix(f"{path}: "))
        except (soundfile.SoundFileError, AssertionError) as err:  # AssertionError: fewer frames written than given
            raise OSError(f"{target.name}: {err or 'not written to its end'}") from err
        self._sources.add(target, source)
        if peak > HOT_PEAK:
            self.peaks[path] = peak
            logger.warning("%s", hot_text(path, peak))
        return AudioMeta(target, frames / rate, rate, channels)

    def _copy(
        self, path: Path, meta: AudioMeta, rate: int, channels: int, write: Callable[[NDArray[np.generic]], None]
    ) -> tuple[int, float]:
        """Decode, resample, mix and write a track; its length in frames, and its peak."""
        frames, peak = 0, 0.0
        for wav in self._blocks(path, meta, rate, channels):
            peak = max(peak, float(wav.abs().max()))
            samples: NDArray[np.generic] = wav.T.numpy()
            if self._how.format == "flac":  # libsndfile's own way to integers does not give back those it has read
                samples = (wav.T * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
            for start in range(0, len(samples), WRITE_BLOCK):
                write(samples[start : start + WRITE_BLOCK])
            frames += len(samples)
        return frames, peak

    def _blocks(self, path: Path, meta: AudioMeta, rate: int, channels: int) -> Iterator[torch.Tensor]:
        count = max(1, int(meta.duration / _BLOCK_S))  # the last one has the rest, too: no block is next to empty
        for k in range(count):
            if self.stopped.is_set():
                raise OSError("interrupted")
            last = k == count - 1
            n_frames = None if last else _BLOCK_S * rate
            wav, _ = read_segment(
                path, start_s=float(k * _BLOCK_S), n_frames=n_frames, sample_rate=rate, channels=channels
            )
            yield wav
            with self._lock:
                self._done_s += meta.duration - k * _BLOCK_S if last else _BLOCK_S
                if self._how.progress is not None:
                    self._how.progress(self._done_s, self._total_s)


def names_below(found: Mapping[Path, str], folders: Sequence[Path]) -> dict[Path, str]:
    """Path of each track below the innermost folder that holds all `folders`.

    Args:
        found: tracks, with their names below one of the folders.
        folders: absolute.
    """
    top = os.path.commonpath([os.path.normpath(folder) for folder in folders])
    names = {}
    for path, name in found.items():
        own = os.path.relpath(os.path.normpath(str(path)[: -len(name)]), top)
        names[path] = os.path.normpath(f"{own}/{name}")
    return names


def check_outside(output: Path, folders: Sequence[str | Path]) -> None:
    """ConfigError if copies in `output` would be found as tracks of the folders the next time."""
    copies = (output / FOLDER).resolve()
    for folder in folders:
        if copies.is_relative_to(Path(folder).resolve()):
            raise ConfigError(
                f"--output {output} lies in {folder}, where the copies would be taken for tracks the next time. Name a "
                "folder outside."
            )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The folder for one process; what killed ones have begun there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".converting.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoLocksError):  # two processes then do the work twice, and no harm
            if not stack.enter_context(hold_lock(lock, patience_s=0)):
                raise ConfigError(
                    f"{folder}: another `audiotok data prepare` converts into it. Wait for it, or choose another "
                    "--output."
                )
            stack.callback(lock.unlink, missing_ok=True)
            for kind in FORMATS:
                for draft in folder.rglob(f".*.{kind}.*.*.tmp"):
                    draft.unlink(missing_ok=True)
        yield


def _kept(path: Path, target: Path, meta: AudioMeta, how: Conversion, sources: _Sources) -> AudioMeta | None:
    """The manifest entry of a copy that is there and needs not be made again."""
    rate, channels = how.kind(meta)
    try:
        if not sources.holds(target, path) or target.stat().st_mtime_ns < path.stat().st_mtime_ns:
            return None
        info = audio_info(target)
        _check_whole(target, info.frames)
    except (OSError, DataError):
        return None
    expected = math.ceil(round(meta.duration * meta.sample_rate) * rate / meta.sample_rate)
    if (info.sample_rate, info.channels) != (rate, channels) or abs(info.frames - expected) > _LENGTH_S * rate:
        return None
    return AudioMeta(target, info.duration_s, rate, channels)


def _check_whole(path: Path, frames: int) -> None:
    """OSError unless a file can be read up to its last frame, which libsndfile does not report on a full disk."""
    try:
        rate = audio_info(path).sample_rate
        read_audio(path, start_s=(frames - 1) / rate)
    except DataError as err:
        raise OSError(f"{path.name} does not hold what was written") from err


def _require_room(folder: Path, metas: Sequence[AudioMeta], how: Conversion) -> None:
    """Log how much room the copies take, beforehand.

    Raises:
        DataError: if there is less.
    """
    if not metas:
        return
    sample_bytes = FORMATS[how.format].sample_bytes
    needed = int(sum(meta.duration * math.prod(how.kind(meta)) for meta in metas) * sample_bytes)
    free = shutil.disk_usage(folder).free
    hours = sum(meta.duration for meta in metas) / 3600
    about = f"{len(metas)} tracks ({hours:.3g} h) as {how.format} take about {_size_text(needed)}"
    if needed > free:
        raise DataError(f"{about}, and {_size_text(free)} are free in {folder}. Make room, or choose another --output.")
    logger.info("%s of the %s that are free in %s", about, _size_text(free), folder)


def _size_text(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
