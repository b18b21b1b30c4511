"""Token files, `.atok`: the codes of one recording, entropy-coded; docs/interchange.md describes every byte.

A range coder (`constriction`) codes blocks of frames under a model that learns as it goes: for each codebook whether a
code repeats that of the frame before, and how often each code came. All of it is integer counts, so that every machine
reads what another one wrote.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from audiotok.errors import DataError
from audiotok.files import UnreadableError, read_bytes, replacing

SUFFIX = ".atok"
MAGIC = b"\x8aATOK\r\n\x1a"
VERSION = 1
MAX_BINS = 1 << 16
MAX_N_Q = 128
MAX_FILE = 1 << 30  # bytes
MAX_SYMBOLS = 1 << 28  # codes of a file: 31 hours of 32 codebooks at 75 Hz
_BLOCK = 1024  # frames
_STEP = 16  # frames between two updates of the model
_GAIN = 2  # counts that a code brings; each begins with 1
_LIMIT = 1 << 20  # sum of counts at which all are halved, so that the past fades
_HEADER = struct.Struct("<8sHH32s16sIHIIHQHIIIQI")
_CRC = struct.Struct("<I")
_BLOCK_HEAD = struct.Struct("<III")

Codes = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Header:
    """What a token file holds beside codes.

    Args:
        codec: name of the codec for people, such as demo or //sig/SIG; at most 255 bytes.
        codec_hash: of `audiotok.models.fingerprint`, 64 hex digits.
        source_hash: the first 32 hex digits of the SHA-256 of the file that was encoded.
        sample_rate: of the codec, in Hz.
        channels: of the codec.
        hop: samples of a frame.
        source_rate, source_channels: of the file that was encoded.
        samples: of a channel, at the codec's rate; what is decoded beyond is cut off.
        n_q: codebooks.
        bins: values that a code can take.
        window, step: samples of a chunk that was coded by itself, and from one to the next; 0 for none.
        frames: of all chunks.
        scales: volumes that the file holds: none, one, or one a chunk.
    """

    codec: str
    codec_hash: str
    source_hash: str
    sample_rate: int
    channels: int
    hop: int
    source_rate: int
    source_channels: int
    samples: int
    n_q: int
    bins: int
    window: int
    step: int
    frames: int
    scales: int

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.sample_rate


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token file whose header and checksums are checked; `blocks` decodes it."""

    path: Path
    header: Header
    scales: NDArray[np.float32]
    size: int  # bytes
    _payloads: Sequence[tuple[int, bytes]]

    @property
    def kbps(self) -> float:
        """Kilobits a second, all bytes of the file counted."""
        return self.size * 8 / 1000 / self.header.duration_s

    def blocks(self) -> Iterator[Codes]:
        """Codes [K, t] one block after the other.

        Raises:
            DataError: if a block holds no codes of this model.
        """
        model = _Model(self.header.n_q, self.header.bins)
        for index, (frames, payload) in enumerate(self._payloads):
            try:
                yield model.decode(payload, frames)
            except (ValueError, AssertionError, OverflowError) as error:
                raise _damaged(self.path, index, self.header) from error

    def codes(self) -> Codes:
        """Codes [K, T] of the whole file."""
        return np.concatenate(list(self.blocks()), axis=1)


def write_tokens(path: Path, header: Header, codes: Codes, scales: Sequence[float] = ()) -> int:
    """Write a token file: complete, or not there at all.

    Args:
        path: its folder must exist.
        header: with the frames and scales that follow.
        codes: [K, T], below header.bins.
        scales: volumes.

    Returns:
        Its size in bytes.

    Raises:
        DataError: if codes or header cannot be stored.
        OSError: if the disk refuses.
    """
    if codes.shape != (header.n_q, header.frames) or len(scales) != header.scales:
        raise DataError(f"{path}: codes {list(codes.shape)} with {len(scales)} scales; the header has others.")
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < header.bins:
        raise DataError(f"{path}: codes from {codes.min()} to {codes.max()}; expected 0 to {header.bins - 1}.")
    if fault := _fault(header):
        raise DataError(f"{path} cannot be written: {fault}.")
    name = header.codec.encode()[:255].decode(errors="ignore").encode()
    head = _pack(header, len(name)) + name + np.asarray(scales, "<f4").tobytes()
    parts = [head, _CRC.pack(zlib.crc32(head))]
    seed, model = zlib.crc32(head), _Model(header.n_q, header.bins)
    for index, start in enumerate(range(0, header.frames, _BLOCK)):
        block = codes[:, start : start + _BLOCK]
        payload = model.encode(block)
        parts += [_BLOCK_HEAD.pack(block.shape[1], len(payload), _crc(payload, index, block.shape[1], seed)), payload]
    content = b"".join(parts)
    with replacing(path) as draft:
        draft.write_bytes(content)
    return len(content)


