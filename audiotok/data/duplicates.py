"""Tracks that hold the same audio: equal to the last sample, or one recording in two encodings.

Only tracks whose durations agree are decoded: three windows of each, for the levels of eight bands between 100 and
1800 Hz, which every codec keeps. Tracks of equal windows are decoded whole, and are copies if all samples are equal.
Of the others, those with the nearest levels are compared by the correlation of their waveforms in these windows.

A recording is not found again if it is cut, shifted by more than 0.1 s, or played faster or higher; nor in more than
a few of its encodings if many sounds of the same length are alike.
"""

import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.spatial import KDTree

from audiotok.data.audio import read_audio
from audiotok.data.manifest import AudioMeta
from audiotok.errors import DataError

_WINDOW_S, _WINDOWS = 2.0, 3
_BINS = slice(200, 3600)  # of the spectrum of a window: 100 to 1800 Hz
_EDGES = np.searchsorted(np.arange(_BINS.start, _BINS.stop), np.geomspace(_BINS.start, _BINS.stop, 9)[:-1])
_DURATION_S = 0.2  # encodings of a recording differ by less: an mp3 is padded to whole frames at both ends
_LEVEL_DB = 6.0  # and by less in the level of any band: 4.3 dB at opus 9 kb/s, 0.7 dB at mp3 60 kb/s
_FLOOR = 1e-3  # bands with less power than this share of the loudest are as good as silence: encoders add noise there
_CORRELATION = 0.7  # 0.98 to 1 between encodings (opus 9 kb/s: 0.86), up to 0.14 between different music
_FADE_S = 0.05  # at both ends of a window
_SHIFT_S = 0.1  # encoders delay what they encode, by up to 50 ms
_LAGS = 8000  # steps of the shift in a second
_NEAREST = 8  # tracks that one is compared with

_Levels = NDArray[np.float32]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Each(Protocol):
    """Applies a function to many things, in threads or not; results are in the order of the things."""

    def __call__(self, work: Callable[[_T], _R], things: Sequence[_T], what: str, /) -> list[_R]: ...  # noqa: D102


def find_copies(tracks: Mapping[Path, AudioMeta], each: Each) -> tuple[dict[Path, Path], list[tuple[Path, Path]]]:
    """Find equal audio and other encodings of one recording.

    Args:
        tracks: by path; of equal ones the first is the original.
        each: does the reading.

    Returns:
        The original of each track that is equal to an earlier one, and pairs of tracks that hold one recording.
    """
    paths = _with_agreeing_durations(tracks)
    found = dict(zip(paths, each(lambda path: _levels(path, tracks[path].duration), paths, "comparing"), strict=True))
    levels = {path: level for path, level in found.items() if level is not None}
    copies = _equal(tracks, levels, each)
    alike = _alike(tracks, {path: level for path, level in levels.items() if path not in copies})
    same = each(lambda pair: _correlation(pair, tracks) >= _CORRELATION, alike, "comparing pairs")
    return copies, [pair for pair, is_same in zip(alike, same, strict=True) if is_same]


def _with_agreeing_durations(tracks: Mapping[Path, AudioMeta]) -> list[Path]:
    ranked = sorted(tracks, key=lambda path: tracks[path].duration)
    near = {
        path
        for pair in itertools.pairwise(ranked)
        if tracks[pair[1]].duration - tracks[pair[0]].duration <= _DURATION_S
        for path in pair
    }
    return [path for path in tracks if path in near]


def _equal(
    tracks: Mapping[Path, AudioMeta], levels: Mapping[Path, NDArray[np.float32]], each: Each
) -> dict[Path, Path]:
    """The first of each set of tracks whose samples are all equal, by the others of the set."""
    sets: defaultdict[Any, list[Path]] = defaultdict(list)
    for path, level in levels.items():
        meta = tracks[path]
        sets[level.tobytes(), meta.sample_rate, meta.channels, meta.duration].append(path)
    doubtful = [path for members in sets.values() if len(members) > 1 for path in members]
    originals: dict[Any, Path] = {}
    copies: dict[Path, Path] = {}
    for path, digest in zip(doubtful, each(_digest, doubtful, "comparing to the end"), strict=True):
        if digest is not None:
            original = originals.setdefault((digest, tracks[path].sample_rate), path)
            if original != path:
                copies[path] = original
    return copies


