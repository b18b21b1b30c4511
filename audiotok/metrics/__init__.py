"""Metrics of reconstructed signals, one value per clip; each docstring states which direction is better.

Signals are keyword arguments, `metric(estimate=..., reference=...)`, both [B, C, T].
"""

from audiotok.metrics.sisnr import si_snr
from audiotok.metrics.spectral import mel_distance, stft_distance

__all__ = ["mel_distance", "si_snr", "stft_distance"]
