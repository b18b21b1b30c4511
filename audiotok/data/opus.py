"""Stretches of opus files by the libopus of PyAV.

It takes half the time of the libopus of libsndfile, which is built without vector instructions. libsndfile stays the
reference: lengths are its, samples agree within 1e-6 of full scale, and it reads what is unusual in a file, and all
where PyAV cannot be imported.

A decoder forgets its past within 0.66 s (libsndfile's value; a difference halves every frame of 20 ms), so a stretch
is decoded from that much before.
"""

import importlib
import mmap
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATE = 48000
_MEMORY = 31680  # samples before a stretch that are decoded for nothing: 0.66 s
_CELT, _HYBRID, _SILK = (120, 240, 480, 960), (480, 960), (480, 960, 1920, 2880)  # samples of a frame


class _UnusualError(Exception):
    """Left to libsndfile."""


@dataclass(frozen=True, slots=True, eq=False)
class Opus:
    """An opus file whose pages are known.

    Args:
        pages: first byte of each page of audio that begins with a new packet.
        begins: samples decoded before each of them.
        head: the header, by which decoders are made.
        channels: 1 or 2.
        skip: samples at the start that the encoder added.
    """

    path: Path
    pages: list[int]
    begins: list[int]
    head: bytes
    channels: int
    skip: int

    def read(self, start: int, count: int) -> NDArray[np.float32] | None:
        """Samples [at most count, C] from `start` on; None if libsndfile is to read them."""
        first = start + self.skip
        from_page = max(0, bisect_right(self.begins, max(0, first - _MEMORY)) - 1)
        try:
            begin, packets = self._packets(from_page, first - _MEMORY, first + count)
            samples = _decode(self.head, packets).reshape(-1, self.channels)
        except (_UnusualError, ValueError):  # PyAV's errors are ValueErrors where they are about data
            return None
        return np.ascontiguousarray(samples[first - begin : first - begin + count])

    def _packets(self, from_page: int, after: int, until: int) -> tuple[int, list[bytes]]:
        """The packets that end behind sample `after` and begin before `until`, and where the first begins."""
        packets, part, begin = list[bytes](), b"", None
        at, position = self.pages[from_page], self.begins[from_page]
        with self.path.open("rb") as file:
            file.seek(at)
            while position < until and (head := file.read(27)):
                table = file.read(head[26]) if len(head) == 27 else b""
                body, place = file.read(sum(table)), 0
                for lacing in table:
                    part += body[place : place + lacing]
                    place += lacing
                    if lacing == 255:
                        continue
                    length = _samples(part)
                    if position + length > after and position < until:
                        begin = position if begin is None else begin
                        packets.append(part)
                    position, part = position + length, b""
                ends = _granule(head)
                if ends >= 0 and ends != position and not head[5] & 4:  # 4: the last page, which ends within a packet
                    raise _UnusualError
        if begin is None:
            raise _UnusualError
        return begin, packets


def open_opus(path: Path, rate: int) -> Opus | None:
    """The pages of an opus file, that has this rate by libsndfile; None if libsndfile is to read it."""
    if rate != _RATE or _av() is None:
        return None
    status = path.stat()
    return _walk(path, status.st_size, status.st_mtime_ns)


@cache
def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        return None


@lru_cache(maxsize=128)
def _walk(path: Path, size: int, changed_ns: int) -> Opus | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[28:47]  # the first page holds nothing else
        plain = head[:8] == b"OpusHead" and head[9] in (1, 2) and head[16:19] == b"\0\0\0"  # neither gain nor mapping
        if not plain or data[26] != 1:
            return None
        pages, begins, at, position, headers = list[int](), list[int](), 47, 0, True
        while at + 27 <= size and data[at : at + 4] == b"OggS":
            page = data[at : at + 27]
            table = data[at + 27 : at + 27 + page[26]]
            if not headers and not page[5] & 1:  # 1: begins in the middle of a packet
                pages.append(at)
                begins.append(position)
            if headers:  # the tags, on as many pages as they take
                headers = not table or table[-1] == 255
            elif (ends := _granule(page)) >= 0:
                position = ends
            at += 27 + len(table) + sum(table)
    if not pages or begins[0] != 0 or begins != sorted(begins):
        return None
    # Without the samples to skip, which the decoder would drop wherever it begins.
    skip = int.from_bytes(head[10:12], "little")
    opus = Opus(path, pages, begins, head[:10] + b"\0\0" + head[12:], head[9], skip)
    try:
        opus._packets(0, 0, 1)
    except _UnusualError:
        return None
    return opus


def _granule(page: bytes) -> int:
    """Samples decoded at the end of a page; -1 where no packet ends in it."""
    return int.from_bytes(page[6:14], "little", signed=True)


def _samples(packet: bytes) -> int:
    """Samples of a packet at 48 kHz (RFC 6716, section 3.1)."""
    if not packet:
        raise _UnusualError
    config, code = packet[0] >> 3, packet[0] & 3
    if code == 3 and len(packet) < 2:
        raise _UnusualError
    frames = (1, 2, 2)[code] if code < 3 else packet[1] & 63
    length = _SILK[config & 3] if config < 12 else _HYBRID[config & 1] if config < 16 else _CELT[config & 3]
    return frames * length


def _decode(head: bytes, packets: list[bytes]) -> NDArray[np.float32]:
    av = _av()
    decoder = av.CodecContext.create("libopus", "r")
    decoder.extradata, decoder.sample_rate = head, _RATE
    decoder.options = {"request_sample_fmt": "flt"}  # 16-bit integers otherwise
    frames = [frame.to_ndarray() for packet in packets for frame in decoder.decode(av.Packet(packet))]
    if not frames or frames[0].dtype != np.float32:
        raise _UnusualError
    return np.concatenate(frames, axis=1)
