"""Metrics: of reconstructed signals, one value per clip, and of codes, all clips together.

Signals are keyword arguments, `metric(estimate=..., reference=...)`, both [B, C, T]; codes are [B, K, T]. Each
docstring states which direction is better.
"""

from audiotok.metrics.codes import codebook_metrics
from audiotok.metrics.dependence import dependence_metrics, estimate_dependence, group_codes
from audiotok.metrics.gap import GapMeter
from audiotok.metrics.gap_fit import GapFit, factorisation_gap
from audiotok.metrics.mmd_permutation import mmd_permutation_test
from audiotok.metrics.quality import SET_METRICS, SIGNAL_METRICS, mel_distance, si_snr, stft_distance

__all__ = [
    "SET_METRICS",
    "SIGNAL_METRICS",
    "GapFit",
    "GapMeter",
    "codebook_metrics",
    "dependence_metrics",
    "estimate_dependence",
    "factorisation_gap",
    "group_codes",
    "mel_distance",
    "mmd_permutation_test",
    "si_snr",
    "stft_distance",
]
