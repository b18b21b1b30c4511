"""Clips to listen to: of each, its reference and what each run makes of it, as 16-bit FLAC with a spectrogram.

The samples of a recording are never changed. Files are named by their content, so no name of a clip becomes a path, and
a reference that several runs share is there once. Spectrograms are power in dB over time and log frequency, all of a
clip on one scale.

A page that was opened from disk may read no other file: neither `fetch` nor a media element gives its samples to Web
Audio. A recording is therefore a small page, `recording.html`, that holds the FLAC as text. Inside a frame it posts the
bytes to the report; opened by itself it is a player.
"""

import base64
import contextlib
import functools
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from matplotlib.image import imsave
from scipy import signal

from audiotok.files import is_file_in
from audiotok.report.stimuli import anchor, loudness
from audiotok.results.read import natural
from audiotok.text import clean_text

REFERENCE = "reference"
ANCHOR = "anchor"  # condition of a rating test, of a clip rather than of a run
ASSETS = Path(__file__).parent / "assets"
LOWEST_HZ = 40.0
RANGE_DB = 80.0
ROWS = 112
COLUMNS = 480
WINDOW_S = 0.05
_COLOURS = "magma"
_DRAWN = re.compile(r"((?:un)?prompted)_(parallel|chain)-(.+)", re.DOTALL)

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Take:
    """One recording of a clip."""

    run: str  # signature, with the head of a language model; or `reference`
    epoch: int | None  # epoch of the reconstruction, None for a reference
    source: Path  # the file


@dataclass(frozen=True)
class Clip:
    """One piece of music: the reference first, where there is one, then the runs in their order."""

    name: str
    takes: tuple[_Take, ...]


@dataclass
class Listening:
    """What the page is given."""

    # {name, seconds, sample_rate, highest_hz, takes: [{run, epoch, image, …}], anchor: {…}} each, as JSON can hold it;
    # …: audio, seconds, loudness (LUFS or None), peak (full scale is 1)
    clips: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # recordings that could not be read, or are not as they were
    left_out: int = 0  # recordings that are not in the report because of its limits
    size: int = 0  # bytes of audio and spectrograms


def choose_clips(samples: pd.DataFrame, per_run: int) -> tuple[list[Clip], int]:
    """Choose the clips of each run's last epoch with samples; those that most runs have come first.

    What the heads of a language model draw of one clip are recordings of that clip, by `SIG parallel` and `SIG chain`;
    of clips from nothing and of continuations as many are chosen.

    Args:
        samples: `Experiments.samples`.
        per_run: clips of each run.

    Returns:
        The clips, and the number of reconstructions of these epochs that were left out.
    """
    estimates = samples[samples["kind"] == "estimate"]
    last = estimates.groupby("sig", observed=True)["epoch"].transform("max")
    estimates = estimates[estimates["epoch"] == last]
    estimates = estimates.assign(name=[_drawn(clip)[0] for clip in estimates["clip"]])
    references = samples[samples["kind"] == REFERENCE].set_index(["sig", "clip"])["path"].to_dict()
    spread = estimates["name"].value_counts().to_dict()
    groups: dict[tuple[str, str], list[_Take]] = {}
    left_out = 0
    for sig, rows in estimates.groupby("sig", observed=True):
        own: dict[str, list[dict[Hashable, Any]]] = {}
        for row in rows.to_dict("records"):
            own.setdefault(row["name"], []).append(row)
        names = _dealt(sorted(own, key=lambda name: (-spread[name], natural(name))))
        left_out += sum(len(own[name]) for name in names[per_run:])
        for name in names[:per_run]:
            for row in sorted(own[name], key=lambda row: _drawn(row["clip"])[1], reverse=True):  # parallel, chain
                reference = references.get((sig, row["clip"]))
                takes = groups.setdefault((name, _fingerprint(reference)), [])
                if reference is not None and not takes:
                    takes.append(_Take(REFERENCE, None, reference))
                takes.append(_Take(f"{sig} {_drawn(row['clip'])[1]}".rstrip(), int(row["epoch"]), row["path"]))
    order = sorted(groups, key=lambda key: (-len(groups[key]), natural(key[0]), key[1]))
    return [Clip(key[0], tuple(groups[key])) for key in order], left_out


def _drawn(clip: str) -> tuple[str, str]:
    """Name of a clip without the head of the language model that has drawn it, and that head; empty for all others."""
    found = _DRAWN.match(clip)
    return (f"{found[1]}-{found[3]}", found[2]) if found else (clip, "")


