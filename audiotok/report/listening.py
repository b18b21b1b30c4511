"""Clips to listen to: of each, its reference and what each run makes of it, as 16-bit FLAC with a spectrogram.

A recording's level is never changed. Files are named by their content, so no name of a clip becomes a path, and a
reference that several runs share is there once.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from audiotok.report.spectrogram import Floats, power_spectrogram, save_spectrogram
from audiotok.results.tables import clean_text
from audiotok.results.read import natural

REFERENCE = "reference"


@dataclass(frozen=True)
class Take:
    """One recording of a clip.

    Attributes:
        run: signature, or `reference`.
        epoch: epoch of the reconstruction, None for a reference.
        source: the file.
    """

    run: str
    epoch: int | None
    source: Path


@dataclass(frozen=True)
class Clip:
    """One piece of music: the reference first, where there is one, then the runs in their order."""

    name: str
    takes: tuple[Take, ...]


@dataclass
class Listening:
    """What the page is given.

    Attributes:
        clips: {name, seconds, highest_hz, takes: [{run, epoch, audio, image}]} each, as JSON can hold it.
        problems: recordings that could not be read, or are not as they were.
        left_out: recordings that are not in the report because of its limits.
        size: bytes of audio and spectrograms.
    """

    clips: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0
    size: int = 0


def choose_clips(samples: pd.DataFrame, per_run: int) -> tuple[list[Clip], int]:
    """Choose the clips of each run's last epoch with samples; those that most runs have come first.

    Args:
        samples: `Experiments.samples`.
        per_run: clips of each run.

    Returns:
        The clips, and the number of reconstructions of these epochs that were left out.
    """
    estimates = samples[samples["kind"] == "estimate"]
    last = estimates.groupby("sig", observed=True)["epoch"].transform("max")
    estimates = estimates[estimates["epoch"] == last]
    references = samples[samples["kind"] == REFERENCE].set_index(["sig", "clip"])["path"].to_dict()
    spread = estimates["clip"].value_counts().to_dict()
    groups: dict[tuple[str, str], list[Take]] = {}
    left_out = 0
    for sig, rows in estimates.groupby("sig", observed=True):
        records = sorted(rows.to_dict("records"), key=lambda row: (-spread[row["clip"]], natural(row["clip"])))
        left_out += max(0, len(records) - per_run)
        for row in records[:per_run]:
            reference = references.get((sig, row["clip"]))
            takes = groups.setdefault((row["clip"], _fingerprint(reference)), [])
            if reference is not None and not takes:
                takes.append(Take(REFERENCE, None, reference))
            takes.append(Take(str(sig), int(row["epoch"]), row["path"]))
    order = sorted(groups, key=lambda key: (-len(groups[key]), natural(key[0]), key[1]))
    return [Clip(key[0], tuple(groups[key])) for key in order], left_out


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
        recordings = {take: wav for take, wav in _readable(clip, listening.problems)}
        if any(take.run != REFERENCE for take in recordings):
            entry = _write_clip(clip.name, recordings, folder)
            listening.clips.append(entry)
            written |= {folder / take[kind]: "" for take in entry["takes"] for kind in ("audio", "image")}
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
    def mono(self) -> Floats:
        scale = 2**15 if self.wav.dtype == np.int16 else 1
        mono: Floats = self.wav.mean(axis=1, dtype=np.float64) / scale
        return mono


def _readable(clip: Clip, problems: list[str]) -> Iterator[tuple[Take, _Recording]]:
    for take in clip.takes:
        try:
            exact = soundfile.info(take.source).subtype == "PCM_16"
            wav, sample_rate = soundfile.read(take.source, dtype="int16" if exact else "float64", always_2d=True)
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


def _write_clip(name: str, recordings: Mapping[Take, _Recording], folder: Path) -> dict[str, Any]:
    seconds = max(recording.seconds for recording in recordings.values())
    highest_hz = next(iter(recordings.values())).sample_rate / 2
    powers = {
        take: power_spectrogram(found.mono, found.sample_rate, seconds=seconds, highest_hz=highest_hz)
        for take, found in recordings.items()
    }
    loudest = float(next(iter(powers.values())).max())  # the reference's, where there is one
    takes = []
    for take, recording in recordings.items():
        content = hashlib.sha256(recording.wav.tobytes() + str(recording.sample_rate).encode()).hexdigest()[:20]
        audio = f"audio/{content}.flac"
        if not (folder / audio).exists():
            soundfile.write(folder / audio, recording.wav, recording.sample_rate, format="FLAC", subtype="PCM_16")
        scale = hashlib.sha256(repr((content, seconds, highest_hz, loudest)).encode()).hexdigest()[:20]
        image = f"audio/{scale}.png"
        if not (folder / image).exists():
            save_spectrogram(folder / image, powers[take], loudest)
        takes.append({"run": take.run, "epoch": take.epoch, "audio": audio, "image": image})
    return {"name": clean_text(name), "seconds": seconds, "highest_hz": highest_hz, "takes": takes}


def _fingerprint(path: Path | None) -> str:
    """Content of a reference: runs on other data may use the same name for another clip."""
    try:
        return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
