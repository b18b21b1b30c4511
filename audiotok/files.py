"""Small files that several processes share: read as they are, written whole or not at all."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
        draft.unlink(missing_ok=True)
        raise


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


def write_symlink(link: Path, target: Path) -> None:
    """Make a symlink, or let one that is there point elsewhere; there is no instant without it.

    Raises:
        OSError: if the disk refuses.
    """
    with replacing(link) as draft:
        draft.unlink(missing_ok=True)  # of a process of this id that was killed
        draft.symlink_to(target)
