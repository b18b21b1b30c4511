"""Reading, writing and converting audio files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from audiotok.data.audio import MAX_PEAK, AudioInfo, audio_info, convert_audio, read_audio, write_audio
from audiotok.errors import DataError

MakeAudio = Callable[..., NDArray[np.float32]]
ALL = ["wav", "flac", "ogg", "opus", "mp3"]


def snr_db(estimate: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    return float(10 * np.log10((reference**2).sum() / ((estimate - reference) ** 2).sum()))


@pytest.mark.parametrize("extension", ALL)
def test_header_and_whole_file_hold_what_was_written(tmp_path: Path, make_audio: MakeAudio, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    signal = make_audio(path, seconds=2.5, rate=24000, channels=2)
    wav, rate = read_audio(path)
    assert audio_info(path) == AudioInfo(2.5, 24000, 2, 60000)
    assert rate == 24000 and wav.dtype == torch.float32 and wav.shape == (2, 60000)
    # Aligned in time with what was encoded: half a cycle off, even a lossless copy would be below 0 dB.
    floor = {"wav": 60, "flac": 60}.get(extension, 12)
    assert snr_db(wav.T.double().numpy(), signal.astype(np.float64)) > floor


@pytest.mark.parametrize("extension", ALL)
@pytest.mark.parametrize("start", [0, 1, 575, 1152, 20011, 47990])
def test_a_part_is_the_same_stretch_of_the_whole(
    tmp_path: Path, make_audio: MakeAudio, extension: str, start: int
) -> None:
    path = tmp_path / f"a.{extension}"
    make_audio(path, seconds=2.5, rate=24000, channels=2)
    whole = soundfile.read(path, dtype="float32")[0].T
    part, _ = read_audio(path, start_s=start / 24000, duration_s=0.5)
    assert part.shape == (2, 12000)
    tolerance = 0.0 if extension in ("wav", "flac") else 1e-6
    np.testing.assert_allclose(part.numpy(), whole[:, start : start + 12000], rtol=0, atol=tolerance)


def test_past_the_end_is_padded_or_short_and_beyond_it_an_error(tmp_path: Path, make_audio: MakeAudio) -> None:
    path = tmp_path / "a.wav"
    make_audio(path, seconds=1.0, rate=8000)
    short, _ = read_audio(path, start_s=0.75, duration_s=1.0)
    padded, _ = read_audio(path, start_s=0.75, duration_s=1.0, pad=True)
    assert short.shape == (1, 2000) and padded.shape == (1, 8000)
    assert torch.equal(padded[:, :2000], short) and not padded[:, 2000:].any()
    with pytest.raises(DataError, match=r"a\.wav: ends at 1\.000 s, nothing to read from 1\.500 s"):
        read_audio(path, start_s=1.5)
    with pytest.raises(DataError, match="use values of 0 or more"):
        read_audio(path, start_s=-1)


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path, make_audio: MakeAudio) -> None:
    (tmp_path / "text.wav").write_text("not audio at all")
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "nothing.wav", np.zeros((0, 1)), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"text\.wav: not readable as audio \(Format not recognised\)"):
        audio_info(tmp_path / "text.wav")
    (tmp_path / "page.mp3").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.mp3: not readable as audio \(no audio found in it\)"):
        audio_info(tmp_path / "page.mp3")
    with pytest.raises(DataError, match=r"headerless\.raw: not readable"):
        audio_info(tmp_path / "headerless.raw")
    with pytest.raises(DataError, match=r"nothing\.wav: holds no samples"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(DataError, match=r"nan\.wav: holds NaN"):
        read_audio(tmp_path / "nan.wav")
    with pytest.raises(DataError, match="no such file"):
        audio_info(tmp_path / "missing.wav")


@pytest.mark.parametrize("peak", [32767.0, 1e29, MAX_PEAK * 1.001])
def test_samples_far_beyond_full_scale_are_refused(tmp_path: Path, peak: float) -> None:
    signal = np.zeros(8000, np.float32)
    signal[5000] = -MAX_PEAK
    soundfile.write(tmp_path / "loud.wav", signal, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "loud.wav")[0][0].numpy(), signal)  # a loud master is music
    signal[5000] = -peak
    soundfile.write(tmp_path / "loud.wav", signal, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"loud\.wav: peak .*e\+29|loud\.wav: peak .* far beyond full scale .* 32768"):
        read_audio(tmp_path / "loud.wav")
    read_audio(tmp_path / "loud.wav", duration_s=0.5)  # what is read is what is judged


@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_a_file_cut_off_after_its_header_is_an_error(tmp_path: Path, make_audio: MakeAudio, extension: str) -> None:
    path = tmp_path / f"cut.{extension}"
    make_audio(path, seconds=4.0, rate=24000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\."):
        read_audio(path)


@pytest.mark.parametrize("extension", ALL)
def test_written_files_read_back(tmp_path: Path, make_audio: MakeAudio, extension: str) -> None:
    wav = torch.from_numpy(make_audio(tmp_path / "source.wav", seconds=6.0, rate=24000, channels=2)).T
    path = write_audio(tmp_path / "new" / f"b.{extension}", wav, 24000)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    samples, rate = soundfile.read(path)
    assert rate == 24000 and samples.shape == (144000, 2)
    floor = {"wav": 60, "flac": 60}.get(extension, 12)
    assert snr_db(samples, wav.T.double().numpy()) > floor


def test_clipping_strategies(tmp_path: Path) -> None:
    wav = torch.tensor([[0.5, -2.0, 1.0, 4.0]])
    expected = {
        "clip": [0.5, -1.0, 1.0, 1.0],
        "rescale": [0.125, -0.5, 0.25, 1.0],
        "none": [0.5, -2.0, 1.0, 4.0],
    }
    for strategy, values in expected.items():
        path = write_audio(tmp_path / "c.wav", wav, 8000, subtype="FLOAT", strategy=strategy)  # type: ignore[arg-type]
        assert soundfile.read(path)[0].tolist() == values
    quiet = torch.tensor([[0.5, -0.25]])
    path = write_audio(tmp_path / "c.wav", quiet, 8000, subtype="FLOAT", strategy="rescale")
    assert soundfile.read(path)[0].tolist() == [0.5, -0.25]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    wav = torch.zeros(1, 100)
    with pytest.raises(DataError, match=r"extension '\.txt'; use one of \.wav, \.flac"):
        write_audio(tmp_path / "a.txt", wav, 8000)
    with pytest.raises(DataError, match=r"expected \[C, T\]"):
        write_audio(tmp_path / "a.wav", wav[0], 8000)
    with pytest.raises(DataError, match="NaN or infinity"):
        write_audio(tmp_path / "a.wav", wav + float("nan"), 8000)
    with pytest.raises(DataError, match="choose one of: clip, rescale, none"):
        write_audio(tmp_path / "a.wav", wav, 8000, strategy="loud")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="44100 Hz"):
        write_audio(tmp_path / "a.opus", wav, 44100)
    with pytest.raises(DataError, match="PCM_77"):
        write_audio(tmp_path / "a.wav", wav, 8000, subtype="PCM_77")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 32000), (44100, 32000), (16000, 24000)])
def test_a_resampled_tone_is_the_tone_at_the_other_rate(from_rate: int, to_rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(from_rate) / from_rate)
    ideal = np.sin(2 * np.pi * 1000 * np.arange(to_rate) / to_rate)
    ours = convert_audio(torch.from_numpy(tone)[None], from_rate, to_rate, 1)[0].numpy()
    scipys = resample_poly(tone, to_rate, from_rate)
    inner = slice(1000, -1000)
    assert len(ours) == to_rate
    assert snr_db(ours[inner], ideal[inner]) > 60
    assert snr_db(ours[inner], scipys[inner]) > 50


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    tone = torch.sin(2 * torch.pi * 20000 * torch.arange(48000, dtype=torch.float64) / 48000)
    resampled = convert_audio(tone[None], 48000, 32000, 1)[0, 1000:-1000]
    assert 10 * torch.log10(resampled.square().mean() / 0.5) < -60


def test_channels_are_averaged_or_copied() -> None:
    stereo = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    mono = convert_audio(stereo, 8000, 8000, 1)
    assert torch.equal(mono, (stereo[:, :1] + stereo[:, 1:]) / 2)
    copied = convert_audio(mono, 8000, 8000, 2)
    assert copied.shape == (3, 2, 50)
    assert torch.equal(copied[:, 0], mono[:, 0]) and torch.equal(copied[:, 1], mono[:, 0])
    for found, wanted in ((6, 2), (6, 1), (1, 3)):
        with pytest.raises(DataError, match=f"cannot turn {found} channels into {wanted}"):
            convert_audio(torch.zeros(found, 10), 8000, 8000, wanted)


def test_mixing_and_resampling_together_equal_one_after_the_other() -> None:
    stereo = torch.randn(2, 4410, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = convert_audio(stereo, 44100, 32000, 1)
    resampled = convert_audio(stereo, 44100, 32000, 2)
    torch.testing.assert_close(both, resampled.mean(0, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extension", ["ogg", "opus"])
@pytest.mark.parametrize(("rate", "frames"), [(8000, 40001), (48000, 9000), (48000, 100_000)])
def test_the_end_of_an_ogg_file_is_that_of_the_whole(tmp_path: Path, extension: str, rate: int, frames: int) -> None:
    path = tmp_path / f"a.{extension}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, frames)
    soundfile.write(path, noise, rate, format="OGG", subtype={"ogg": "VORBIS", "opus": "OPUS"}[extension])
    whole = soundfile.read(path, dtype="float32")[0]
    for start in range(max(0, frames - 9000), frames - 1, 450):  # libsndfile alone is up to 960 samples off there
        part, _ = read_audio(path, start_s=start / rate, duration_s=200 / rate)
        np.testing.assert_allclose(part[0].numpy(), whole[start : start + 200], rtol=0, atol=1e-6)