def read_tokens(path: Path) -> TokenFile:
    """Read a token file, check its header and the checksums of all blocks.

    Raises:
        DataError: if it is no such file, damaged, cut off, or of a later version.
    """
    try:
        content = read_bytes(path, limit=MAX_FILE)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except UnreadableError as error:
        raise DataError(str(error)) from error
    header, scales, at = _read_head(path, content)
    seed, payloads, frames = zlib.crc32(content[: at - _CRC.size]), list[tuple[int, bytes]](), 0
    while frames < header.frames:
        index, count = len(payloads), min(_BLOCK, header.frames - frames)
        if at + _BLOCK_HEAD.size > len(content):
            raise _damaged(path, index, header, "cut off before")
        found, length, crc = _BLOCK_HEAD.unpack_from(content, at)
        at += _BLOCK_HEAD.size
        if found != count or length % 4:
            raise _damaged(path, index, header)
        payload = content[at : at + length]
        if len(payload) < length:
            raise _damaged(path, index, header, "cut off in")
        if crc != _crc(payload, index, count, seed):
            raise _damaged(path, index, header)
        payloads.append((count, payload))
        frames, at = frames + count, at + length
    if at != len(content):
        raise DataError(f"{path}: {len(content) - at} bytes follow its last block. Copy or encode it again.")
    return TokenFile(path, header, scales, len(content), payloads)


