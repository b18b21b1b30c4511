"""MP3 files by their frames: how many samples they hold, and any stretch of them as in a decode from the start.

libsndfile believes the count in the first frame (Xing, Info) or guesses from its bit rate, and seeks by reading all
before. A frame also takes bits from frames before it (511 bytes back, to which some frames add next to nothing) and
overlaps with the last, so decoding must begin earlier than the stretch. Here the frame headers of a file are walked,
once in a process; a stretch is then a short stream of its own for libsndfile: frames from far enough before it, after
one that counts them.
"""

import io
import mmap
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from audiotok.errors import DataError

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz by version: MPEG-1, 2, 2.5
_KBPS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG-2 and 2.5
_DECODER_DELAY = 529  # samples that a decoder adds; cut off where a first frame gives the encoder's
_RESERVOIR = 511  # bytes before a frame from which it may take
_PHASES = 8  # frames after which the decoder's filter bank stands as before: so even rounding is that of a whole decode
_IN_A_ROW = 3  # frames that follow each other: anything less after a gap may be chance
_MISSING_S = 0.1  # a file may hold so much less than its first frame counts


def _kinds() -> dict[bytes, tuple[int, int]]:
    """Length in bytes and sample rate of a frame of layer III by its first three bytes."""
    kinds = {}
    for version, rates in _RATES.items():
        bits, scale = (_KBPS_1, 144) if version == 3 else (_KBPS_2, 72)
        for unprotected in (0, 1):
            second = 0xE0 | version << 3 | 1 << 1 | unprotected
            for flags in range(256):
                index, rate_index, padding = flags >> 4, flags >> 2 & 3, flags >> 1 & 1
                if 1 <= index <= len(bits) and rate_index < 3:
                    rate = rates[rate_index]
                    kinds[bytes((0xFF, second, flags))] = scale * bits[index - 1] * 1000 // rate + padding, rate
    return kinds


_KINDS = _kinds()
_BEGINNING = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")  # of a frame of layer III


@dataclass(frozen=True, slots=True, eq=False)
class Mp3:
    """An MP3 file whose frames are known.

    Args:
        starts: first byte of each frame of audio.
        lengths: bytes of each.
        head: the first frame's header, 4 bytes.
        rate: in Hz.
        channels: 1 or 2.
        skip: samples at the start that encoder and decoder added.
        frames: samples per channel without them, and without those at the end.
    """

    path: Path
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    head: bytes
    rate: int
    channels: int
    skip: int
    frames: int

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples [at most count, C] from `start` on: fewer only if the file has become shorter."""
        count = max(0, min(count, self.frames - start))
        per_frame = _per_frame(self.head)
        first, last = (start + self.skip) // per_frame, -(-(start + self.skip + count) // per_frame)
        begin = self._begin(first)
        with self.path.open("rb") as file:
            file.seek(origin := int(self.starts[begin]))
            data = file.read(int(self.starts[last - 1] + self.lengths[last - 1]) - origin)
        body = []
        for k in range(begin, last):
            at = int(self.starts[k]) - origin
            frame = data[at : at + int(self.lengths[k])]
            if len(frame) < self.lengths[k]:  # the file has become shorter
                break
            # Frames that only lend bits are made silent: decoded without all of theirs, they are noise and complaints.
            body.append(_silenced(frame) if k < first - 2 else frame)
        # The first counts the others, the rest are silent: libsndfile cuts off the first _DECODER_DELAY samples.
        silent = _counting_frame(self.head, _PHASES + last - begin)
        with soundfile.SoundFile(io.BytesIO(silent * (1 + _PHASES) + b"".join(body))) as handle:
            handle.seek(0)
            samples = handle.read(dtype="float32", always_2d=True)
        lead = start + self.skip + (_PHASES - begin) * per_frame - _DECODER_DELAY
        return np.ascontiguousarray(samples[lead : lead + count])

    def _begin(self, first: int) -> int:
        """The frame to begin with: from two before `first` on, all bits that frames may take are there."""
        begin, missing = first - 2, _RESERVOIR
        while begin > 0 and missing > 0:
            begin -= 1
            missing -= max(0, int(self.lengths[begin]) - 6 - _side_bytes(self.head))  # 6: header and checksum
        return max(0, begin) // _PHASES * _PHASES


def mp3_length(path: Path) -> int:
    """Samples per channel; read from the first frame where it fits the size of the file, otherwise by walking it.

    Raises:
        DataError: as `open_mp3`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(10)
        at = _tag_length(head)
        file.seek(at)
        first = file.read(2048)
        file.seek(max(0, size - 160))
        tail = file.read()
    kind = _KINDS.get(first[:3])
    count, length, delay, padding = _counted(first[: kind[0]]) if kind else (0, 0, 0, 0)
    per_frame = _per_frame(first) if kind else 0
    tags = 128 if tail[-128:-125] == b"TAG" else 0
    # Written with or without the first frame itself; frames of 24 to 1441 bytes.
    held = size - tags - at
    if kind and count and length in (held, held - kind[0]) and 24 * count <= length <= 1441 * (count + 1):
        return _trimmed(count, per_frame, delay, padding)
    return open_mp3(path).frames


