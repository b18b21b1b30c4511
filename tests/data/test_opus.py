"""Opus by PyAV: the samples of libsndfile, and what is unusual left to it."""

import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiotok.data import audio, opus
from audiotok.data.opus import Opus, open_opus

MakeAudio = Callable[..., NDArray[np.float32]]
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def opened(path: Path) -> Opus:
    found = open_opus(path, 48000)
    assert found is not None
    return found


def pages_of(data: bytes) -> list[bytes]:
    """The pages of an ogg file."""
    pages, at = [], 0
    while at < len(data):
        count = data[at + 26]
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        pages.append(data[at:end])
        at = end
    return pages


def with_checksum(page: bytes) -> bytes:
    """A page whose checksum, zlib's with all bits in reverse, is right."""
    page = page[:22] + bytes(4) + page[26:]
    value = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + int(f"{value:032b}"[::-1], 2).to_bytes(4, "little") + page[26:]


@pytest.mark.parametrize("channels", [1, 2])
def test_every_stretch_is_that_of_libsndfile(tmp_path: Path, make_audio: MakeAudio, channels: int) -> None:
    path = tmp_path / "a.opus"
    make_audio(path, seconds=4.3, rate=48000, channels=channels)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    source = opened(path)
    for start in (0, 1, 311, 312, 31679, 48000, 96313, 150001, len(whole) - 30000, len(whole) - 1):
        count = min(20000, len(whole) - start)
        samples = source.read(start, count)
        assert samples is not None
        np.testing.assert_allclose(samples, whole[start : start + count], rtol=0, atol=1e-6)


def test_reading_uses_it_where_it_can(tmp_path: Path, make_audio: MakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.opus"
    make_audio(path, seconds=2.0, rate=48000)
    expected, _ = audio.read_audio(path, start_s=1.2, duration_s=0.3)

    def marked(self: Opus, start: int, count: int) -> NDArray[np.float32]:
        return np.full((count, self.channels), start / 1e5, np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(Opus, "read", marked)
        assert audio.read_audio(path, start_s=1.2, duration_s=0.3)[0].unique().tolist() == pytest.approx([0.576])
    opus._av.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)  # importing it is an ImportError
        plain, _ = audio.read_audio(path, start_s=1.2, duration_s=0.3)
        assert open_opus(path, 48000) is None
    opus._av.cache_clear()
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-6)


def test_what_is_unusual_is_left_to_libsndfile(tmp_path: Path, make_audio: MakeAudio) -> None:
    path = tmp_path / "a.opus"
    make_audio(path, seconds=4.0, rate=48000)
    pages = pages_of(path.read_bytes())
    first, last = pages[0], len(pages) - 1
    make_audio(tmp_path / "slow.opus", seconds=1.0, rate=24000)
    assert open_opus(tmp_path / "slow.opus", 24000) is None

    def changed(name: str, number: int, page: bytes) -> Opus | None:
        other = [*pages]
        other[number] = with_checksum(page)
        (tmp_path / name).write_bytes(b"".join(other))
        return open_opus(tmp_path / name, 48000)

    assert changed("same.opus", 0, first) is not None
    assert changed("gain.opus", 0, first[:44] + b"\0\1" + first[46:]) is None
    assert changed("mapping.opus", 0, first[:46] + b"\1" + first[47:]) is None
    shifted = (int.from_bytes(pages[2][6:14], "little") + 960).to_bytes(8, "little")
    assert changed("start.opus", 2, pages[2][:6] + shifted + pages[2][14:]) is None  # cut out of another stream
    gap = changed("gap.opus", 3, pages[3][:6] + (10**6).to_bytes(8, "little") + pages[3][14:])
    assert last > 4 and (gap is None or gap.read(100_000, 1000) is None)  # a count that packets do not have
    damaged = changed("packet.opus", 3, pages[3][:-400] + bytes([0xFF]) * 400)
    assert damaged is not None
    for start in (60_000, 130_000):  # whichever reads it, the length is right
        found = damaged.read(start, 20_000)
        assert found is None or len(found) == 20_000


@pytest.mark.parametrize(
    ("packet", "samples"),
    [(b"\x00", 480), (b"\x18", 2880), (b"\x60", 480), (b"\x68", 960), (b"\x80", 120), (b"\xf8", 960), (b"\xf9", 1920),
     (b"\xfb\x03", 2880), (b"\x1a", 5760)],
)  # fmt: skip
def test_lengths_of_packets(packet: bytes, samples: int) -> None:
    """By the table of RFC 6716, section 3.1: configurations 0, 3, 12, 13, 16 and 31; one to three frames."""
    assert opus._samples(packet) == samples
