"""Making a token set: by one process or by several parts side by side, to go on with after a kill.

While it is made, the folder `making` holds what it is made of (`set.json`), and for each part a list of the tracks
that are done, a line each, written after the track's codes. A part appends to shards of its own only. Whoever finds
all tracks done, under a lock, writes `tokens.json` and removes `making`.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from audiotok.data.tokens import CODE, MAKING, NAME, TokenSet
from audiotok.errors import DataError, one_line
from audiotok.files import NoLocksError, UnreadableError, hold_lock, load_json, write_json

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 28  # of a shard, beyond which the next begins
MAX_BAD_SHARE = 0.1  # of the tracks that may be unreadable; one always may
_NAMED = 5
_SET = "set.json"
_IDENTITY = ("format", "codec_hash", "n_q", "manifests", "label", "window_s")
Entry = dict[str, Any]
_FAILED: Mapping[str, type] = {"track": int, "error": str}
_SHARD = re.compile(r"codes-\d+-of-\d+-(\d+)\.u16")
_DONE: Mapping[str, type] = {"track": int, "shard": str, "start": int, "frames": int, "duration": float}


class TokenWriter:
    """One part of the making of a token set; made by `writing`.

    Args:
        folder: of the set.
        header: what `tokens.json` holds beside shards and tracks.
        part: number of this part and of all, from 1 up.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], part: tuple[int, int]) -> None:
        self.folder, self.header = folder, header
        self._name = f"{part[0]}-of-{part[1]}"
        self._ledger = folder / MAKING / f"{self._name}.jsonl"
        self._shard, self._frames = self._restore()

    def done(self) -> set[int]:
        """Tracks that any part has finished. Those that could not be read are not among them: they may be mended."""
        return {entry["track"] for entry in entries(self.folder, self.header["n_q"]) if "error" not in entry}

    def add(self, track: int, codes: Tensor, *, duration: float, scale: float | None) -> None:
        """Write the codes [K, T] of a track.

        Raises:
            DataError: if the disk refuses.
        """
        data = codes.T.contiguous().cpu().numpy().astype(CODE)
        if self._frames and (self._frames + len(data)) * data.shape[1] * CODE.itemsize > SHARD_BYTES:
            self._shard, self._frames = self._shard + 1, 0
        entry: Entry = {"track": track, "shard": self._shard_name(), "start": self._frames, "frames": len(data)}
        entry |= {"duration": duration, "scale": scale}
        with _writable(self.folder):
            with (self.folder / self._shard_name()).open("ab") as file:
                file.truncate(self._frames * data.shape[1] * CODE.itemsize)  # of an interrupted write
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._note(entry)
        self._frames += len(data)

    def fail(self, track: int, reason: str) -> None:
        """Note that a track cannot be read."""
        with _writable(self.folder):
            self._note({"track": track, "error": reason})

    def _note(self, entry: Entry) -> None:
        with self._ledger.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def _shard_name(self) -> str:
        return f"codes-{self._name}-{self._shard:04}.u16"

    def _restore(self) -> tuple[int, int]:
        """Number and frames of the last shard of this part; cuts off the half line of a kill."""
        if self._ledger.exists():
            with _writable(self.folder), self._ledger.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        own = [each for each in _read_ledger(self._ledger) if "error" not in each]
        if not own:
            return 0, 0
        last = max(own, key=lambda each: (each["shard"], each["start"]))
        number = int(_SHARD.sub(r"\1", last["shard"]))
        with contextlib.suppress(OSError):
            size = (self.folder / last["shard"]).stat().st_size // (CODE.itemsize * self.header["n_q"])
            if size >= last["start"] + last["frames"]:
                return number, last["start"] + last["frames"]
        return number + 1, 0  # the file is gone, or shorter than what the list says


@contextlib.contextmanager
def writing(folder: Path, header: Mapping[str, Any], part: tuple[int, int]) -> Iterator[TokenWriter | None]:
    """Context in which a part of a token set is made; None if the set is complete.

    Raises:
        DataError: if the folder holds something else, tokens of another codec or of other tracks, or another process
            makes this part now.
    """
    make_folder(folder, header)
    if (folder / NAME).exists():
        yield None
        return
    with _locked(folder / MAKING / f"{part[0]}-of-{part[1]}.lock", patience_s=0.0) as held:
        if not held:
            raise DataError(f"{folder}: another process makes part {part[0]} of {part[1]}; wait for it, or stop it.")
        if (folder / NAME).exists():
            shutil.rmtree(folder / MAKING, ignore_errors=True)  # made again for this lock
            yield None
            return
        yield TokenWriter(folder, header, part)