def open_mp3(path: Path) -> Mp3:
    """The frames of a file, walked once for each process while they are in a cache of 128 files.

    Raises:
        DataError: without frames of layer III, cut off after its first frame counted more, or with a part of another
            rate or number of channels.
    """
    status = path.stat()
    return _walk(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=128)  # 12 bytes a frame: 1.6 MB for an hour
def _walk(path: Path, size: int, changed_ns: int) -> Mp3:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        starts, lengths = [], []
        at, rate = _next_frames(data, 0), 0
        if at < size:
            rate = _KINDS[data[at : at + 3]][1]
        while at < size:
            kind = _KINDS.get(data[at : at + 3])
            if kind is None or kind[1] != rate:
                at = _next_frames(data, at)
                kind = _KINDS.get(data[at : at + 3])
                if kind is None:
                    break
                if kind[1] != rate:
                    raise DataError(f"{path}: changes from {rate} to {kind[1]} Hz at byte {at}. Split it there.")
            if at + kind[0] > size:
                break
            starts.append(at)
            lengths.append(kind[0])
            at += kind[0]
        if not starts:
            raise DataError(f"{path}: no frames of MPEG layer III in it. Leave it out, or convert it.")
        mono = {data[at + 3] >> 6 == 3 for at in starts}
        first = data[starts[0] : starts[0] + lengths[0]]
    if len(mono) > 1:
        raise DataError(f"{path}: changes between mono and stereo. Split it there, or convert it.")
    count, length, delay, padding = _counted(first)
    per_frame, skip = _per_frame(first), 0
    frames = len(starts) * per_frame
    if count or length or first[4 + _side_bytes(first) :][:4] in (b"Xing", b"Info"):
        starts, lengths = starts[1:], lengths[1:]
        if (count - len(starts)) * per_frame > _MISSING_S * rate:
            held_s, counted_s = (n * per_frame / rate for n in (len(starts), count))
            raise DataError(f"{path}: cut off or damaged: {held_s:.3f} s of the {counted_s:.3f} s that it counts.")
        skip = delay + _DECODER_DELAY
        frames = _trimmed(len(starts), per_frame, delay, padding if count == len(starts) else 0)
    if frames <= 0:
        raise DataError(f"{path}: holds no samples. Leave it out or replace it.")
    channels = 1 if True in mono else 2
    arrays = np.array(starts, np.int64), np.array(lengths, np.int32)
    return Mp3(path, *arrays, first[:4], rate, channels, skip, frames)


def _next_frames(data: mmap.mmap, at: int) -> int:
    """Where the next frames in a row begin, tags passed over; the end if nowhere."""
    at += _tag_length(data[at : at + 10])
    while 0 <= at < len(data):
        behind, row = at, 0
        while row < _IN_A_ROW and (kind := _KINDS.get(data[behind : behind + 3])):
            behind, row = behind + kind[0], row + 1
        if row == _IN_A_ROW or (row and len(data) - 160 <= behind <= len(data)):  # 160: a tag at the end
            return at
        found = _BEGINNING.search(data, at + 1)
        at = found.start() if found else len(data)
    return len(data)


def _tag_length(head: bytes) -> int:
    """Bytes of an ID3v2 tag by its first ten."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 0x10 else 0)


def _counted(frame: bytes) -> tuple[int, int, int, int]:
    """Of a Xing or Info frame: frames after it, bytes with it, samples added before and behind; 0 where not given."""
    at = 4 + _side_bytes(frame)
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return 0, 0, 0, 0
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    count, length, at = 0, 0, at + 8
    if flags & 1:
        count, at = int.from_bytes(frame[at : at + 4], "big"), at + 4
    if flags & 2:
        length, at = int.from_bytes(frame[at : at + 4], "big"), at + 4
    at += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    added = int.from_bytes(frame[at + 21 : at + 24], "big")
    return count, length, added >> 12, added & 0xFFF


def _trimmed(count: int, per_frame: int, delay: int, padding: int) -> int:
    return count * per_frame - delay - _DECODER_DELAY - max(0, padding - _DECODER_DELAY)


def _per_frame(head: bytes) -> int:
    """Samples of a frame."""
    return 1152 if head[1] >> 3 & 3 == 3 else 576


def _side_bytes(head: bytes) -> int:
    """Bytes between a frame's header and its audio, without a checksum."""
    mono = head[3] >> 6 == 3
    return (17 if mono else 32) if head[1] >> 3 & 3 == 3 else (9 if mono else 17)


def _silenced(frame: bytes) -> bytes:
    """The frame with the same bits to lend and to borrow, and no use of them."""
    at = 4 if frame[1] & 1 else 6  # a checksum, which the decoder passes over
    borrows = bytes((frame[at], frame[at + 1] & (0x80 if frame[1] >> 3 & 3 == 3 else 0)))  # 9 bits, or 8
    end = at + _side_bytes(frame)
    return frame[:at] + borrows + bytes(end - at - 2) + frame[end:]


def _counting_frame(head: bytes, count: int) -> bytes:
    """A silent frame of the kind of `head`, without a checksum, that counts the frames after it."""
    kbps = _KBPS_1 if head[1] >> 3 & 3 == 3 else _KBPS_2
    start = bytes((0xFF, head[1] | 1, kbps.index(64) + 1 << 4 | head[2] & 0x0C, head[3]))  # 64 kb/s: room at each rate
    tag = b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (start + bytes(_side_bytes(head)) + tag).ljust(_KINDS[start[:3]][0], b"\0")