def is_token_file(path: Path) -> bool:
    """Whether a file begins as token files do, damaged or not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of a token file, whose blocks are not read; errors as of `read_tokens`."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    return _read_head(path, start)[0]


def source_hash(path: Path) -> str:
    """The first 32 hex digits of a file's SHA-256; DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def expected_frames(samples: int, hop: int, window: int, step: int) -> tuple[int, int]:
    """Frames and chunks of a signal: ceil(samples / hop) of each chunk, as docs/interchange.md has it."""
    if not window:
        return -(-samples // hop), 1
    count, full = -(-samples // step), max(0, (samples - window) // step + 1)
    short = sum(-(-min(window, samples - index * step) // hop) for index in range(full, count))
    return full * -(-window // hop) + short, count


def _read_head(path: Path, content: bytes) -> tuple[Header, NDArray[np.float32], int]:
    """Header, scales, and where the blocks begin."""
    if content[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path} is not a token file. `audiotok encode` makes them.")
    if len(content) < _HEADER.size:
        raise DataError(f"{path} is cut off in its header. Copy or encode it again.")
    values = _HEADER.unpack_from(content)
    if values[1] != VERSION:
        raise DataError(f"{path} has version {values[1]}; this audiotok reads {VERSION}. Update it.")
    at = _HEADER.size + values[2]
    end = at + 4 * values[16]
    if len(content) < end + _CRC.size:
        raise DataError(f"{path} is cut off in its header. Copy or encode it again.")
    if _CRC.unpack_from(content, end)[0] != zlib.crc32(content[:end]):
        raise DataError(f"{path}: the header is damaged (its checksum differs). Copy or encode it again.")
    name = content[_HEADER.size : at].decode(errors="replace")
    header = Header(name, values[3].hex(), values[4].hex(), *values[5:])
    scales = np.frombuffer(content[at:end], "<f4").astype(np.float32)
    fault = _fault(header)
    if fault is None and not (np.isfinite(scales).all() and (scales > 0).all()):
        fault = "a volume is not a number above 0"
    if fault:
        raise DataError(f"{path} cannot be read: {fault}. Encode it again.")
    return header, scales, end + _CRC.size


def _pack(header: Header, name: int) -> bytes:
    hashes = bytes.fromhex(header.codec_hash), bytes.fromhex(header.source_hash)
    return _HEADER.pack(MAGIC, VERSION, name, *hashes, *astuple(header)[3:])


def _fault(header: Header) -> str | None:
    """What is wrong with the numbers of a header, if anything."""
    ranges = {
        "sample_rate": (1000, 768_000), "channels": (1, 64), "hop": (1, 1 << 20), "source_rate": (1000, 768_000),
        "source_channels": (1, 1024), "samples": (1, 1 << 40), "n_q": (1, MAX_N_Q), "bins": (2, MAX_BINS),
        "window": (0, 1 << 26), "step": (0, header.window),
    }  # fmt: skip
    for name, (least, most) in ranges.items():
        if not least <= getattr(header, name) <= most:
            return f"{name} is {getattr(header, name)}; {least} to {most} are read"
    if bool(header.window) != bool(header.step) or 2 * header.step < header.window:
        return f"window {header.window} with step {header.step}"
    frames, chunks = expected_frames(header.samples, header.hop, header.window, header.step)
    if header.frames != frames or header.scales not in (0, chunks):
        return f"{header.frames} frames and {header.scales} volumes, where {frames} and {chunks} belong to its length"
    if frames * header.n_q > MAX_SYMBOLS:
        return f"{frames * header.n_q} codes; up to {MAX_SYMBOLS} are read"
    return None


def _crc(payload: bytes, index: int, frames: int, seed: int) -> int:
    """Checksum of a block, of its place in the file and of the file's header."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<III", index, frames, len(payload)), seed))


def _damaged(path: Path, index: int, header: Header, what: str = "damaged:") -> DataError:
    first = index * _BLOCK * header.hop / header.sample_rate  # chunks that overlap make it a little late
    return DataError(f"{path} is {what} block {index}, at {first:.1f} s. Copy or encode it again.")


class _Model:
    """Counts of what came before, of which encoder and decoder make the same probabilities.

    Shape:
        codes [K, t]; `_codes` [K, bins] counts of codes, `_repeats` [K, 2, 2] of codes that do not and do repeat the
        frame before, after those of the codebook before that did not and did.
    """

    def __init__(self, n_q: int, bins: int) -> None:
        self._codes = np.ones((n_q, bins), np.int64)
        self._repeats = np.ones((n_q, 2, 2), np.int64)
        self._before = np.zeros((n_q, 1), np.uint16)  # the frame before

    def encode(self, block: Codes) -> bytes:
        """The bytes of a block [K, t]."""
        coder = constriction.stream.queue.RangeEncoder()
        for start in range(0, block.shape[1], _STEP):
            codes = block[:, start : start + _STEP]
            same = self._same(codes)
            for k in range(len(codes)):
                for context, repeats in self._contexts(same, k):
                    _put(coder, repeats, self._repeats[k, context])
                _put(coder, codes[k][~same[k]], self._codes[k])
            self._learn(codes, same)
        return np.asarray(coder.get_compressed(), "<u4").tobytes()

    def decode(self, payload: bytes, frames: int) -> Codes:
        """The block [K, frames] of its bytes."""
        coder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        n_q = len(self._codes)
        block = np.empty((n_q, frames), np.uint16)
        for start in range(0, frames, _STEP):
            codes = block[:, start : start + _STEP]
            same = np.zeros(codes.shape, bool)
            for k in range(n_q):
                for context, _ in self._contexts(same, k):
                    where = _where(same, k, context)
                    same[k, where] = _get(coder, int(where.sum()), self._repeats[k, context]) == 1
                codes[k, ~same[k]] = _get(coder, int((~same[k]).sum()), self._codes[k])
                self._fill(codes[k], same[k], int(self._before[k, 0]))
            self._learn(codes, same)
        if not coder.maybe_exhausted():
            raise ValueError("bytes are left")
        return block

    def _same(self, codes: Codes) -> NDArray[np.bool_]:
        """Which codes [K, t] repeat those of the frame before."""
        same: NDArray[np.bool_] = codes == np.concatenate([self._before, codes[:, :-1]], axis=1)
        return same

    @staticmethod
    def _contexts(same: NDArray[np.bool_], k: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Whether codes of codebook k repeat, split by whether those of the codebook before do."""
        for context in (0, 1):
            yield context, same[k, _where(same, k, context)]

    @staticmethod
    def _fill(codes: Codes, same: NDArray[np.bool_], before: int) -> None:
        """Put what repeats into codes [t] of a codebook."""
        for place in np.flatnonzero(same):
            codes[place] = codes[place - 1] if place else before

    def _learn(self, codes: Codes, same: NDArray[np.bool_]) -> None:
        for k in range(len(codes)):
            np.add.at(self._codes[k], codes[k][~same[k]], _GAIN)
            for context, repeats in self._contexts(same, k):
                self._repeats[k, context] += _GAIN * np.bincount(repeats, minlength=2)
            for counts in (self._codes[k], *self._repeats[k]):
                if counts.sum() > _LIMIT:
                    counts[:] = (counts + 1) // 2
        self._before = codes[:, -1:].copy()


def _where(same: NDArray[np.bool_], k: int, context: int) -> NDArray[np.bool_]:
    """Frames at which the codebook before k does (context 1) or does not (0) repeat; of the first, 0 everywhere."""
    return same[k - 1] == bool(context) if k else np.full(same.shape[1], not context)


def _put(coder: Any, symbols: NDArray[Any], counts: NDArray[np.int64]) -> None:
    if symbols.size:
        coder.encode(symbols.astype(np.int32), _probabilities(counts))


def _get(coder: Any, count: int, counts: NDArray[np.int64]) -> NDArray[np.int32]:
    found: NDArray[np.int32] = coder.decode(_probabilities(counts), count) if count else np.zeros(0, np.int32)
    return found


def _probabilities(counts: NDArray[np.int64]) -> Any:
    # Whole numbers below 2^53, of which float64 loses nothing. Without `perfect`, constriction makes integers of them
    # by one division, a product each and rounding down: the same on every machine.
    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)
