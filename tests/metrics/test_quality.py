"""Mel and STFT distances against SciPy's STFT and Slaney's mel filters written out in NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal

from audiotok.errors import DataError
from audiotok.metrics import mel_distance, stft_distance

Array = NDArray[np.float64]
RATE = 24000


def make(length: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pair = 0.1 * torch.randn(2, 2, 2, length, generator=generator, dtype=torch.float64)
    return pair[0] + torch.tensor([0.1, 0.6])[:, None, None] * pair[1], pair[0]


def magnitude(wav: torch.Tensor, window: int) -> Array:
    padded = np.pad(wav.numpy(), ((0, 0), (0, 0), (window // 2, window // 2)), mode="reflect")
    stft: Any = signal.stft
    _, _, spectrum = stft(
        padded, nperseg=window, noverlap=window - window // 4, boundary=None, padded=False, scaling="spectrum"
    )
    result: Array = np.abs(spectrum) * signal.get_window("hann", window).sum()
    return result


def slaney_filters(window: int, bands: int) -> Array:
    """Filters [bands, bins] of unit area in Hz; 200/3 Hz per mel up to 1 kHz, then 27 mels per factor 6.4."""

    def to_hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = [to_hz(mel) for mel in np.linspace(0, top, bands + 2)]
    bins = np.arange(window // 2 + 1) * RATE / window
    rows = [
        np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak))) * 2 / (high - low)
        for low, peak, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
    ]
    return np.array(rows)


def distance(a: Array, b: Array) -> Array:
    logs = np.log10(np.maximum(a, 1e-5) ** 2) - np.log10(np.maximum(b, 1e-5) ** 2)
    result: Array = np.abs(a - b).mean((1, 2, 3)) + np.abs(logs).mean((1, 2, 3))
    return result


def test_stft_distance_is_that_of_scipy_per_clip() -> None:
    estimate, reference = make()
    wanted = sum(distance(magnitude(estimate, w), magnitude(reference, w)) for w in (2048, 512))
    found = stft_distance(estimate=estimate, reference=reference)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_mel_distance_is_that_of_scipy_per_clip() -> None:
    estimate, reference = make()
    wanted: Any = 0
    for window, bands in ((2048, 150), (512, 80)):
        filters = slaney_filters(window, bands)
        wanted = wanted + distance(filters @ magnitude(estimate, window), filters @ magnitude(reference, window))
    found = mel_distance(estimate=estimate, reference=reference, sample_rate=RATE)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)
    assert found[0] < found[1]


def test_identical_clips_are_at_distance_zero_and_the_distance_is_symmetric() -> None:
    estimate, reference = make()
    assert stft_distance(estimate=reference, reference=reference).tolist() == [0, 0]
    assert mel_distance(estimate=reference, reference=reference, sample_rate=RATE).tolist() == [0, 0]
    there = mel_distance(estimate=estimate, reference=reference, sample_rate=RATE)
    back = mel_distance(estimate=reference, reference=estimate, sample_rate=RATE)
    torch.testing.assert_close(there, back)


def test_silence_is_finite_and_short_clips_are_refused() -> None:
    _, reference = make(1025)
    silence = torch.zeros_like(reference)
    assert torch.isfinite(mel_distance(estimate=silence, reference=reference, sample_rate=RATE)).all()
    with pytest.raises(DataError, match=r"1024 samples is too short.*1025 or more"):
        stft_distance(estimate=silence[..., 1:], reference=reference[..., 1:])
