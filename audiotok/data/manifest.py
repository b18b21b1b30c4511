r"""Manifests: one JSON object per line for each track of a split, gzipped when the name ends in .gz.

The fields are those of AudioCraft's manifests plus `channels`, so that a manifest written by either is read
here. Paths are written relative to the manifest's own folder and read against it: a data folder can be
moved as a whole. Where a cluster keeps the audio of a preset elsewhere, the `dataset_paths` of its profile hold the
place, and only this module follows them.

A file's name is bytes, mostly UTF-8. A byte 0xNN that is not is written as the JSON escape `\udcNN`, as Python itself
represents it (PEP 383): any reader that opens the path in Python, AudioCraft's too, opens that very file.
"""

import gzip
import itertools
import json
import os
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import IO, Any

from audiotok.cluster import dataset_paths, map_path
from audiotok.errors import DataError
from audiotok.files import replacing
from audiotok.text import shortened

HINT = "Write it with `audiotok data prepare FOLDER --output ...` (the demo's: `audiotok data demo`)."
FOLDER_NAMES = ("data.jsonl.gz", "data.jsonl")  # of these, a folder's manifest is the first that it holds
LONGEST_LINE = 1 << 20  # bytes; the longest path of Linux takes 24 KiB, all of it escaped
_BLOCK = 1 << 20  # bytes of text unpacked at once
_UNJUDGED = 1 << 20  # bytes of text before its compression means anything
# Times. Tracks that differ in a number only: 37, in folders of 400 letters 117; one repeated: 227.
_MOST_COMPRESSED = 150
_MOST = {  # of each number; a header that promises more is damaged
    "duration": 1e8,  # three years
    "sample_rate": 1e8,
    "channels": 1024,  # libsndfile has no more
    "weight": 1e15,
}
_WHOLE = ("sample_rate", "channels")


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
    real = cache(lambda folder: str(folder.resolve()))  # every track of an album lies in one folder
    here = Path(real(path.parent)) if ".." in path.parts else path.parent.absolute()
    names = [field.name for field in fields(AudioMeta)]
    entries = ({name: getattr(meta, name) for name in names} for meta in metas)
    lines = [json.dumps(entry | {"path": _relative_to(here, entry["path"], real)}) + "\n" for entry in entries]
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
    paths, path = dataset_paths(os.environ), manifest_file(path)
    folder = str(path.parent.resolve())
    metas = [_parse(line, path, number, folder, paths) for number, line in _lines(path)]
    if not metas:
        raise DataError(f"manifest {path} is empty. {HINT}")
    return metas


def manifest_file(path: str | Path) -> Path:
    """The file that `read_manifest` reads; errors as there."""
    return _find_manifest(map_path(Path(path), dataset_paths(os.environ)), Path(path))


def read_labels(path: str | Path, name: str) -> dict[Path, str]:
    """A field of each line of a manifest, by the track's path; lines without it, or with null or "", are left out.

    Raises:
        ConfigError, DataError: as `read_manifest`, and if the field holds a list, an object, a fraction, or
            what is not Unicode.
    """
    paths, path = dataset_paths(os.environ), manifest_file(path)
    folder = str(path.parent.resolve())
    labels = dict[Path, str]()
    for number, line in _lines(path):
        track, value = _parse(line, path, number, folder, paths).path, json.loads(line).get(name)
        if isinstance(value, list | dict | float):
            found = reprlib.repr(value)
            raise DataError(f"manifest {path}, line {number}: {name}={found}; a label is a text or a whole number.")
        if value not in (None, ""):
            labels[track] = str(value)
            if any("\ud800" <= char <= "\udfff" for char in labels[track]):  # JSON may hold half a character
                raise DataError(f"manifest {path}, line {number}: {name}={value!r} is not Unicode text.")
    return labels


def _relative_to(here: Path, audio: Path, real: Callable[[Path], str]) -> str:
    """Path of an audio file as seen from an absolute folder.

    Below the folder the path is kept as given, links included. Elsewhere, and with `..` in it, links are resolved
    first, since `..` out of a linked folder leads to the parent of its target.
    """
    there = str(Path(real(audio.parent), audio.name) if ".." in audio.parts else audio.absolute())
    below = there.removeprefix(f"{here}/")
    return below if below != there else os.path.relpath(f"{real(audio.parent)}/{audio.name}", real(here))