def _dealt(names: Sequence[str]) -> list[str]:
    """Names with clips from nothing and continuations in turn; in the order given where there are no such two kinds."""
    kinds = [name.partition("-")[0] if name.startswith(("prompted-", "unprompted-")) else "" for name in names]
    turns = Counter[str]()
    places = []
    for kind in kinds:
        places.append(turns[kind])
        turns[kind] += 1
    return [name for _, name in sorted(zip(places, names, strict=True), key=lambda pair: pair[0])]


def write_clips(clips: Sequence[Clip], folder: Path, limit_bytes: float) -> Listening:
    """Write the recordings and their spectrograms into `folder`/audio, up to a size.

    Returns:
        What was written, with paths relative to `folder`.
    """
    listening = Listening()
    written: dict[Path, str] = {}
    (folder / "audio").mkdir(exist_ok=True)
    for clip in clips:
        if listening.size >= limit_bytes:
            listening.left_out += sum(take.run != REFERENCE for take in clip.takes)
            continue
        seconds = {take: recording.seconds for take, recording in _readable(clip, listening.problems)}
        if any(take.run != REFERENCE for take in seconds):
            entry = _write_clip(Clip(clip.name, tuple(seconds)), max(seconds.values()), folder)
            listening.clips.append(entry)
            written |= {folder / take[kind]: "" for take in entry["takes"] for kind in ("audio", "image")}
            written |= {folder / entry["anchor"]["audio"]: ""} if entry["anchor"] else {}
            listening.size = sum(path.stat().st_size for path in written)
    return listening


@dataclass(frozen=True)
class _Recording:
    """A signal [T, C], int16 where the file holds that, else float64."""

    wav: np.ndarray[Any, np.dtype[Any]]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.wav) / self.sample_rate

    @property
    def scaled(self) -> Floats:
        """[T, C], full scale at 1."""
        return self.wav / 2**15 if self.wav.dtype == np.int16 else self.wav

    @property
    def rounded(self) -> np.ndarray[Any, np.dtype[np.int16]]:
        """[T, C] of 16 bits: what has no more is left as it is, in whatever type it is stored."""
        whole = self.wav if self.wav.dtype == np.int16 else np.clip(np.rint(self.wav * 2**15), -(2**15), 2**15 - 1)
        return whole.astype(np.int16, copy=False)

    @property
    def mono(self) -> Floats:
        mono: Floats = self.scaled.mean(axis=1)
        return mono


def _readable(clip: Clip, problems: list[str]) -> Iterator[tuple[_Take, _Recording]]:
    """Recordings of a clip one by one: those of a large sweep do not fit into memory together."""
    for take in clip.takes:
        if not _is_own(take.source):
            problems.append(clean_text(f"{take.run}, {clip.name}: leads out of the folder of its experiment"))
            continue
        try:
            source = os.fsencode(take.source)  # bytes: a name need not be UTF-8
            exact = soundfile.info(source).subtype == "PCM_16"
            wav, sample_rate = soundfile.read(source, dtype="int16" if exact else "float64", always_2d=True)
        except (OSError, RuntimeError) as error:  # libsndfile's own is a RuntimeError
            problems.append(clean_text(f"{take.run}, {clip.name}: cannot be read ({error})"))
            continue
        if not len(wav):
            problems.append(clean_text(f"{take.run}, {clip.name}: is empty"))
            continue
        if not exact and not (np.abs(wav) <= 1.0).all():
            problems.append(clean_text(f"{take.run}, {clip.name}: exceeds full scale and was clipped to it"))
            wav = np.clip(np.nan_to_num(wav), -1.0, 1.0)
        yield take, _Recording(wav, sample_rate)


def _write_clip(clip: Clip, seconds: float, folder: Path) -> dict[str, Any]:
    takes: list[dict[str, Any]] = []
    sample_rate, highest_hz, loudest, low = 0, 0.0, 0.0, None
    for take, recording in _readable(clip, []):
        sample_rate = max(sample_rate, recording.sample_rate)
        highest_hz = highest_hz if takes else recording.sample_rate / 2
        power = power_spectrogram(recording.mono, recording.sample_rate, seconds=seconds, highest_hz=highest_hz)
        loudest = loudest if takes else float(power.max())  # the reference's, where there is one
        low = _write_anchor(recording, folder) if take.run == REFERENCE else low
        written = _write_recording(recording, folder)
        scale = hashlib.sha256(repr((written["audio"], seconds, highest_hz, loudest)).encode()).hexdigest()[:20]
        image = f"audio/{scale}.png"
        if not (folder / image).exists():
            _save_spectrogram(folder / image, power, loudest)
        takes.append({"run": take.run, "epoch": take.epoch, "image": image, **written})
    return {
        "name": clean_text(clip.name),
        "seconds": seconds,
        "sample_rate": sample_rate,
        "highest_hz": highest_hz,
        "takes": takes,
        "anchor": low,
    }


