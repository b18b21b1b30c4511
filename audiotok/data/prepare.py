"""Preparing data: scan folders of audio, split them by track, write one manifest per split.

A split is a matter of whole tracks: segments of one track in two splits would let training see what
evaluation measures. Tracks are ranked by a hash of their path and the seed, so the same folder gives the
same splits on any machine, and adding a track moves few others.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from audiotok.data.audio import ENCODINGS, audio_info
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# The stages of a solver, and the share of the tracks each gets.
SPLITS: Mapping[str, float] = MappingProxyType({"train": 0.8, "valid": 0.1, "evaluate": 0.05, "generate": 0.05})
EXTENSIONS = tuple(ENCODINGS)


class _SplitReport(NamedTuple):
    manifest: Path
    tracks: int
    hours: float


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was written and what was left out."""

    splits: dict[str, _SplitReport]
    sample_rates: dict[int, int]  # number of tracks per rate in Hz
    channels: dict[int, int]  # number of tracks per channel count
    unreadable: dict[Path, str]  # files left out, with the reason
    too_short: list[Path]  # files left out for being shorter than `min_duration_s`

    @property
    def max_sample_rate(self) -> int:
        """The lowest rate of any track, in Hz: asking a dataset for more would invent high frequencies."""
        return min(self.sample_rates)

    @property
    def max_channels(self) -> int:
        """The fewest channels of any track."""
        return min(self.channels)

    def __str__(self) -> str:
        """A table for people."""
        row = "{:<10} {:>7} tracks {:>9.3f} h  {}"
        lines = [row.format(name, one.tracks, one.hours, one.manifest) for name, one in self.splits.items()]
        lines.append("sample rates: " + ", ".join(f"{n} at {rate} Hz" for rate, n in self.sample_rates.items()))
        lines.append("channels: " + ", ".join(f"{n} with {count}" for count, n in self.channels.items()))
        lines += [f"too short, left out: {path}" for path in self.too_short]
        lines += [f"unreadable, left out: {reason}" for reason in self.unreadable.values()]
        return "\n".join(lines)


def prepare(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    splits: Mapping[str, float] = SPLITS,
    seed: int = 0,
    extensions: Sequence[str] = EXTENSIONS,
    min_duration_s: float = 1.0,
    workers: int = 8,
) -> PrepareReport:
    """Write `<split>.jsonl.gz` into `output` for each split of the audio found below `folders`.

    Only headers are read: a file damaged further on is found by the dataset, which draws another in its place. Hidden
    files and folders are passed over, links to folders followed, a file reached twice counts once.

    Args:
        folders: where to look, recursively.
        output: folder for the manifests; made if missing.
        splits: name and share of each; shares are relative to their sum. Every split gets at least one track.
        seed: another seed gives another split.
        extensions: of the files to take, upper or lower case.
        min_duration_s: shorter tracks are left out.
        workers: threads that read headers.

    Raises:
        ConfigError: if there are no splits, a share is not above 0 or a name is not a plain word.
        DataError: if a folder is missing, no audio is found or usable, or there are fewer tracks than splits.
    """
    _check_splits(splits)
    found = _find_audio(folders, extensions)
    # Threads will do: libsndfile and the file system work without the interpreter's lock.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        outcomes = list(pool.map(_describe, found))
    unreadable = {path: what for path, what in zip(found, outcomes, strict=True) if isinstance(what, str)}
    metas = {path: what for path, what in zip(found, outcomes, strict=True) if isinstance(what, AudioMeta)}
    too_short = [path for path, meta in metas.items() if meta.duration < min_duration_s]
    usable = {path: meta for path, meta in metas.items() if meta.duration >= min_duration_s}
    for reason in unreadable.values():
        logger.warning("left out: %s", reason)
    if len(usable) < len(splits):
        raise DataError(
            f"{len(usable)} usable tracks for {len(splits)} splits ({', '.join(splits)}), each of which "
            f"needs one; {len(unreadable)} files are unreadable and {len(too_short)} under {min_duration_s} s"
            + (f" (first: {next(iter(unreadable.values()))})" if unreadable else "")
            + ". Add tracks, cut long ones into several files, or choose fewer splits."
        )
    reports = {}
    for name, members in _split_tracks({path: found[path] for path in usable}, splits, seed).items():
        chosen = [usable[path] for path in members]
        manifest = write_manifest(Path(output) / f"{name}.jsonl.gz", chosen)
        reports[name] = _SplitReport(manifest, len(chosen), sum(meta.duration for meta in chosen) / 3600)
    return PrepareReport(
        splits=reports,
        sample_rates=dict(sorted(Counter(meta.sample_rate for meta in usable.values()).items())),
        channels=dict(sorted(Counter(meta.channels or 0 for meta in usable.values()).items())),
        unreadable=unreadable,
        too_short=too_short,
    )


