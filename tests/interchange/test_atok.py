"""Token files: what is written is read, at the size that its model gives, and nothing else is."""

import math
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from audiotok.errors import AudiotokError, DataError
from audiotok.interchange.atok import Codes, Header, read_header, read_tokens, write_tokens


def header_of(
    codes: Codes, *, bins: int = 64, scales: int = 0, window: int = 0, step: int = 0, samples: int = 0
) -> Header:
    length = samples or codes.shape[1] * 80 - 3
    numbers = (8000, 1, 80, 44100, 2, length, codes.shape[0], bins, window, step, codes.shape[1], scales)
    return Header("demo", "ab" * 32, "cd" * 16, *numbers)


def music(frames: int, n_q: int = 3, bins: int = 64, seed: int = 0) -> Codes:
    """Codes of which some are frequent, and some repeat."""
    rng = np.random.default_rng(seed)
    codes = np.minimum(rng.geometric(0.05, (n_q, frames)) - 1, bins - 1).astype(np.uint16)
    for place in range(1, frames):
        stays = rng.random(n_q) < 0.2
        codes[stays, place] = codes[stays, place - 1]
    return codes


def ideal_bits(codes: Codes, bins: int) -> float:
    """Sum of −log2 p under the model of docs/interchange.md, symbol by symbol in float64."""
    bits = 0.0
    n_q, frames = codes.shape
    values = [[1] * bins for _ in range(n_q)]
    repeats = {(k, context): [1, 1] for k in range(n_q) for context in (0, 1)}
    for start in range(0, frames, 16):
        seen: list[tuple[list[int], int]] = []
        for t in range(start, min(start + 16, frames)):
            before = 0
            for k in range(n_q):
                last = int(codes[k, t - 1]) if t else 0
                same = int(int(codes[k, t]) == last)
                pairs = [(repeats[k, before], same)] + ([] if same else [(values[k], int(codes[k, t]))])
                for counts, symbol in pairs:
                    bits -= math.log2(counts[symbol] / sum(counts))
                seen += pairs
                before = same
        for counts, symbol in seen:
            counts[symbol] += 2
    return bits


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 1024, 1025, 2500])
@pytest.mark.parametrize("bins", [2, 64, 65536])
def test_what_is_written_is_read(tmp_path: Path, frames: int, bins: int) -> None:
    codes = np.random.default_rng(frames).integers(0, bins, (2, frames)).astype(np.uint16)
    codes[0, : frames // 2] = bins - 1
    header = header_of(codes, bins=bins)
    size = write_tokens(tmp_path / "a.atok", header, codes)
    tokens = read_tokens(tmp_path / "a.atok")
    assert np.array_equal(tokens.codes(), codes) and tokens.header == header == read_header(tmp_path / "a.atok")
    assert size == tokens.size == (tmp_path / "a.atok").stat().st_size
    assert tokens.kbps == pytest.approx(size * 8 / 1000 / (header.samples / 8000))


def test_volumes_are_kept(tmp_path: Path) -> None:
    codes = music(27)
    header = header_of(codes, scales=3, window=800, step=792, samples=792 * 2 + 500)
    write_tokens(tmp_path / "a.atok", header, codes, [1.0, 0.1, 3e-8])
    assert read_tokens(tmp_path / "a.atok").scales.tolist() == np.array([1.0, 0.1, 3e-8], np.float32).tolist()


@pytest.mark.parametrize(("frames", "bins"), [(3000, 64), (6000, 1024)])
def test_the_size_is_the_ideal_one_within_three_percent(tmp_path: Path, frames: int, bins: int) -> None:
    codes = music(frames, bins=bins)
    size = write_tokens(tmp_path / "a.atok", header_of(codes, bins=bins), codes)
    ideal = ideal_bits(codes, bins)
    assert 1.0 < size * 8 / ideal < 1.03
    assert ideal < 0.9 * codes.size * np.log2(bins), "the model learns"


def test_silence_takes_next_to_nothing(tmp_path: Path) -> None:
    codes = np.full((4, 10_000), 7, np.uint16)
    assert write_tokens(tmp_path / "a.atok", header_of(codes), codes) < 1500


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    codes = music(20)
    for header, wrong in (
        (header_of(codes, bins=2), codes),
        (header_of(codes), codes[:, 1:]),
        (header_of(codes, bins=1), codes * 0),
    ):
        with pytest.raises(DataError):
            write_tokens(tmp_path / "a.atok", header, wrong)
    assert not list(tmp_path.iterdir())


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    path, codes = tmp_path / "a.atok", music(2500)
    write_tokens(path, header_of(codes), codes)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: block 2, at 20\.5 s"):
        read_tokens(path)
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match="cut off in block 2"):
        read_tokens(path)


@pytest.mark.parametrize("mended", [False, True])
def test_no_mutation_crashes_or_takes_memory(tmp_path: Path, mended: bool) -> None:
    """Of the mended ones, all checksums are right: what is in them is read."""
    path, codes, rng = tmp_path / "a.atok", music(1500), random.Random(3)
    write_tokens(path, header_of(codes), codes)
    whole, fine = path.read_bytes(), 0
    for _ in range(500):
        content = bytearray(whole)
        match rng.randrange(4):
            case 0:
                content = content[: rng.randrange(len(content))]
            case 1:
                content[rng.randrange(len(content))] = rng.randrange(256)
            case 2:
                place = rng.randrange(len(content))
                content[place : place + rng.randrange(8)] = rng.randbytes(rng.randrange(8))
            case _:
                place = rng.randrange(min(140, len(content) - 4))
                content[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, rng.randbytes(4)])
        path.write_bytes(with_checksums(bytes(content)) if mended else content)
        try:
            tokens = read_tokens(path)
            for block in tokens.blocks():
                assert block.max() < tokens.header.bins and block.shape[1] <= 1024
            fine += 1
        except AudiotokError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)
    assert fine < 500


def with_checksums(content: bytes) -> bytes:
    """A file whose checksums are made right, as far as its lengths lead."""
    head = struct.calcsize("<8sHH32s16sIHIIHQHIIIQI")
    if len(content) < head + 4:
        return content
    name, scales = struct.unpack_from("<H", content, 10)[0], struct.unpack_from("<I", content, head - 4)[0]
    end = head + name + 4 * scales
    out, at, index, seed = bytearray(content), end + 4, 0, zlib.crc32(content[:end])
    if end + 4 > len(content):
        return content
    struct.pack_into("<I", out, end, seed)
    while at + 12 <= len(content):
        frames, length = struct.unpack_from("<II", content, at)
        payload = content[at + 12 : at + 12 + length]
        struct.pack_into(
            "<I", out, at + 8, zlib.crc32(payload, zlib.crc32(struct.pack("<III", index, frames, length), seed))
        )
        at, index = at + 12 + length, index + 1
    return bytes(out)


@pytest.mark.parametrize("content", [b"", b"RIFF" * 100, b"\x8aATOK\r\n\x1a", b"\x8aATOK\r\n\x1a" + b"\xff" * 300])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.atok").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.atok"):
        read_tokens(tmp_path / "a.atok")
    with pytest.raises(DataError, match="no such file"):
        read_tokens(tmp_path / "b.atok")
