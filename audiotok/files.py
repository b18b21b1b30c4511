"""Small files that several processes share: read as they are, written whole or not at all, and locked with flock."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


def shown(path: Path) -> str:
    """A path as a person would write it in the current folder."""
    real = path.resolve()
    return str(real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else real)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, unreadable, half-written or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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
        path: the file; made with its folder if it is missing, for every user to lock.
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
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)  # another user's; a lock needs no more
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)  # whatever the umask: the next user must be able to open it
    return descriptor


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