def _find_audio(folders: Sequence[str | Path], extensions: Sequence[str] = EXTENSIONS) -> dict[Path, str]:
    """Audio files below the folders, sorted, each with its name relative to the folder that holds it."""
    suffixes = {f".{extension.lower().lstrip('.')}" for extension in extensions}
    found: dict[Path, str] = {}
    seen: set[Path] = set()
    others: Counter[str] = Counter()
    for folder in (Path(folder).absolute() for folder in folders):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder. Name a folder that holds audio files.")
        for path in _walk(folder):
            if path.suffix.lower() not in suffixes:
                others[path.suffix.lower() or "no extension"] += 1
            elif path.resolve() not in seen:
                seen.add(path.resolve())
                found[path] = path.relative_to(folder).as_posix()
    if not found:
        there = ", ".join(f"{n} × {extension}" for extension, n in others.most_common(5)) or "no files at all"
        raise DataError(
            f"no audio in {', '.join(map(str, folders)) or 'no folders'}: looked for "
            f"{', '.join(sorted(suffixes))}; found {there}."
        )
    return found


def _split_tracks(tracks: Mapping[Path, str], splits: Mapping[str, float], seed: int) -> dict[str, list[Path]]:
    """Distribute tracks (path, and the name that decides) over splits (name and share); their order stays.

    Sizes are by largest remainder, at least one each; a hash of seed and name decides where a track goes.
    """
    ranked = sorted(tracks, key=lambda path: hashlib.sha256(f"{seed}:{tracks[path]}".encode()).digest())
    counts = _sizes(len(ranked), splits)
    dealt: dict[str, list[Path]] = {}
    start = 0
    for name, count in counts.items():
        members = set(ranked[start : start + count])
        dealt[name] = [path for path in tracks if path in members]
        start += count
    return dealt


def _sizes(total: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the shares (largest remainder), none of them zero."""
    exact = {name: total * share / sum(splits.values()) for name, share in splits.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    for name in counts:
        if counts[name] == 0:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[name] = 1
    return counts


def _walk(folder: Path) -> list[Path]:
    """Files below a folder, sorted, without hidden ones; links are followed, each real folder once."""
    files: list[Path] = []
    visited = {folder.resolve()}
    for root, names, entries in os.walk(folder, followlinks=True):
        fresh = {name: (Path(root) / name).resolve() for name in sorted(names) if not name.startswith(".")}
        names[:] = [name for name, real in fresh.items() if real not in visited]
        visited |= set(fresh.values())
        files += [Path(root) / name for name in entries if not name.startswith(".")]
    return sorted(files)


def _describe(path: Path) -> AudioMeta | str:
    """The manifest entry of a file, or the reason why it cannot have one."""
    try:
        info = audio_info(path)
    except DataError as err:
        return str(err)
    return AudioMeta(path, info.duration_s, info.sample_rate, info.channels)


def _check_splits(splits: Mapping[str, float]) -> None:
    wrong = [f"{name}={share}" for name, share in splits.items() if not share > 0 or not name.isidentifier()]
    if wrong or not splits:
        raise ConfigError(
            f"splits: {', '.join(wrong) or 'none given'}; expected names such as {', '.join(SPLITS)}, each "
            "with a share above 0."
        )