def _alike(tracks: Mapping[Path, AudioMeta], levels: Mapping[Path, _Levels]) -> list[tuple[Path, Path]]:
    """Pairs that agree in duration and levels, each track with the few nearest: their number grows with the tracks."""
    paths = [path for path, level in levels.items() if level.any()]
    if len(paths) < 2:
        return []
    scale = _LEVEL_DB / _DURATION_S  # one radius for all coordinates
    points = np.stack([np.append(levels[path], scale * tracks[path].duration) for path in paths])
    count = min(_NEAREST + 1, len(paths))  # with itself
    _, found = KDTree(points).query(points, k=count, p=np.inf, distance_upper_bound=_LEVEL_DB)
    nearest: list[list[int]] = np.asarray(found).tolist()
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(nearest) for j in row if i != j < len(paths)}
    return [(paths[i], paths[j]) for i, j in sorted(pairs)]


def _levels(path: Path, duration_s: float) -> _Levels | None:
    """Level of each band in each window over their mean, in dB; zeros for silence, None if the file is damaged."""
    spectra = _spectra(path, duration_s)
    if spectra is None:
        return None
    power = np.stack([_band_power(spectrum) for spectrum in spectra])
    if power.max() < 1e-12:
        return np.zeros(power.size, np.float32)
    decibels = 10 * np.log10(np.maximum(power, _FLOOR * power.max()))
    return np.asarray(decibels - decibels.mean(), np.float32).ravel()


def _correlation(pair: tuple[Path, Path], tracks: Mapping[Path, AudioMeta]) -> float:
    """Correlation of two waveforms in all windows, at the shift where it is largest; no band outweighs the others."""
    duration_s = min(tracks[path].duration for path in pair)
    one, other = (_spectra(path, duration_s) for path in pair)
    if one is None or other is None:
        return 0.0
    cross = np.zeros(round(_LAGS * _WINDOW_S) // 2 + 1, np.complex128)
    cross[_BINS] = (_whitened(one) * _whitened(other).conj()).sum(0)
    by_lag = np.abs(np.fft.irfft(cross, norm="forward")) / 2
    reach = round(_SHIFT_S * _LAGS)
    return float(max(by_lag[:reach].max(), by_lag[-reach:].max()))


def _spectra(path: Path, duration_s: float) -> NDArray[np.complex128] | None:
    """Spectra [windows, bins] of windows spread over a track, mixed to mono; None if it is damaged there."""
    starts = [max(0.0, duration_s - _WINDOW_S) * (k + 0.5) / _WINDOWS for k in range(_WINDOWS)]
    spectra = []
    for start in starts if duration_s > _WINDOW_S else starts[:1]:
        try:
            wav, rate = read_audio(path, start_s=start, duration_s=min(_WINDOW_S, duration_s))
        except (DataError, OSError):
            return None
        mono, fade = wav.numpy().mean(0), max(1, round(_FADE_S * rate))
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)  # steps at the ends would look alike
        mono[:fade] *= ramp[: len(mono)]
        mono[-fade:] *= ramp[::-1][-len(mono) :]
        spectrum = np.fft.rfft(mono, round(_WINDOW_S * rate))[_BINS] / rate
        spectra.append(np.pad(spectrum, (0, _BINS.stop - _BINS.start - len(spectrum))))  # at rates below 3600 Hz
    return np.stack(spectra + spectra[:1] * (_WINDOWS - len(spectra)))


def _band_power(spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
    return np.add.reduceat(np.abs(spectrum) ** 2, _EDGES)


def _whitened(spectra: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Spectra with the square root of the power of each band over all windows, so that no bass note decides; norm 1."""
    power = np.stack([_band_power(spectrum) for spectrum in spectra]).sum(0)
    widths = np.diff(np.append(_EDGES, spectra.shape[1]))
    whitened = spectra / np.repeat(np.maximum(power, _FLOOR * power.max() + 1e-30), widths) ** 0.25
    return np.asarray(whitened / np.linalg.norm(whitened))


def _digest(path: Path) -> bytes | None:
    """Hash of all samples, whatever the format; None if the file is damaged."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as handle:
            digest.update(f"{handle.channels}".encode())
            for block in handle.blocks(1 << 16, dtype="float32", always_2d=True):
                digest.update(block.tobytes())
    except (soundfile.SoundFileError, OSError):
        return None
    return digest.digest()


def united(things: Iterable[_T], sets: Iterable[Iterable[_T]]) -> list[list[_T]]:
    """Groups of the things, in which those that share a set, or are linked by a chain of sets, are together."""
    group = {thing: [thing] for thing in things}
    for members in sets:
        first, *rest = members
        for other in rest:
            large, small = sorted((group[first], group[other]), key=len, reverse=True)
            if large is not small:
                large += small
                group.update(dict.fromkeys(small, large))
    return list({id(members): members for members in group.values()}.values())
