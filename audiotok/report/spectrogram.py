"""Spectrograms to set beside each other: power in dB over time and log frequency, all of a clip on one scale."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from scipy import signal

LOWEST_HZ = 40.0
RANGE_DB = 80.0
ROWS = 112
COLUMNS = 480
WINDOW_S = 0.05
_COLOURS = "magma"

Floats = np.ndarray[Any, np.dtype[np.float64]]


def power_spectrogram(wav: Floats, sample_rate: int, *, seconds: float, highest_hz: float) -> Floats:
    """Power on a grid of log frequency and time.

    Args:
        wav: mono signal [T].
        sample_rate: Hz.
        seconds: time that the columns span; what the signal lacks is silence.
        highest_hz: upper end of the frequencies, from LOWEST_HZ.

    Returns:
        Power [ROWS, COLUMNS], the lowest frequency first.
    """
    size = 2 ** max(5, round(np.log2(WINDOW_S * sample_rate)))
    length = max(size, round(seconds * sample_rate))
    padded = np.zeros(length)
    padded[: min(length, len(wav))] = wav[:length]
    hop = max(1, length // COLUMNS)
    transform = signal.ShortTimeFFT(signal.windows.hann(size, sym=False), hop, sample_rate, scale_to="magnitude")
    power = np.abs(transform.stft(padded, p0=0, p1=max(1, length // hop))) ** 2
    frames = np.linspace(0, power.shape[1] - 1, COLUMNS).astype(int)
    smoothed: Floats = _filters(transform.f, highest_hz) @ power[:, frames]
    return smoothed


def save_spectrogram(path: Path, power: Floats, loudest: float) -> None:
    """Write a spectrogram as PNG, its colours from RANGE_DB below `loudest` (power) up to it."""
    decibels = 10 * np.log10(np.maximum(power, 1e-20) / max(loudest, 1e-20))
    imsave(path, decibels, vmin=-RANGE_DB, vmax=0.0, cmap=_COLOURS, origin="lower")


def _filters(frequencies: Floats, highest_hz: float) -> Floats:
    """Triangles over log-spaced centres, each at least one bin wide to either side: [ROWS, bins]."""
    centres = np.geomspace(LOWEST_HZ, max(highest_hz, 2 * LOWEST_HZ), ROWS)
    widths = np.maximum(centres * (centres[1] / centres[0] - 1), frequencies[1] - frequencies[0])
    weights = np.maximum(0.0, 1.0 - np.abs(frequencies - centres[:, None]) / widths[:, None])
    filters: Floats = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    return filters