def _find_manifest(path: Path, requested: Path) -> Path:
    if os.path.isdir(path):
        found = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
        if not found:
            others = sorted(p.name for p in path.glob("*.jsonl*"))
            raise DataError(
                f"{path} is a folder without {' or '.join(FOLDER_NAMES)}"
                + (f"; name one of its manifests: {', '.join(others)}." if others else f". {HINT}")
            )
        return found[0]
    if not os.path.isfile(path):
        mapped = "" if path == requested else f" (dataset_paths of the cluster profile lead there from {requested})"
        there = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise DataError(f"manifest {path} {there}{mapped}. {HINT}")
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a manifest that are not blank, without their ends, and their numbers, in memory that is bounded."""
    try:
        with path.open("rb") as file:
            source: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            first, rest = 1, b""
            for text in itertools.count(_BLOCK, _BLOCK):
                block = source.read(_BLOCK)
                # Only \n ends a line: the other ends that Python knows, such as U+2028, may stand in a name.
                *lines, rest = (rest + block).split(b"\n")
                if not block:  # the last line need not end
                    lines = [rest]
                for number, line in enumerate(lines, first):
                    if line and (line := line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")):  # a byte order mark
                        yield number, line
                first += len(lines)
                if not block:
                    return
                if len(rest) > LONGEST_LINE:
                    raise DataError(f"manifest {path}, line {first}: over {LONGEST_LINE} bytes long. {HINT}")
                if text > _UNJUDGED and text > _MOST_COMPRESSED * file.tell():
                    raise DataError(
                        f"manifest {path} unpacks from {file.tell()} bytes to {text} and more: it holds no tracks, or "
                        f"one over and over. {HINT}"
                    )
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise DataError(f"manifest {path} is not a complete gzip file ({err}). {HINT}") from err
    except OSError as err:
        raise DataError(
            f"manifest {path} cannot be read ({err.strerror}). Check its permissions and the disk."
        ) from err


def _parse(line: bytes, path: Path, number: int, folder: str, paths: Mapping[str, str]) -> AudioMeta:
    where = f"manifest {path}, line {number}"
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as err:
        named = "" if path.suffix == ".gz" else "; a gzipped manifest must end in .gz"
        raise DataError(f"{where}: not UTF-8 text ({err.reason}{named}). {HINT}") from err
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not JSON ({err.msg}). {HINT}") from err
    except (ValueError, RecursionError) as err:  # integers of thousands of digits; arrays in arrays
        raise DataError(f"{where}: not JSON of a manifest (numbers too long, or too deep). {HINT}") from err
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(entry).__name__}. {HINT}")
    missing = [key for key in ("path", "duration", "sample_rate") if key not in entry]
    if missing:
        raise DataError(
            f"{where}: missing {', '.join(missing)}; found {shortened(', '.join(sorted(entry)), 200)}. {HINT}"
        )
    channels = _number(entry, "channels", where, minimum=1)
    audio = _name(entry["path"], where)
    if paths and audio.startswith("/"):  # a relative one follows its manifest
        audio = str(map_path(Path(audio), paths))
    return AudioMeta(
        path=_from(folder, audio),
        duration=_required(entry, "duration", where, minimum=0),
        sample_rate=int(_required(entry, "sample_rate", where, minimum=1)),
        channels=None if channels is None else int(channels),
        weight=_number(entry, "weight", where, minimum=0),
    )


def _from(folder: str, name: str) -> Path:
    """Path of an audio file named as seen from a folder without links."""
    while name.startswith("../"):  # elsewhere in a name `..` may lead out of a link, and stays
        folder, name = folder.rpartition("/")[0] or "/", name[3:].lstrip("/")
    return Path(folder, name)


def _name(value: Any, where: str) -> str:
    try:
        if isinstance(value, str) and value and b"\0" not in os.fsencode(value):
            return value
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        pass
    raise DataError(f"{where}: path={reprlib.repr(value)}; expected the name of an audio file. {HINT}")


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
    # Bounds first: they can be compared with integers that are too large for a float, and are false for NaN.
    if not number or not minimum <= value <= _MOST[key] or (key in _WHOLE and value != int(value)):
        whole = ", without a fraction" if key in _WHOLE else ""
        allowed = f"at least {minimum} and at most {_MOST[key]:.0f}{whole}"
        raise DataError(f"{where}: {key}={reprlib.repr(value)}; expected a number of {allowed}. {HINT}")
    return float(value)
