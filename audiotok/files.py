"""Small files that several processes share: read as they are, written whole or not at all."""

import fcntl
import json
import os
import socket
from collections.abc import Mapping
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
    """Write a JSON object, see `write_text`.

    Raises:
        OSError: if the disk refuses; the old file is then intact.
    """
    write_text(path, json.dumps(content, indent=1), sync=sync)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_bytes(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file so that a reader sees the old or the new one, whoever else writes it too.

    Args:
        path: the file; its folder must exist.
        content: its content.
        sync: make it survive a power cut.

    Raises:
        OSError: if the disk refuses; the old file is then intact.
    """
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the exclusive flock on `path`; it loses it however it ends."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
