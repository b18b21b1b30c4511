"""The length in a file's header, checked against the file: wav by its size, flac by its last frame, ogg by its pages.

A file is patched in memory where only its header is wrong, and refused where part of it would be passed over.
"""

import io
import mmap
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from audiotok.errors import DataError

_TAIL = 1 << 17  # bytes at the end that are searched: a page of ogg has up to 65307, a frame of flac rarely more
_PICTURES = 1 << 16  # bytes of tags in a flac that nothing is made of
_CHUNKS = 1000  # of a wav that are looked at
_CANDIDATES = 50  # places that may begin the last frame of a flac: a checksum of 8 bits leaves few
_PROBES = 4  # places in an ogg file at which pages are looked at
_OPEN_END = 0xFFFFFFFF  # size of a chunk to the end of the file, for libsndfile and those who write into a pipe
_STREAMED = 0x7FFF0000  # from here on, a size is a placeholder if the file holds less
_MISSING_S = 0.1  # a file may hold so much less than its header counts


class Patched(io.RawIOBase):
    """A file for reading, of which some bytes are others."""

    def __init__(self, path: Path, at: int, new: bytes) -> None:
        self.name, self._at, self._new = str(path), at, new
        self._file = path.open("rb")

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = 0) -> int:  # noqa: D102
        return self._file.seek(offset, whence)

    def tell(self) -> int:  # noqa: D102
        return self._file.tell()

    def readinto(self, buffer: object) -> int:
        """Fill a buffer, with the new bytes where they belong."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        start = self._file.tell()
        count = self._file.readinto(view)
        low, high = max(start, self._at), min(start + count, self._at + len(self._new))
        if low < high:
            view[low - start : high - start] = self._new[low - self._at : high - self._at]
        return count

    def close(self) -> None:  # noqa: D102
        self._file.close()
        super().close()


def patch_header(path: Path) -> tuple[int, bytes] | None:
    """As `_patch_header`, remembered while the file stays as it is."""
    status = path.stat()
    return _patch_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _patch_header(path: Path, size: int, changed_ns: int) -> tuple[int, bytes] | None:
    """What to replace in a file whose header is wrong: a position and bytes; None where the header is right.

    Reads up to 128 KiB at the end, of ogg also at some places between, the whole file only of a flac in which a second
    stream is likely.

    Raises:
        DataError: for a file that is cut off, has grown beyond what its header can count, or holds several streams.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
            return _patch_wav(path, file, size, ">" if head[:4] == b"RIFX" else "<")
        if head[:4] == b"riff":
            _check_w64(path, file, size)
        if head[:3] == b"ID3" or head[:4] == b"fLaC":
            return _patch_flac(path, file, size)
        if head[:4] == b"OggS":
            _check_ogg(path, file, size)
    return None


def last_page(path: Path) -> int:
    """The sample at which the last page of an ogg file begins; 0 if it is not known."""
    status = path.stat()
    return _last_page(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _last_page(path: Path, size: int, changed_ns: int) -> int:
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * _TAIL))  # two of the largest pages, and more
        data = file.read()
    at = data.rfind(b"OggS")
    while (at := data.rfind(b"OggS", 0, max(at, 0))) >= 0:
        ended = int.from_bytes(data[at + 6 : at + 14], "little", signed=True)
        if ended >= 0:  # -1: in the middle of a packet
            return ended
    return 0


def _patch_wav(path: Path, file: BinaryIO, size: int, order: str) -> tuple[int, bytes] | None:
    at, per_s, long = 12, 0, None
    for _ in range(_CHUNKS):
        if at + 8 > size:
            break
        file.seek(at)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        body = file.read(min(length, 24))
        if name == b"fmt " and len(body) >= 16:
            per_s = struct.unpack(f"{order}I", body[8:12])[0]
        elif name == b"ds64" and len(body) >= 16:
            long = struct.unpack(f"{order}Q", body[8:16])[0]
        elif name == b"data":
            held = size - at - 8
            if long is not None and length == _OPEN_END:
                _check_missing(path, held, long, per_s)
                at += 8 + long + long % 2
                continue
            if held >= 1 << 32 and held - min(length, held) > 1 << 24:  # less may be chunks behind the audio
                raise DataError(
                    f"{path}: {held} bytes behind a header that can count 4294967295 (it has {length}). Convert it to "
                    "flac, or to wav as RF64."
                )
            if length == 0 and held > 8 and not file.read(4).isalnum():  # not closed by what wrote it
                return at + 4, struct.pack(f"{order}I", _OPEN_END)
            if length > held and length < _STREAMED:
                _check_missing(path, held, length, per_s)
            if length >= held:
                return None
        elif name in (b"RIFF", b"RIFX", b"RF64"):  # a file behind the first
            raise _several(path)
        at += 8 + length + length % 2
    return None


