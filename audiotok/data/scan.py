"""Looking through folders for audio: what can be taken, and what is left out, of which kind and why."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from audiotok.data.audio import MAX_PEAK, audio_info
from audiotok.data.manifest import AudioMeta
from audiotok.errors import DataError

# Audio that libsndfile does not decode, or not with the exact seeking that the five formats are tested for.
_OTHER_AUDIO = frozenset({"3gp", "aac", "ac3", "aif", "aifc", "aiff", "alac", "amr", "ape", "au", "caf", "dff", "dsf",
                          "dts", "flv", "m4a", "m4b", "m4p", "mka", "mp2", "mp4", "mpc", "oga", "ra", "rf64", "shn",
                          "snd", "spx", "tak", "tta", "voc", "w64", "webm", "wma", "wv"})  # fmt: skip
_BLOCK = 1 << 16  # frames that are decoded at once
_ADVICE = "Name a folder that holds audio files; `audiotok data demo` fetches a little music."


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is not used; `kind` is what the summary counts it as."""

    path: Path
    kind: str
    reason: str


@dataclass
class Scan:
    """What lies below some folders.

    Args:
        found: audio files, sorted, with their names relative to the folder that holds them.
        left_out: audio of other formats, folders that cannot be read, links that lead nowhere or to what is there.
        others: number of other files by extension; hidden files and folders as "hidden".
    """

    found: dict[Path, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def scan_folders(folders: Sequence[str | Path], extensions: Collection[str]) -> Scan:
    """Look through folders, recursively: hidden files and folders are passed over, a file reached twice counts once.

    Args:
        folders: where to look.
        extensions: of the files to take, upper or lower case.

    Raises:
        DataError: if one of them is not a folder.
    """
    chosen = {extension.lower().lstrip(".") for extension in extensions}
    scan, seen = Scan(), set[Path]()
    for folder in (Path(folder).absolute() for folder in folders):
        if not os.path.isdir(folder):
            raise DataError(f"{folder} is not a folder. {_ADVICE}")
        for path, real, is_link in sorted(_walk(folder, scan)):
            extension = path.suffix.lower().lstrip(".")
            if extension in chosen:
                if real not in seen:
                    seen.add(real)
                    scan.found[path] = path.relative_to(folder).as_posix()
                elif is_link:
                    scan.left_out.append(LeftOut(path, "repeated link", f"leads to {real}, which is there already"))
            elif extension in _OTHER_AUDIO:
                formats = ", ".join(sorted(chosen))
                scan.left_out.append(LeftOut(path, extension, f"not one of the formats {formats}: convert it"))
            else:
                scan.others[f".{extension}" if extension else "without extension"] += 1
    return scan


def describe(path: Path, min_duration_s: float, peaks: dict[Path, float] | None = None) -> AudioMeta | LeftOut:
    """The manifest entry of a file; or why it has none.

    Files of floating-point samples are read to their end; their peaks are put into `peaks`.
    """
    try:
        info = audio_info(path)
        if info.duration_s < min_duration_s:
            return LeftOut(path, "too short", f"{info.duration_s:.3g} s, at least {min_duration_s:g} s are needed")
        peak = _peak(path)
        if peak is None:
            return LeftOut(path, "unreadable", "holds NaN or infinity")
        if peak > MAX_PEAK:
            advice = f"full scale is 1, at most {MAX_PEAK:g} is read: divide its samples by their range, such as 32768"
            return LeftOut(path, "beyond full scale", f"peak {peak:.6g}; {advice}")
        if peaks is not None:
            peaks[path] = peak
        return AudioMeta(path, info.duration_s, info.sample_rate, info.channels)
    except (DataError, OSError, soundfile.SoundFileError) as err:
        return LeftOut(path, "unreadable", str(err).removeprefix(f"{path}: "))


def _walk(folder: Path, scan: Scan) -> Iterator[tuple[Path, Path, bool]]:
    """Files below a folder without hidden ones: path, path without links, whether it is a link itself.

    Links to folders are followed, each real folder once.
    """
    visited = {folder.resolve()}
    todo = [(folder, folder.resolve())]
    while todo:
        here, real_here = todo.pop()
        try:
            with os.scandir(here) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as err:
            scan.left_out.append(LeftOut(here, "unreadable folder", _why(err)))
            continue
        for entry in entries:
            path, real = here / entry.name, real_here / entry.name
            if entry.name.startswith("."):
                scan.others["hidden"] += 1
                continue
            try:
                is_link = entry.is_symlink()
                if is_link:  # only then: resolving 100 000 names takes seconds
                    real = path.resolve(strict=True)
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except (OSError, RuntimeError) as err:  # RuntimeError: a link that leads to itself
                scan.left_out.append(LeftOut(path, "broken link", _why(err)))
                continue
            if is_folder and real not in visited:
                visited.add(real)
                todo.append((path, real))
            elif is_folder:
                scan.left_out.append(LeftOut(path, "repeated link", f"leads to {real}, which is there already"))
            elif is_file:
                yield path, real, is_link
            else:
                scan.left_out.append(LeftOut(path, "special file", "neither a file nor a folder, such as a pipe"))


def _peak(path: Path) -> float | None:
    """The largest sample of a file, None if one is not finite; of floating-point samples only: others are at most 1."""
    peak = 0.0
    with soundfile.SoundFile(os.fsencode(path)) as handle:
        if handle.subtype in ("FLOAT", "DOUBLE"):
            for block in handle.blocks(_BLOCK, dtype="float64"):
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
                if not np.isfinite(block).all():
                    return None
    return peak


def _why(err: Exception) -> str:
    return (err.strerror if isinstance(err, OSError) else None) or "the link leads to itself"
