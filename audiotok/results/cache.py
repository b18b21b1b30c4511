"""Cache of what the JSON files said: one file per shard of signatures, under `ROOT/.cache/audiotok/`.

A file is: a prefix (magic word, version, checksum, sizes), the entries as JSON, the small arrays, then the values of
each stage [M, R] as float64. It is written aside and renamed, so a reader sees the old or the new one. It is read, not
mapped: on a network file system a mapped file that somebody replaces would kill the process. Whatever is not whole, not
ours or not of this version counts as absent and is written anew. Nothing in it is ever executed.
"""

import contextlib
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiotok.results.block import Block, Floats, StageRows, StaleBlockError
from audiotok.results.files import parse_json

VERSION = 1
_MAGIC = b"audiotok"
_PREFIX = struct.Struct("<8sIIQQQ")  # magic, version, checksum of entries and arrays, sizes of entries, arrays, file
_ABANDONED_S = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnDisk:
    """Values [M, R] in a file of the cache.

    Attributes:
        path: the file.
        prefix: its first bytes: they tell whether it is still the same.
        offset: where the matrix begins.
        length: R.
        checksums: one for each of the M rows.
    """

    path: Path
    prefix: bytes
    offset: int
    length: int
    checksums: tuple[int, ...]

    def rows(self, wanted: Sequence[int]) -> Floats:
        """Rows of the matrix."""
        values = np.empty((len(wanted), self.length), "<f8")
        try:
            with self.path.open("rb", buffering=0) as file:
                if file.read(_PREFIX.size) != self.prefix:
                    raise StaleBlockError(f"{self.path} was replaced")
                for row, index in zip(values, wanted, strict=True):
                    _read_into(file.fileno(), row, self.offset + index * self.length * 8)
                    if zlib.crc32(row.data) != self.checksums[index]:
                        self.path.unlink(missing_ok=True)  # or it would be taken for good again
                        raise StaleBlockError(f"{self.path} is damaged")
        except OSError as error:
            raise StaleBlockError(str(error)) from error
        return values


def read_block(path: Path) -> Block | None:
    """Read a file of the cache but its values, which stay on disk; None if there is none or it is not fit for use."""
    try:
        with path.open("rb", buffering=0) as file:
            prefix = file.read(_PREFIX.size)
            magic, version, checksum, entries_size, arrays_size, size = _PREFIX.unpack(prefix)
            if (magic, version, size) != (_MAGIC, VERSION, os.fstat(file.fileno()).st_size):
                return None
            body = np.empty(entries_size + arrays_size, np.uint8)
            _read_into(file.fileno(), body, _PREFIX.size)
        if zlib.crc32(body.data) != checksum:
            return None
        return _decode(path, prefix, parse_json(body[:entries_size].tobytes()), body[entries_size:])
    except (OSError, ValueError, LookupError, TypeError, struct.error, MemoryError, StaleBlockError):
        return None


def write_block(path: Path, block: Block) -> Block | None:
    """Write a block to the cache, in one stroke.

    Returns:
        The block with its values on disk; None where it cannot be written, which is no error.
    """
    body, matrices = _encode(block)
    checksum = zlib.crc32(b"".join(body))
    size = _PREFIX.size + sum(map(len, body)) + sum(matrix.nbytes for matrix in matrices)
    prefix = _PREFIX.pack(_MAGIC, VERSION, checksum, len(body[0]), sum(map(len, body[1:])), size)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(prefix)
            file.writelines([*body, *(matrix.data for matrix in matrices)])
        draft.replace(path)
        _tidy(path)
    except OSError as error:
        logger.debug("no cache: %s", error)
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return None
    return read_block(path)


def _encode(block: Block) -> tuple[list[bytes], list[Floats]]:
    """Entries as JSON and the small arrays, then the values of each stage."""
    arrays: list[NDArray[Any]] = [block.last, block.counts, block.lowest, block.highest]
    matrices, stages = [], []
    for stage, rows in block.stages.items():
        matrix = np.ascontiguousarray(rows.values.rows(range(len(rows.names))), "<f8")
        matrices.append(matrix)
        stages.append({"stage": stage, "names": rows.names, "rows": len(rows.epochs), "checksums": _checksums(matrix)})
        arrays += [rows.lengths, rows.epochs]
    head = {"entries": block.entries, "columns": block.columns, "stages": stages}
    return [json.dumps(head).encode(), *(_little(array) for array in arrays)], matrices


def _decode(path: Path, prefix: bytes, head: Any, arrays: NDArray[np.uint8]) -> Block:
    entries, columns = head["entries"], tuple(head["columns"])
    shape = (len(entries), len(columns))
    reader = _ArrayReader(arrays)
    last, counts, lowest, highest = (reader.next(shape, dtype) for dtype in ("<f8", "<i4", "<i4", "<i4"))
    offset = len(prefix) + _PREFIX.unpack(prefix)[3] + len(arrays)
    stages = {}
    for item in head["stages"]:
        names = tuple(item["names"])
        lengths, epochs = reader.next((len(entries),), "<i4"), reader.next((item["rows"],), "<i4")
        values = OnDisk(path, prefix, offset, item["rows"], tuple(item["checksums"]))
        stages[item["stage"]] = StageRows(names, lengths, epochs, values)
        offset += len(names) * item["rows"] * 8
    return Block(entries, columns, last, counts, lowest, highest, stages)


class _ArrayReader:
    """Takes arrays one after the other from a run of bytes."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self._raw, self._start = raw, 0

    def next(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        stop = self._start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        piece, self._start = self._raw[self._start : stop], stop
        return piece.copy().view(dtype).reshape(shape)  # copied: a view of f8 has to lie on a multiple of 8


def _little(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _checksums(matrix: Floats) -> list[int]:
    return [zlib.crc32(row.data) for row in matrix]


def _read_into(descriptor: int, array: NDArray[Any], offset: int) -> None:
    """Fill a contiguous array from a place in a file.

    Raises:
        StaleBlockError: if the file ends before.
    """
    view = array.data.cast("B") if array.size else memoryview(b"")
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise StaleBlockError("the file ends too early")
        view, offset = view[count:], offset + count


def _tidy(path: Path) -> None:
    """Drop what writers that were killed left behind."""
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                draft.unlink()
