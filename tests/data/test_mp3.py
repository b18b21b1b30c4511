"""MP3 files by their frames: stretches equal a decode from the start, lengths are counted where headers are wrong."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from audiotok.data import mp3
from audiotok.data.audio import audio_info, read_audio, read_segment
from audiotok.data.mp3 import mp3_length, open_mp3
from audiotok.errors import DataError

MakeAudio = Callable[..., NDArray[np.float32]]
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MODES = ("CONSTANT", "AVERAGE", "VARIABLE")


def write_mp3(path: Path, *, rate: int, channels: int, mode: str, level: float, seconds: float = 3.0) -> Path:
    """Music that needs now few bits, now many: what makes frames borrow."""
    t = np.arange(round(seconds * rate)) / rate
    noise = 0.3 * np.random.default_rng(0).standard_normal((len(t), channels)) * (np.sin(9 * t) > 0.5)[:, None]
    tone = 0.3 * np.sin(2 * np.pi * (200 + 90 * t) * t) * (np.sin(5 * t) > -0.5)
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": level}
    soundfile.write(path, (noise + tone[:, None]).astype(np.float32), rate, **options)
    return path


def decoded(path: Path) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32", always_2d=True)[0]
    return samples


def without_first_frame(data: bytes) -> bytes:
    length, _ = mp3._KINDS[data[:3]]
    assert b"Xing" in data[:length] or b"Info" in data[:length]
    return data[length:]


def bit_rates(data: bytes) -> set[int]:
    at, found = 0, set()
    while data[at : at + 3] in mp3._KINDS:
        found.add((mp3._KBPS_1 if data[at + 1] >> 3 & 3 == 3 else mp3._KBPS_2)[(data[at + 2] >> 4) - 1])
        at += mp3._KINDS[data[at : at + 3]][0]
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from(RATES),
    channels=st.sampled_from((1, 2)),
    mode=st.sampled_from(MODES),
    level=st.sampled_from((0.0, 0.3, 0.6, 0.8, 0.9, 0.99)),
    places=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_stretch_equals_the_same_stretch_of_the_whole_decode(
    tmp_path: Path, rate: int, channels: int, mode: str, level: float, places: list[float]
) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=rate, channels=channels, mode=mode, level=level)
    whole = decoded(path)
    file = open_mp3(path)
    assert (file.frames, file.rate, file.channels) == (len(whole), rate, channels)
    assert mp3_length(path) == len(whole)
    np.testing.assert_allclose(file.read(0, len(whole)), whole, rtol=0, atol=1e-6)
    for place in places:
        start = int(place * len(whole))
        stretch = file.read(start, rate // 4)
        assert len(stretch) == min(rate // 4, len(whole) - start)
        np.testing.assert_allclose(stretch, whole[start : start + rate // 4], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "mode", "level", "kbps"),
    [
        (24000, "CONSTANT", 0.99, 8),
        (8000, "VARIABLE", 0.9, 8),
        (48000, "CONSTANT", 0.99, 32),
        (44100, "CONSTANT", 0.0, 320),
    ],
)
def test_the_bit_rates_are_those_of_the_standard(tmp_path: Path, rate: int, mode: str, level: float, kbps: int) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=rate, channels=2, mode=mode, level=level)
    assert kbps in bit_rates(path.read_bytes())  # what the property holds for reaches from the lowest to the highest


def test_libsndfile_alone_would_fail_that(tmp_path: Path) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=44100, channels=2, mode="VARIABLE", level=0.9)
    whole, differ = decoded(path), 0
    for start in range(20000, 100000, 10000):
        with soundfile.SoundFile(path) as handle:
            handle.seek(start)
            differ += bool(np.abs(handle.read(4000, dtype="float32") - whole[start : start + 4000]).max() > 0.01)
        segment, _ = read_segment(path, start_s=start / 44100, n_frames=4000, sample_rate=44100, channels=2)
        np.testing.assert_allclose(segment.T.numpy(), whole[start : start + 4000], rtol=0, atol=1e-6)
    assert differ >= 2


@pytest.mark.parametrize("mode", MODES)
def test_without_a_count_the_frames_are_counted(tmp_path: Path, mode: str) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=44100, channels=1, mode=mode, level=0.5)
    whole = decoded(path)
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(without_first_frame(path.read_bytes()))
    frames = audio_info(bare).frames
    assert frames % 1152 == 0 and len(whole) + 1105 <= frames < len(whole) + 1105 + 2 * 1152
    wav, _ = read_audio(bare)
    assert wav.shape == (1, frames)
    # Nothing is known of what encoder and decoder added: the same samples, later.
    np.testing.assert_allclose(wav[0, 1105 : 1105 + len(whole)].numpy(), whole[:, 0], rtol=0, atol=1e-6)
    part, _ = read_segment(bare, start_s=2.0, n_frames=4410, sample_rate=44100, channels=1)
    np.testing.assert_allclose(part[0].numpy(), whole[88200 - 1105 : 88200 - 1105 + 4410, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_files_one_after_another_are_read_to_the_end(tmp_path: Path, mode: str) -> None:
    first = write_mp3(tmp_path / "a.mp3", rate=44100, channels=2, mode=mode, level=0.5, seconds=2.0)
    second = write_mp3(tmp_path / "b.mp3", rate=44100, channels=2, mode=mode, level=0.4, seconds=1.5)
    both = tmp_path / "both.mp3"
    tag = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    both.write_bytes(tag + first.read_bytes() + tag + second.read_bytes() + b"TAG" + bytes(125))
    wav, _ = read_audio(both)
    assert audio_info(both).frames == wav.shape[-1]
    one, two = decoded(first), decoded(second)
    assert len(one) + len(two) < wav.shape[-1] < len(one) + len(two) + 6 * 1152  # and what the encoder added between
    np.testing.assert_allclose(wav[:, : len(one) - 1152].T.numpy(), one[:-1152], rtol=0, atol=1e-6)
    start = open_mp3(first).starts.size * 1152 + 1152  # the second's count is a silent frame
    np.testing.assert_allclose(
        wav[:, start + 4096 :][:, : len(two) - 8000].T.numpy(), two[4096:][: len(two) - 8000], rtol=0, atol=1e-6
    )


def test_what_cannot_be_read_as_one_is_refused(tmp_path: Path) -> None:
    a = write_mp3(tmp_path / "a.mp3", rate=44100, channels=1, mode="CONSTANT", level=0.5).read_bytes()
    b = write_mp3(tmp_path / "b.mp3", rate=32000, channels=1, mode="CONSTANT", level=0.5).read_bytes()
    c = write_mp3(tmp_path / "c.mp3", rate=44100, channels=2, mode="CONSTANT", level=0.5).read_bytes()
    for name, data, reason in (
        ("rates", a + b, "changes from 44100 to 32000 Hz"),
        ("channels", a + c, "changes between mono and stereo"),
        ("cut", a[: len(a) // 2], "cut off or damaged"),
    ):
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(data)
        for reads in (audio_info, read_audio):
            with pytest.raises(DataError, match=rf"{name}\.mp3: {reason}"):
                reads(path)


def test_a_segment_reads_no_more_than_its_frames_once_the_file_is_known(tmp_path: Path) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=44100, channels=2, mode="VARIABLE", level=0.5, seconds=1.0)
    data = path.read_bytes()
    long = tmp_path / "long.mp3"
    long.write_bytes(data + without_first_frame(data) * 60)
    file = open_mp3(long)
    with patch.object(mp3, "_next_frames", side_effect=AssertionError("walked again")):
        assert open_mp3(long) is file
    with patch.object(soundfile, "SoundFile", wraps=soundfile.SoundFile) as opened:
        for start in (0, 30 * 44100, 59 * 44100):
            assert file.read(start, 4410).shape == (4410, 2)
    for call in opened.call_args_list:
        assert len(call.args[0].getvalue()) < 80 * 1441  # frames; the file has 2300
    changed = tmp_path / "long.mp3"
    changed.write_bytes(data)
    assert open_mp3(changed).frames == len(decoded(path))  # another file under the name


def test_a_good_file_is_not_walked_for_its_length(tmp_path: Path) -> None:
    path = write_mp3(tmp_path / "a.mp3", rate=44100, channels=2, mode="VARIABLE", level=0.5)
    with patch.object(mp3, "_walk", side_effect=AssertionError("walked")):
        assert audio_info(path).frames == 3 * 44100
