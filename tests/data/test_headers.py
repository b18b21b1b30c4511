"""Headers held against their files: the true length, or a refusal by name."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiotok.data.audio import audio_info, read_audio, read_segment
from audiotok.errors import DataError

MakeAudio = Callable[..., NDArray[np.float32]]


def samples_of(path: Path) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32", always_2d=True)[0]
    return samples


def assert_holds(path: Path, whole: NDArray[np.float32]) -> None:
    """Counted, read as a whole and read in the middle, it is these samples."""
    assert audio_info(path).frames == len(whole)
    np.testing.assert_array_equal(read_audio(path)[0].T.numpy(), whole)
    rate = audio_info(path).sample_rate
    start = len(whole) * 3 // 4
    part, _ = read_segment(path, start_s=start / rate, n_frames=500, sample_rate=rate, channels=whole.shape[1])
    np.testing.assert_array_equal(part.T.numpy(), whole[start : start + 500])


def assert_refused(path: Path, reason: str) -> None:
    for reads in (audio_info, read_audio):
        with pytest.raises(DataError, match=rf"{path.name}: {reason}"):
            reads(path)


def with_flac_total(data: bytes, total: int, at: int = 0) -> bytes:
    packed = int.from_bytes(data[at + 18 : at + 26], "big") >> 36 << 36 | total
    return data[: at + 18] + packed.to_bytes(8, "big") + data[at + 26 :]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("total", [0, 1, 10_000, 39_999])
def test_a_flac_that_counts_no_or_too_few_samples(
    tmp_path: Path, make_audio: MakeAudio, total: int, subtype: str
) -> None:
    signal = make_audio(tmp_path / "a.wav", seconds=2.5, rate=16000, channels=2)
    path = tmp_path / "a.flac"
    soundfile.write(path, signal, 16000, subtype=subtype)
    whole, data = samples_of(path), path.read_bytes()
    for named, changed in (
        ("plain", with_flac_total(data, total)),
        ("tagged", with_flac_total(data, total) + b"TAG" + bytes(125)),
        ("id3", b"ID3\x04\0\0\0\0\x01\x00" + bytes(128) + with_flac_total(data, total)),
    ):
        (tmp_path / f"{named}.flac").write_bytes(changed)
        assert_holds(tmp_path / f"{named}.flac", whole)


def test_a_flac_that_counts_too_many_samples_or_is_damaged(tmp_path: Path, make_audio: MakeAudio) -> None:
    path = tmp_path / "a.flac"
    make_audio(path, seconds=2.5, rate=16000)
    data = path.read_bytes()
    path.write_bytes(with_flac_total(data, 10**9))
    assert_refused(path, "cut off or damaged: ends after 40000 of the 1000000000 frames")
    path.write_bytes(with_flac_total(data, 0)[:-300])
    assert_refused(path, "of unknown length, and its last frame is damaged")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_of_a_pipe_holds_what_is_there(tmp_path: Path, make_audio: MakeAudio, size: int, subtype: str) -> None:
    signal = make_audio(tmp_path / "source.flac", seconds=1.5, rate=16000, channels=2)
    path = tmp_path / "a.wav"
    soundfile.write(path, signal, 16000, subtype=subtype)
    whole, data = samples_of(path), path.read_bytes()
    at = data.index(b"data", 12)
    end = at + 8 + struct.unpack("<I", data[at + 4 : at + 8])[0]
    placeholder = struct.pack("<I", size)
    path.write_bytes(data[:4] + placeholder + data[8 : at + 4] + placeholder + data[at + 8 : end])
    assert_holds(path, whole)


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
def test_a_wav_that_is_cut_off(tmp_path: Path, make_audio: MakeAudio, container: str) -> None:
    signal = make_audio(tmp_path / "source.flac", seconds=1.5, rate=16000, channels=2)
    path = tmp_path / "a.wav"
    soundfile.write(path, signal, 16000, format=container, subtype="PCM_16")
    assert_holds(path, samples_of(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert_refused(path, "cut off: holds [0-9]+ of the 96000 bytes of audio of its header")


def test_a_chunk_behind_the_audio_is_no_audio(tmp_path: Path, make_audio: MakeAudio) -> None:
    path = tmp_path / "a.wav"
    make_audio(path, seconds=1.0, rate=16000)
    whole, data = samples_of(path), path.read_bytes()
    path.write_bytes(data + b"LIST" + struct.pack("<I", 5000) + bytes(5000))
    assert_holds(path, whole)


def test_a_chunk_behind_the_audio_of_a_w64_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(999), 16000, format="W64", subtype="PCM_24")
    path.write_bytes(path.read_bytes() + bytes(128))  # libsndfile would read them as 42 frames
    assert_refused(path, "12[0-9] bytes behind its audio would be read as audio")


@pytest.mark.parametrize("held", [(1 << 32) + 64000, 3 << 32, (2 << 32) - 1])
def test_a_wav_over_4_gib(tmp_path: Path, held: int) -> None:
    path = tmp_path / "big.wav"
    soundfile.write(path, np.zeros(1), 16000, subtype="PCM_16")
    head = path.read_bytes()[:40]
    with path.open("wb") as file:
        file.write(head + struct.pack("<I", held & 0xFFFFFFFF))
        file.truncate(44 + held)  # sparse: takes no room
    try:
        assert_refused(path, f"{held} bytes behind a header that can count 4294967295")
    finally:
        path.unlink()


@pytest.mark.parametrize("container", ["RF64", "W64"])
def test_containers_for_more_than_4_gib(tmp_path: Path, container: str) -> None:
    path, held = tmp_path / "big.wav", (1 << 32) + 64000
    soundfile.write(path, np.zeros(1000), 16000, format=container, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    if container == "RF64":
        data[20:36] = struct.pack("<QQ", held + len(data) - 2008, held)
        at = data.index(b"data", 40) + 8
        data[28:36] = struct.pack("<Q", held)
        data[at - 4 : at] = b"\xff\xff\xff\xff"
    else:
        at = data.index(b"data") + 24
        data[at - 8 : at] = struct.pack("<Q", held + 24)
    with path.open("wb") as file:
        file.write(data[:at])
        file.truncate(at + held)
        file.seek(at + held - 2000)
        file.write(struct.pack("<1000h", *range(1000)))
    assert audio_info(path).frames == held // 2
    end = held // 2 / 16000
    part, _ = read_audio(path, start_s=end - 1000 / 16000)
    np.testing.assert_array_equal(part[0].numpy(), np.arange(1000, dtype=np.float32) / 32768)
    path.unlink()


@pytest.mark.parametrize("extension", ["ogg", "opus"])
@pytest.mark.parametrize("seconds", [(2.0, 1.0), (0.3, 6.0), (6.0, 0.3)])
def test_ogg_streams_one_after_another_are_refused(
    tmp_path: Path, make_audio: MakeAudio, extension: str, seconds: tuple[float, float]
) -> None:
    one, two, both = (tmp_path / f"{name}.{extension}" for name in ("one", "two", "both"))
    make_audio(one, seconds=seconds[0], rate=16000)
    make_audio(two, seconds=seconds[1], rate=16000, seed=1)
    for path in (one, two):
        assert audio_info(path).frames == len(samples_of(path))
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert_refused(both, "several streams in one file")
    both.write_bytes(one.read_bytes() * 2)  # even of the same number
    assert_refused(both, "several streams in one file")


def test_wav_and_flac_files_one_after_another_are_refused(tmp_path: Path, make_audio: MakeAudio) -> None:
    for extension in ("wav", "flac"):
        one, two, both = (tmp_path / f"{name}.{extension}" for name in ("one", "two", "both"))
        make_audio(one, seconds=1.0, rate=16000)
        make_audio(two, seconds=1.5, rate=16000, seed=1)
        both.write_bytes(one.read_bytes() + two.read_bytes())
        assert_refused(both, "several streams in one file")
        both.write_bytes(two.read_bytes() + one.read_bytes())
        assert_refused(both, "several streams in one file|cut off or damaged")


def test_rates_that_no_file_has(tmp_path: Path) -> None:
    for rate in (7, 900_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
        assert_refused(tmp_path / "a.wav", f"sample rate {rate} Hz; 1000 to 768000 are read")


def test_an_empty_wav_with_a_chunk_behind_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 16000, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:44] + b"LIST" + struct.pack("<I", 26) + b"INFO" + bytes(22))
    assert_refused(path, "holds no samples")


@pytest.mark.parametrize("head", [b"ID3", b"fLaC", b"RIFF\0\0\0\0WAVE", b"riff", b"OggS", b"RF64\0\0\0\0WAVEds64\xff"])
def test_headers_that_end_early(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.wav"
    for data in (head, head + bytes(30), head + bytes(100_000), head * 1000):
        path.write_bytes(data)
        assert_refused(path, "")