def _write_anchor(reference: _Recording, folder: Path) -> dict[str, Any] | None:
    """Low-pass anchor of the reference, for a rating test; None without a band to take away."""
    low = anchor(reference.scaled, reference.sample_rate)
    return None if low is None else _write_recording(_Recording(low, reference.sample_rate), folder)


def _write_recording(recording: _Recording, folder: Path) -> dict[str, Any]:
    """Write a recording as a page that holds it; its path and its level."""
    wav = recording.rounded
    content = hashlib.sha256(wav.tobytes() + repr((wav.shape, recording.sample_rate)).encode()).hexdigest()[:20]
    path = folder / "audio" / f"{content}.html"
    if not path.exists():
        flac = io.BytesIO()
        soundfile.write(flac, wav, recording.sample_rate, format="FLAC", subtype="PCM_16")
        head, tail = _recording_page()
        path.write_bytes(head + base64.b64encode(flac.getvalue()) + tail)
    return {
        "audio": f"audio/{path.name}",
        "seconds": recording.seconds,
        "loudness": loudness(recording.scaled, recording.sample_rate),
        "peak": float(np.abs(recording.scaled).max()),
    }


@functools.cache
def _recording_page() -> tuple[bytes, bytes]:
    """What stands before and after the audio in the page of a recording."""
    page = (ASSETS / "recording.html").read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head, _, tail = page.replace("HASH_OF_SCRIPT", f"sha256-{digest}").encode().partition(b"AUDIO")
    return head, tail


def _is_own(sample: Path) -> bool:
    """Whether a sample, EXPERIMENT/samples/EPOCH/CLIP.wav, lies where its path says: a report shows no other files."""
    return is_file_in(sample.parent.parent.parent, sample)


def _fingerprint(path: Path | None) -> str:
    """Content of a reference: runs on other data may use the same name for another clip."""
    if path is None or not _is_own(path):
        return ""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def power_spectrogram(wav: Floats, sample_rate: int, *, seconds: float, highest_hz: float) -> Floats:
    """Power on a grid of log frequency and time.

    Args:
        wav: mono signal [T].
        sample_rate: Hz.
        seconds: time that the columns span; what the signal lacks is silence.
        highest_hz: upper end of the frequencies, from LOWEST_HZ.

    Returns:
        Power [ROWS, COLUMNS], the lowest frequency first.
    """
    size = 2 ** max(5, round(np.log2(WINDOW_S * sample_rate)))
    length = max(size, round(seconds * sample_rate))
    padded = np.zeros(length)
    padded[: min(length, len(wav))] = wav[:length]
    hop = max(1, length // COLUMNS)
    transform = signal.ShortTimeFFT(signal.windows.hann(size, sym=False), hop, sample_rate, scale_to="magnitude")
    power = np.abs(transform.stft(padded, p0=0, p1=max(1, length // hop))) ** 2
    frames = np.linspace(0, power.shape[1] - 1, COLUMNS).astype(int)
    smoothed: Floats = _filters(transform.f, highest_hz) @ power[:, frames]
    return smoothed


def _save_spectrogram(path: Path, power: Floats, loudest: float) -> None:
    """Write a spectrogram as PNG, its colours from RANGE_DB below `loudest` (power) up to it."""
    decibels = 10 * np.log10(np.maximum(power, 1e-20) / max(loudest, 1e-20))
    imsave(path, decibels, vmin=-RANGE_DB, vmax=0.0, cmap=_COLOURS, origin="lower")


def _filters(frequencies: Floats, highest_hz: float) -> Floats:
    """Triangles over log-spaced centres, each at least one bin wide to either side: [ROWS, bins]."""
    centres = np.geomspace(LOWEST_HZ, max(highest_hz, 2 * LOWEST_HZ), ROWS)
    widths = np.maximum(centres * (centres[1] / centres[0] - 1), frequencies[1] - frequencies[0])
    weights = np.maximum(0.0, 1.0 - np.abs(frequencies - centres[:, None]) / widths[:, None])
    filters: Floats = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    return filters
