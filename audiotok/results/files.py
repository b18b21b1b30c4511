"""JSON files that may be half-written, texts that no file can hold, and what tells that a file has changed."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

Mark = list[int] | None
"""Size in bytes and time of change in ns of a file, None where there is none; a list, as JSON gives it back."""


def read_json_file(path: Path, kind: type, problems: list[str]) -> Any:
    """Read a JSON file that should hold a list or an object.

    Args:
        path: the file.
        kind: `list` or `dict`.
        problems: told what is wrong, where the file is damaged.

    Returns:
        Its content; None where there is no file or no use in it.
    """
    raw = read_bytes(path, problems)
    return None if raw is None else parse_json_file(raw, path.name, kind, problems)


def parse_json_file(raw: bytes, name: str, kind: type, problems: list[str]) -> Any:
    """Parse what `read_bytes` has read, as `read_json_file` does."""
    try:
        content = parse_json(raw)
    except (ValueError, RecursionError) as error:
        problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
        return None
    if not isinstance(content, kind):
        problems.append(f"{name} holds a {type(content).__name__}, not a {kind.__name__}")
        return None
    return content


def read_bytes(path: Path, problems: list[str]) -> bytes | None:
    """Content of a file, None where there is none; any other trouble is a problem."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}: {error})")
        return None


def parse_json(raw: bytes) -> Any:
    """Parse JSON, three times faster than the standard library where it is strict JSON.

    NaN, Infinity and lone surrogates, which Python writes and strict JSON has not, are left to the standard library.

    Raises:
        ValueError: if it is not JSON.
        RecursionError: if it is too deep.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        content = json.loads(raw)
    if b"\\ud" in raw.lower():
        content = json.loads(encodable(json.dumps(content, ensure_ascii=False)))
    return content


def encodable(text: str) -> str:
    """Text without the lone surrogates that JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def mark(path: str) -> Mark:
    """Look at a file before it is read; one that cannot be looked at counts as missing."""
    try:
        found = os.stat(path)  # noqa: PTH116  a Path for each of fifty thousand files would double the time
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for garbage, which would go over a million new objects again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
