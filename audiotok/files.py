"""Small files that several processes share: read with bounds, written whole or not at all, and locked with flock.

What is read may be of anybody: files are regular and of bounded size, JSON is of bounded depth, integers of bounded
length.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from audiotok.errors import AudiotokError

MAX_BYTES = 2**26  # of a file that is read whole; the history of 1000 epochs with 200 metrics has 7 MB
MAX_DEPTH = 100  # of JSON and YAML; a configuration has 6
MAX_DIGITS = 300  # of an integer; a float holds 308
_MAX_NAME = 255  # bytes of a file's name
_MAX_CONTAINERS = 2**20  # of a JSON file; the history of 100 000 epochs has 400 000

_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


def shown(path: Path) -> str:
    """A path as a person would write it in the current folder."""
    real = path.resolve()
    return str(real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else real)


class LongInteger(str):
    """The digits of an integer in JSON that has more than MAX_DIGITS of them; `type` tells it from a text."""

    __slots__ = ()


class UnreadableError(AudiotokError, ValueError):
    """A file that is there and cannot be read.

    Attributes:
        reason: why, in a few words; the message has the path, too.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}.")
        self.reason = reason


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Read a file whole; returns at once whatever it is: a pipe without a writer, an endless device, a loop of links.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it is no regular file, has more than `limit` bytes or cannot be read.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UnreadableError(path, "a pipe or a device, not a file")
            size = about.st_size
            content = file.read(size + 1) if size <= limit else b""
            if len(content) > size:  # it grows, or is of a filesystem that does not know sizes
                content += file.read(limit)
                size = len(content)
    except (FileNotFoundError, UnreadableError):
        raise
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        raise UnreadableError(path, getattr(error, "strerror", None) or str(error)) from error
    if size > limit:
        raise UnreadableError(path, f"{size / 2**20:,.4g} MiB, more than {limit / 2**20:.3g}")
    return content


