"""Spectral losses against SciPy's STFT and mel triangles written out, in float64."""

import logging
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal

from audiotok.errors import ConfigError, DataError
from audiotok.losses import MelSpectrogramL1Loss, MRSTFTLoss, MultiScaleMelSpectrogramLoss

Array = NDArray[np.float64]
RATE = 16000
EPSILON = float(np.finfo(np.float32).eps)


def make(length: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    pair = torch.randn(2, 2, channels, length, generator=generator, dtype=torch.float64)
    return 0.1 * pair[0] + 0.05 * pair[1], 0.1 * pair[0]


def hann(win_length: int, n_fft: int) -> Array:
    window: Array = signal.get_window("hann", win_length).astype(np.float64)
    left = (n_fft - win_length) // 2
    return np.pad(window, (left, n_fft - win_length - left))


def magnitude(padded: Array, window: Array, hop_length: int) -> Array:
    n_fft = len(window)
    stft: Any = signal.stft  # its stubs refuse a window given as an array
    _, _, spectrum = stft(
        padded,
        window=window,
        nperseg=n_fft,
        noverlap=n_fft - hop_length,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    result: Array = np.abs(spectrum) * window.sum()
    return result


def triangles(n_fft: int, n_mels: int, f_min: float, f_max: float) -> Array:
    """Mel filters [n_mels, bins], HTK scale, peaks of one."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(f_min), mel(f_max), n_mels + 2) / 2595) - 1)
    bins = np.arange(n_fft // 2 + 1) * RATE / n_fft
    rows = [
        np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
        for low, peak, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
    ]
    return np.array(rows)


def slow_mel(wav: torch.Tensor, n_fft: int, hop: int, win: int, n_mels: int, f_min: float, normalized: bool) -> Array:
    side = (n_fft - hop) // 2
    frames = math.ceil(wav.shape[-1] / hop)
    padded = np.pad(wav.numpy(), ((0, 0), (0, 0), (side, side)), mode="reflect")
    missing = (frames - 1) * hop + n_fft - padded.shape[-1]
    padded = np.pad(padded, ((0, 0), (0, 0), (0, max(0, missing))))
    window = hann(win, n_fft)
    power = magnitude(padded, window, hop) ** 2
    if normalized:
        power = power / (window**2).sum()
    result: Array = triangles(n_fft, n_mels, f_min, RATE / 2) @ power
    return result


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("length", [4096, 3001])
def test_mel_loss_is_that_of_scipy(log: bool, normalized: bool, length: int) -> None:
    estimate, reference = make(length, channels=2)
    loss = MelSpectrogramL1Loss(RATE, 1024, 256, 800, n_mels=40, f_min=64, log=log, normalized=normalized).double()
    a, b = (slow_mel(w, 1024, 256, 800, n_mels=40, f_min=64, normalized=normalized) for w in (estimate, reference))
    if log:
        a, b = np.log10(1e-5 + a), np.log10(1e-5 + b)
    wanted = float(np.abs(a - b).mean())
    assert loss(estimate=estimate, reference=reference).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_multi_scale_loss_is_that_of_scipy(alphas: bool, normalized: bool) -> None:
    estimate, reference = make(3000)
    total, weights = 0.0, 0.0
    for exponent in (6, 7, 8, 9):
        size = 2**exponent
        a, b = (slow_mel(w, size, size // 4, size, 64, 64, normalized) for w in (estimate, reference))
        alpha = math.sqrt(size - 1) if alphas else 1
        logs = np.log10(1e-5 + a) - np.log10(1e-5 + b)
        total += float(np.abs(a - b).mean() + alpha * (logs**2).mean())
        weights += 1 + alpha
    loss = MultiScaleMelSpectrogramLoss(RATE, 6, 10, 64, 64, normalized=normalized, alphas=alphas).double()
    wanted = total / weights if normalized else total
    assert loss(estimate=estimate, reference=reference).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_multi_resolution_loss_is_that_of_scipy(normalized: bool) -> None:
    estimate, reference = make(3000, channels=2)
    resolutions = [(1024, 120, 600), (512, 50, 240)]
    wanted = 0.0
    for n_fft, hop, win in resolutions:
        sides = ((0, 0), (0, 0), (n_fft // 2, n_fft // 2))
        scale = n_fft**-0.5 if normalized else 1
        x, y = (
            np.sqrt(
                np.maximum(1e-7, (scale * magnitude(np.pad(w.numpy(), sides, "reflect"), hann(win, n_fft), hop)) ** 2)
            )
            for w in (estimate, reference)
        )
        wanted += 0.3 * float(np.linalg.norm(y - x) / (np.linalg.norm(y) + EPSILON))
        wanted += 0.2 * float(np.abs(np.log(EPSILON + x) - np.log(EPSILON + y)).mean())
    n_ffts, hops, wins = zip(*resolutions, strict=True)
    loss = MRSTFTLoss(n_ffts, hops, wins, factor_sc=0.3, factor_mag=0.2, normalized=normalized).double()
    found = loss(estimate=estimate, reference=reference)
    assert found.dim() == 0
    assert found.item() == pytest.approx(wanted / 2, rel=1e-5)


def test_shortest_signal_works_and_a_shorter_one_is_refused() -> None:
    # The longest mirror is (1024 - 256) / 2 = 384 samples, which takes 385 to fill.
    for loss, shortest in ((MultiScaleMelSpectrogramLoss(RATE), 385), (MRSTFTLoss(), 1025)):
        estimate, reference = (wav.float() for wav in make(shortest))
        assert torch.isfinite(loss(estimate=estimate, reference=reference))
        with pytest.raises(DataError, match=f"{shortest - 1} samples is too short.*{shortest} or more"):
            loss(estimate=estimate[..., 1:], reference=reference[..., 1:])


def test_empty_mel_bands_are_logged_rather_than_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, logger="audiotok.losses.spectral"):
        warnings.simplefilter("error")
        MultiScaleMelSpectrogramLoss(32000, 6, 11, n_mels=64, f_min=64)
    empty = int((triangles(64, 64, 64, RATE / 2).max(axis=1) == 0).sum())
    assert empty > 0
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="audiotok.losses.spectral"):
        MelSpectrogramL1Loss(RATE, 64, 16, 64, n_mels=64, f_min=64)
    assert f"{empty} of 64 mel bands are empty" in caplog.text


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"msspec\.range_start=7, msspec\.range_end=7"):
        MultiScaleMelSpectrogramLoss(RATE, 7, 7)
    with pytest.raises(ConfigError, match="hop_length=2048"):
        MelSpectrogramL1Loss(RATE, n_fft=1024, hop_length=2048)
    with pytest.raises(ConfigError, match="2 n_ffts, 1 hop_lengths"):
        MRSTFTLoss((1024, 512), (256,), (1024, 512))
    with pytest.raises(ConfigError, match=r"'hann'; choose one of: .*hann_window"):
        MRSTFTLoss(window="hann")
