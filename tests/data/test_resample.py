"""Resampling between any two rates, against the filter in float64, tones, and SciPy."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from audiotok.data.audio import convert_audio, read_audio, read_segment
from audiotok.data.resample import is_direct, resample, resample_at
from audiotok.errors import DataError

MakeAudio = Callable[..., NDArray[np.float32]]
ODD = [(44101, 32000), (47999, 32000), (22254, 32000), (95999, 16000), (8001, 48000)]
USUAL = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 37800, 44100, 48000, 88200, 96000, 176400, 192000)


def filtered(signal: NDArray[np.float64], from_rate: int, to_rate: int, k: int) -> float:
    """Target frame k by the definition of the filter, a sum over the whole signal."""
    cut = min(from_rate, to_rate) * 0.945 / from_rate
    at = (k * from_rate / to_rate - np.arange(len(signal))) * cut
    window = np.where(np.abs(at) < 24, np.cos(np.pi * at / 48) ** 2, 0)
    return float((signal * cut * np.sinc(at) * window).sum())


def test_usual_rates_take_the_method_that_they_always_took() -> None:
    assert not any(is_direct(a, b) for a in USUAL for b in USUAL)
    assert all(is_direct(a, b) for a, b in ODD)


@pytest.mark.parametrize(("from_rate", "to_rate"), [*ODD, (44100, 32000), (16000, 44100), (48000, 32000)])
def test_any_rate_is_resampled_by_the_filter_as_defined(from_rate: int, to_rate: int) -> None:
    signal = np.random.default_rng(0).uniform(-1, 1, 3000)
    n = math.ceil(3000 * to_rate / from_rate)
    whole = resample_at(torch.from_numpy(signal).float(), from_rate, to_rate, 0, n)
    for k in [0, 1, 2, n - 1, *range(17, n, n // 40)]:
        assert whole[k] == pytest.approx(filtered(signal, from_rate, to_rate, k), abs=1e-6)
    assert resample(torch.from_numpy(signal), from_rate, to_rate).shape == (n,)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 32000), (32000, 44100), (96000, 16000)])
def test_both_methods_agree(from_rate: int, to_rate: int) -> None:
    noise = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_torchaudio = resample(noise, from_rate, to_rate)
    ours = resample_at(noise, from_rate, to_rate, 0, by_torchaudio.shape[-1])
    torch.testing.assert_close(ours, by_torchaudio, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("from_rate", "to_rate"), ODD)
def test_a_tone_stays_the_tone(from_rate: int, to_rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(from_rate // 2) / from_rate)
    ours = convert_audio(torch.from_numpy(tone)[None], from_rate, to_rate, 1)[0].numpy()
    ideal = np.sin(2 * np.pi * 1000 * np.arange(len(ours)) / to_rate)
    inner = slice(1000, -1000)
    assert np.abs(ours - ideal)[inner].max() < 1e-3  # the ripple of the filter, as at the usual rates
    near = resample_poly(tone, to_rate, from_rate)
    assert np.abs(ours - near)[inner].max() < 3e-3


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    tone = torch.sin(2 * torch.pi * 20000 * torch.arange(47999, dtype=torch.float64) / 47999)
    assert 10 * torch.log10(resample(tone, 47999, 32000)[1000:-1000].square().mean() / 0.5) < -60


@pytest.mark.parametrize(("from_rate", "to_rate"), ODD)
def test_a_segment_is_a_stretch_of_the_whole_file_resampled(
    tmp_path: Path, make_audio: MakeAudio, from_rate: int, to_rate: int
) -> None:
    path = tmp_path / "a.wav"
    make_audio(path, seconds=1.7, rate=from_rate, channels=2)
    whole = convert_audio(read_audio(path)[0], from_rate, to_rate, 1)
    for start_s in (0.0, 0.0007, 0.51234, 1.3, 1.69):
        wav, true_start_s = read_segment(path, start_s=start_s, n_frames=to_rate // 2, sample_rate=to_rate, channels=1)
        first = round(true_start_s * to_rate)
        assert start_s - 1 / to_rate < true_start_s <= start_s and abs(true_start_s * to_rate - first) < 1e-6
        assert wav.shape[-1] == min(to_rate // 2, whole.shape[-1] - first)
        torch.testing.assert_close(wav, whole[:, first : first + to_rate // 2], rtol=0, atol=1e-6)
    rest, _ = read_segment(path, start_s=1.0, n_frames=None, sample_rate=to_rate, channels=2)
    assert torch.equal(rest[0], rest[1]) is False and rest.shape == (2, whole.shape[-1] - to_rate)
    torch.testing.assert_close(rest.mean(0), whole[0, to_rate:], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"has ended|ends"):
        read_segment(path, start_s=1.8, n_frames=10, sample_rate=to_rate, channels=1)


def test_memory_is_bounded_at_rates_without_a_common_divisor(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    make = torch.Tensor.unfold

    def record(self: torch.Tensor, *args: int) -> torch.Tensor:
        nonlocal largest
        windows = make(self, *args)
        largest = max(largest, windows.numel())
        return windows

    monkeypatch.setattr(torch.Tensor, "unfold", record)
    monkeypatch.setattr("torchaudio.transforms.Resample", lambda *a, **k: pytest.fail("a kernel of gigabytes"))
    assert resample(torch.zeros(1, 10 * 44101), 44101, 32000).shape == (1, 320000)
    assert largest < 1 << 22  # numbers, however long the signal


def test_rates_too_far_apart_are_refused() -> None:
    with pytest.raises(DataError, match="cannot resample from 768000 to 1000 Hz: at most a factor of 128"):
        resample(torch.zeros(1, 100), 768000, 1000)