def make_folder(folder: Path, header: Mapping[str, Any]) -> None:
    """Begin a token set, or find that it is begun or complete; DataError if the folder holds anything else."""
    complete = (folder / NAME).exists()
    begun = folder / NAME if complete else folder / MAKING / _SET
    if begun.exists():
        try:
            found = load_json(begun, limit=1 << 28)
        except UnreadableError as error:
            raise DataError(f"{begun} cannot be read: {error.reason}. Remove {folder}, or choose another.") from error
        differing = [key for key in _IDENTITY if found.get(key) != header[key]]
        if differing:
            raise DataError(f"{folder} {_difference(differing[0], found)}. Choose another folder, or remove it.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name != MAKING)
        if others and not (folder / MAKING).is_dir():
            raise DataError(f"{folder} is not empty and holds no token set ({others[0]}, …): choose a new folder.")
        (folder / MAKING).mkdir(exist_ok=True)
        write_json(begun, header)
    except OSError as error:
        raise DataError(f"{folder} cannot be a folder to write to: {error.strerror or error}.") from error


def join(folder: Path, header: Mapping[str, Any], tracks: Sequence[tuple[str, str | None]]) -> TokenSet | None:
    """Write `tokens.json` if all tracks are done; None if some are not, which other parts make.

    Args:
        folder: of the set.
        header: as for `writing`.
        tracks: path and label of each.

    Raises:
        DataError: if too many tracks are unreadable. Nothing is lost: mended ones are added by the same command.
    """
    with _locked(folder / MAKING / "join.lock", patience_s=600.0):
        if (folder / NAME).exists():
            return TokenSet.open(folder)
        good, bad = dict[int, Entry](), dict[int, str]()
        for entry in entries(folder, header["n_q"]):
            if "error" in entry:
                bad[entry["track"]] = entry["error"]
            else:
                good.setdefault(entry["track"], entry)
        bad = {track: reason for track, reason in sorted(bad.items()) if track not in good}
        left = len(tracks) - len(good) - len(bad)
        if left:
            logger.info("%s: %d of %d tracks are left to other parts", folder, left, len(tracks))
            return None
        _check_bad(folder, list(bad.values()), len(tracks))
        _write(folder, header, tracks, good, bad)
    shutil.rmtree(folder / MAKING, ignore_errors=True)
    return TokenSet.open(folder)


def entries(folder: Path, n_q: int) -> Iterator[Entry]:
    """Lines of all lists of done tracks whose codes are in their shards."""
    sizes = dict[str, int]()
    for ledger in sorted((folder / MAKING).glob("*.jsonl")):
        for entry in _read_ledger(ledger):
            if "error" not in entry:
                shard = entry["shard"]
                if shard not in sizes:
                    with contextlib.suppress(OSError):
                        sizes[shard] = (folder / shard).stat().st_size
                if sizes.get(shard, 0) < (entry["start"] + entry["frames"]) * n_q * CODE.itemsize:
                    continue
            yield entry


def _write(
    folder: Path,
    header: Mapping[str, Any],
    tracks: Sequence[tuple[str, str | None]],
    good: Mapping[int, Entry],
    bad: Mapping[int, str],
) -> None:
    lengths = dict[str, int]()
    for entry in good.values():
        lengths[entry["shard"]] = max(lengths.get(entry["shard"], 0), entry["start"] + entry["frames"])
    places = {name: index for index, name in enumerate(sorted(lengths))}
    rows = []
    for index, entry in sorted(good.items()):
        path, label = tracks[index]
        row = {"path": path, "duration": entry["duration"], "frames": entry["frames"], "label": label}
        row |= {"shard": places[entry["shard"]], "start": entry["start"]}
        rows.append(row if entry.get("scale") is None else row | {"scale": entry["scale"]})
    content = dict(header) | {"shards": [{"file": name, "frames": lengths[name]} for name in places], "tracks": rows}
    content["left_out"] = [{"path": tracks[index][0], "reason": reason} for index, reason in bad.items()]
    with _writable(folder):
        write_json(folder / NAME, content)


def _check_bad(folder: Path, reasons: Sequence[str], total: int) -> None:
    if not reasons:
        return
    named = " | ".join(reasons[:_NAMED]) + (f" … and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else "")
    if len(reasons) == total or len(reasons) > max(1.0, MAX_BAD_SHARE * total):
        raise DataError(
            f"{folder}: {len(reasons)} of {total} tracks cannot be read: {named}. Repair them or leave them out of the "
            "manifest; the same command goes on with what is missing."
        )
    logger.warning("%s: left out %d of %d tracks: %s", folder, len(reasons), total, one_line(named))


def _read_ledger(path: Path) -> list[Entry]:
    """Whole lines of a list of done tracks; another part may be writing at its end."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    found = list[Entry]()
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            done = isinstance(entry, dict) and _is_of(entry, _DONE) and _SHARD.fullmatch(entry["shard"])
            if done or (isinstance(entry, dict) and _is_of(entry, _FAILED)):
                found.append(entry)
    return found


def _is_of(entry: Entry, kinds: Mapping[str, Any]) -> bool:
    """Whether a line has these entries, of these kinds, and numbers from 0 up."""
    return all(isinstance(entry.get(key), kind) and entry[key] >= kind() for key, kind in kinds.items())


def _difference(key: str, found: Mapping[str, Any]) -> str:
    """What a folder holds instead, after its name."""
    value = str(found.get(key))
    return {
        "format": f"is of another version (format {value[:20]})",
        "codec_hash": f"holds tokens of another codec ({str(found.get('codec'))[:100]!r}, hash {value[:12]})",
        "n_q": f"holds tokens of {value[:20]} codebooks",
        "manifests": "holds tokens of other manifests",
        "label": f"holds tokens with labels by {value[:40]}",
        "window_s": f"holds tokens of windows of {value[:20]} s",
    }[key]


@contextlib.contextmanager
def _locked(path: Path, *, patience_s: float) -> Iterator[bool]:
    """Hold a lock, or go on without one where the filesystem has none."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(hold_lock(path, patience_s=patience_s))
        except NoLocksError:
            held = True
        except OSError as error:
            raise DataError(f"{path.parent} cannot be written to: {error.strerror or error}.") from error
        yield held


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if (folder / NAME).exists():
            raise DataError(f"{folder}: another process has completed it meanwhile; nothing is left to do.") from error
        raise DataError(
            f"{folder} cannot be written to: {error.strerror or error}. Free some space or check its permissions; the "
            "same command then goes on."
        ) from error