def is_file_in(folder: Path, path: Path) -> bool:
    """Whether a path is that of a regular file which lies within a folder, links followed."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a loop of links
        return False


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Read a text file; see `read_bytes`. What is not UTF-8 is an `UnreadableError`, too."""
    try:
        return read_bytes(path, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(path, f"byte {error.start} is not UTF-8") from error


def parse_json(text: bytes | str) -> Any:
    """Parse JSON, NaN and Infinity included; an integer of more than MAX_DIGITS digits is a `LongInteger`.

    Raises:
        ValueError: if it is not JSON, or nested more than MAX_DEPTH levels deep.
    """
    try:
        content = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    check_depth(content)
    return content


def parse_json_fast(text: bytes) -> Any:
    """As `parse_json`, three times faster, but that integers beyond 64 bits may come as floats."""
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN, Infinity and lone surrogates, which only the slower module reads
        return parse_json(text)
    check_depth(content)
    return content


def check_depth(content: Any) -> None:
    """Check that lists and dicts lie no more than MAX_DEPTH levels deep, so that what walks through them may recurse.

    Raises:
        ValueError: if they do.
    """
    level = [content]
    for _ in range(MAX_DEPTH):
        lists = [each for each in level if isinstance(each, list)]
        dicts = [each for each in level if isinstance(each, dict)]
        if not lists and not dicts:
            return
        kinds = set(map(type, chain(chain.from_iterable(lists), chain.from_iterable(map(dict.values, dicts)))))
        if not kinds & {list, dict}:
            return  # most values are numbers at the bottom of a history, which are not gone through one by one
        inner = chain(chain.from_iterable(lists), chain.from_iterable(map(dict.values, dicts)))
        level = [each for each in inner if isinstance(each, list | dict)]
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def check_yaml(text: str, max_depth: int = MAX_DEPTH) -> None:
    """Check that YAML has no aliases, of which a few lines can stand for more values than there is memory.

    Raises:
        ValueError: if it has, or is nested more than `max_depth` levels deep.
        yaml.YAMLError: if it is not YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases")
        if depth > max_depth:
            raise ValueError(f"nested more than {max_depth} levels deep")


def open_at_once(path: str, flags: int) -> int:
    """Opener for `open`: of a pipe without a writer it opens the end, and does not wait for one."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _parse_int(text: str) -> int | LongInteger:
    return int(text) if len(text) <= MAX_DIGITS else LongInteger(text)


def load_json(path: Path, kind: type = dict, *, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file that holds a value of this kind; see `read_bytes` and `parse_json`.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it is there and cannot be read.
    """
    return content_of(path, read_bytes(path, limit=limit), kind)


def content_of(path: Path, text: bytes, kind: type, parse: Callable[[bytes], Any] = parse_json) -> Any:
    """What a JSON file of this text holds; see `load_json`."""
    try:
        if len(text) > _MAX_CONTAINERS < text.count(b"[") + text.count(b"{"):  # each has 200 bytes once it is parsed
            raise ValueError(f"more than {_MAX_CONTAINERS} lists and objects")
        content = parse(text)
    except ValueError as error:
        found = str(error) if text.strip() else "empty"
        raise UnreadableError(path, " ".join(found.split())) from error
    if not isinstance(content, kind):
        raise UnreadableError(path, f"a {type(content).__name__}, not a {kind.__name__}")
    return content


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, unreadable, half-written or holds something else."""
    try:
        content: dict[str, Any] = load_json(path)
    except (OSError, UnreadableError):
        return None
    return content


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write a JSON object in one step; see `replacing`. An OSError leaves the old file."""
    write_text(path, json.dumps(content, indent=1), sync=sync)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file in one step; see `replacing`. An OSError leaves the old file."""
    with replacing(path, sync=sync) as draft:
        draft.write_text(text, encoding="utf-8")


def module_names(folder: Path) -> list[str]:
    """Dotted names of the Python files of a package, such as grids, sorted; `_name.py` is left out."""
    files = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    return [".".join(path.parts) for path in files if not path.name.startswith("_")]


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Context in which to write a draft of a file; at its end the draft takes the place of the file in one step.

    Readers see the old file or the new one, however many processes write it. An error in the block leaves the old
    file and no draft.

    Args:
        path: the file; its folder must exist.
        sync: make it survive a power cut.
    """
    # The host is part of the name: two nodes of a cluster can have equal process ids and one folder.
    end = f".{socket.gethostname()}.{os.getpid()}.tmp"
    draft = path.with_name(os.fsdecode(os.fsencode(f".{path.name}")[: _MAX_NAME - len(os.fsencode(end))]) + end)
    try:
        yield draft
        if sync:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # on a disk that cannot be written the first error is the one to see
            draft.unlink()
        raise


def write_symlink(link: Path, target: Path) -> None:
    """Make a symlink, or let one that is there point elsewhere; there is no instant without it.

    Raises:
        OSError: if the disk refuses.
    """
    with replacing(link) as draft:
        draft.unlink(missing_ok=True)  # of a process of this id that was killed
        draft.symlink_to(target)


class NoLocksError(OSError):
    """The filesystem has no locks, as some mounts of Lustre."""


@contextlib.contextmanager
def hold_lock(path: Path, *, patience_s: float = 600.0, poll_s: float = 0.1) -> Iterator[bool]:
    """Hold the exclusive flock on a file for the length of the block; the kernel releases it however its holder ends.

    Two openings of one file exclude each other within a process, too. A holder may remove the file.

    Args:
        path: the file; made with its folder if it is missing, for those to lock whom the umask lets read it.
        patience_s: how long to wait for another holder.
        poll_s: pause between two attempts.

    Yields:
        True; False if another holder kept it for longer than the patience.

    Raises:
        NoLocksError: if the filesystem has no locks.
        OSError: if the file can be neither made nor opened.
    """
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = _open(path)
        try:
            held = _flock(descriptor)
            if held and not _is_at(descriptor, path):
                continue  # its last holder removed the file: a lock on it excludes nothing
            if held or time.monotonic() >= deadline:
                yield held
                return
        finally:
            os.close(descriptor)
        time.sleep(poll_s)


def is_locked(path: Path) -> bool:
    """Whether a process holds the exclusive flock on `path`; a process loses it however it ends."""
    try:
        descriptor = open_at_once(str(path), os.O_RDONLY)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)  # less what the umask takes away
    except PermissionError:
        if not path.exists():
            raise  # the folder is another user's
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # another user's; but on NFS, a lock needs no more


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocksError(*error.args) from error
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