def _check_w64(path: Path, file: BinaryIO, size: int) -> None:
    at, per_s = 40, 0
    for _ in range(_CHUNKS):
        if at + 24 > size:
            break
        file.seek(at)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name[:4] == b"fmt ":
            per_s = int.from_bytes(file.read(12)[8:], "little")
        elif name[:4] == b"data":
            behind = size - at - length
            _check_missing(path, size - at - 24, length - 24, per_s)
            if behind >= 8:  # fewer fill up the chunk
                raise DataError(f"{path}: {behind} bytes behind its audio would be read as audio. Convert it to flac.")
            return
        at += max(24, length + -length % 8)


def _several(path: Path) -> DataError:
    return DataError(f"{path}: several streams in one file, of which only the first would be read. Split it.")


def _check_missing(path: Path, held: int, counted: int, per_s: int) -> None:
    if counted - held > _MISSING_S * max(per_s, 1):
        raise DataError(f"{path}: cut off: holds {held} of the {counted} bytes of audio of its header.")


def _patch_flac(path: Path, file: BinaryIO, size: int) -> tuple[int, bytes] | None:
    file.seek(0)
    head = file.read(10).ljust(10, b"\0")
    at = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) if head[:3] == b"ID3" else 0
    file.seek(at)
    info = file.read(42)
    if info[:4] != b"fLaC" or len(info) < 42 or info[4] & 0x7F:
        return None
    packed = int.from_bytes(info[18:26], "big")
    counted, block = packed & (1 << 36) - 1, int.from_bytes(info[10:12], "big")
    file.seek(max(at + 42, size - _TAIL))
    found = _last_frame(file.read(), block)
    rate = packed >> 44
    if found is None:
        if counted == 0:
            raise DataError(f"{path}: of unknown length, and its last frame is damaged. Encode it again.")
        return None  # something behind the audio, or cut off: found when it is read
    if counted > found + _MISSING_S * rate:
        raise DataError(f"{path}: cut off or damaged: ends after {found} of the {counted} frames of its header.")
    # Where another count or far more bytes may come from a second stream: look for it, which reads the file.
    least, most = int.from_bytes(info[8:10], "big"), int.from_bytes(info[15:18], "big")
    if (counted and counted != found) or (most and size - at > most * (found // max(least, 1) + 2) + _PICTURES):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"fLaC", at + 4) >= 0:
                raise _several(path)
    return None if counted >= found else (at + 18, (packed - counted + found).to_bytes(8, "big"))


def _last_frame(tail: bytes, block: int) -> int | None:
    """Where the last frame of a flac ends, in samples; None if no frame's checksum holds up to the end of the file."""
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    at, tried = len(tail), 0
    while tried < _CANDIDATES and (at := tail.rfind(b"\xff", 0, at)) >= 0:
        end = _frame_end(tail[at : at + 16], block)
        if end is not None:
            tried += 1
            if _crc(tail[at:], 16, 0x8005) == 0:
                return end
    return None


def _frame_end(head: bytes, block: int) -> int | None:
    """The sample after a frame by its header of up to 16 bytes; None if it is no header."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    lead = head[4]
    length = 1 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length()
    if lead >= 0x80 and not 2 <= length <= 7:
        return None
    number = lead if length == 1 else lead & (1 << 7 - length) - 1
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at, code = 4 + length, head[2] >> 4
    if code == 0 or len(head) < at + 3:
        return None
    if code in (6, 7):
        samples = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        samples = 192 if code == 1 else 576 << code - 2 if code <= 5 else 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if len(head) <= at or _crc(head[: at + 1], 8, 0x07):
        return None
    return (number if head[1] & 1 else number * block) + samples


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


@lru_cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> bits - 1 else 0)) & (1 << bits) - 1
        table.append(value)
    return table


def _check_ogg(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a file of several streams, one after another or side by side: only the first would be read."""
    places = [0, *(size * k // _PROBES for k in range(1, _PROBES)), max(0, size - _TAIL)]
    serial, before, last = None, -1, -1
    for which, place in enumerate(places):
        file.seek(place)
        data = file.read(_TAIL)
        at = data.rfind(b"OggS") if which == len(places) - 1 else data.find(b"OggS")
        while at >= 0 and (len(data) < at + 27 or data[at + 4] != 0):
            at = data.find(b"OggS", at + 1)
        if at < 0:
            continue
        found, number = struct.unpack("<4x10xII", data[at : at + 22])
        serial = found if serial is None else serial
        if found != serial or (place + at > last and number <= before):
            raise _several(path)
        before, last = number, place + at
