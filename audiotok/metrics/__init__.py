"""Metrics: of reconstructed signals, one value per clip, and of codes, all clips together.

Signals are keyword arguments, `metric(estimate=..., reference=...)`, both [B, C, T]; codes are [B, K, T]. Each
docstring states which direction is better.
"""

from audiotok.metrics.codebooks import codebook_metrics
from audiotok.metrics.dependence import dependence_metrics
from audiotok.metrics.groups import group_codes
from audiotok.metrics.information import estimate_dependence
from audiotok.metrics.mmd_permutation import mmd_permutation_test
from audiotok.metrics.sisnr import si_snr
from audiotok.metrics.spectral import mel_distance, stft_distance

__all__ = [
    "codebook_metrics",
    "dependence_metrics",
    "estimate_dependence",
    "group_codes",
    "mel_distance",
    "mmd_permutation_test",
    "si_snr",
    "stft_distance",
]
