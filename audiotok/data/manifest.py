"""Manifests: one JSON object per line for each track of a split, gzipped when the name ends in .gz.

The fields are those of AudioCraft's manifests plus `channels`, so that a manifest written by either is read
here. Paths are written relative to the manifest's own folder and read against it: a data folder can be
moved as a whole. Where a cluster keeps the audio of a preset elsewhere, the `dataset_paths` of its profile hold the
place, and only this module follows them.
"""

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audiotok.cluster import dataset_paths, map_path
from audiotok.errors import DataError
from audiotok.files import replacing

HINT = "Write it with `audiotok data prepare FOLDER --output ...` (the demo's: `audiotok data demo`)."
FOLDER_NAMES = ("data.jsonl.gz", "data.jsonl")  # of these, a folder's manifest is the first that it holds


@dataclass(frozen=True, slots=True)
class AudioMeta:
    """One track of a manifest.

    Args:
        duration: in seconds.
        sample_rate: in Hz.
        channels: None where the manifest has none (AudioCraft's do not).
        weight: how often the track is drawn, in addition to its duration; None counts as 1.
    """

    path: Path
    duration: float
    sample_rate: int
    channels: int | None = None
    weight: float | None = None


def write_manifest(path: str | Path, metas: Iterable[AudioMeta]) -> Path:
    """Write a manifest whole or not at all; the same tracks always give the same bytes.

    Args:
        path: ends in .jsonl or .jsonl.gz; missing folders are made.
        metas: the tracks, in the order in which they shall stand.
    """
    path = Path(path)
    lines = [json.dumps({**asdict(meta), "path": _relative_to(path.parent, meta.path)}) + "\n" for meta in metas]
    data = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        # mtime=0: a gzip header otherwise holds the time of writing.
        draft.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def read_manifest(path: str | Path) -> list[AudioMeta]:
    """Read the tracks of a manifest, with absolute paths.

    Args:
        path: a .jsonl or .jsonl.gz file, or a folder that holds data.jsonl.gz or data.jsonl. It and absolute paths in
            it are looked up in the `dataset_paths` of this cluster's profile (see `audiotok.cluster`).

    Raises:
        ConfigError: if that profile cannot be read.
        DataError: if the manifest is missing, empty, not gzip despite its name, or has a line (named) that
            is not a JSON object with a path, a duration and a sample rate.
    """
    paths = dataset_paths(os.environ)
    path = _find_manifest(map_path(Path(path), paths), Path(path))
    folder = path.parent.resolve()
    lines = _read_text(path).splitlines()
    metas = [_parse(line, path, number, folder, paths) for number, line in enumerate(lines, 1) if line.strip()]
    if not metas:
        raise DataError(f"manifest {path} is empty. {HINT}")
    return metas


def _relative_to(folder: Path, audio: Path) -> str:
    """Path of an audio file as seen from a folder, with forward slashes.

    Below the folder the path is kept as given, links included. Elsewhere links are resolved first, since
    `..` out of a linked folder leads to the parent of its target.
    """
    here, there = (Path(os.path.normpath(p.absolute())) for p in (folder, audio))
    if there.is_relative_to(here):
        return there.relative_to(here).as_posix()
    return Path(os.path.relpath(there.parent.resolve() / there.name, here.resolve())).as_posix()


def _find_manifest(path: Path, requested: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
        if not found:
            others = sorted(p.name for p in path.glob("*.jsonl*"))
            raise DataError(
                f"{path} is a folder without {' or '.join(FOLDER_NAMES)}"
                + (f"; name one of its manifests: {', '.join(others)}." if others else f". {HINT}")
            )
        return found[0]
    if not path.is_file():
        mapped = "" if path == requested else f" (dataset_paths of the cluster profile lead there from {requested})"
        raise DataError(f"manifest {path} does not exist{mapped}. {HINT}")
    return path


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise DataError(f"manifest {path} is not a complete gzip file ({err}). {HINT}") from err
    except UnicodeDecodeError as err:
        named = "" if path.suffix == ".gz" else "; a gzipped one must end in .gz"
        raise DataError(f"manifest {path} is not UTF-8 text ({err.reason}{named}). {HINT}") from err


def _parse(line: str, path: Path, number: int, folder: Path, paths: Mapping[str, str]) -> AudioMeta:
    where = f"manifest {path}, line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not JSON ({err.msg}). {HINT}") from err
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(entry).__name__}. {HINT}")
    missing = [key for key in ("path", "duration", "sample_rate") if key not in entry]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}; found {', '.join(sorted(entry))}. {HINT}")
    if not isinstance(entry["path"], str) or not entry["path"]:
        raise DataError(f"{where}: path={entry['path']!r}; expected the name of an audio file. {HINT}")
    channels = _number(entry, "channels", where, minimum=1)
    audio = Path(entry["path"])
    if paths and audio.is_absolute():  # a relative one follows its manifest
        audio = map_path(audio, paths)
    return AudioMeta(
        path=Path(os.path.normpath(folder / audio)),
        duration=_required(entry, "duration", where, minimum=0),
        sample_rate=int(_required(entry, "sample_rate", where, minimum=1)),
        channels=None if channels is None else int(channels),
        weight=_number(entry, "weight", where, minimum=0),
    )


def _required(entry: dict[str, Any], key: str, where: str, *, minimum: float) -> float:
    value = _number(entry, key, where, minimum=minimum)
    if value is None:
        raise DataError(f"{where}: {key} is null; expected a number of at least {minimum}. {HINT}")
    return value


def _number(entry: dict[str, Any], key: str, where: str, *, minimum: float) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)  # to Python, True is a number
    if not number or not math.isfinite(value) or value < minimum:
        raise DataError(f"{where}: {key}={value!r}; expected a number of at least {minimum}. {HINT}")
    return float(value)
