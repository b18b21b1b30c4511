"""Quality of reconstructed signals: SI-SNR, mel and STFT distances.

Sources: Luo and Mesgarani, "TasNet", ICASSP 2018 (SI-SNR: the SI-SDR of Le Roux et al., ICASSP 2019, on centred
signals); Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023, and the settings of its
published evaluation (`mel_distance` and `stft_distance`, for comparison with its tables).
"""

import functools
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from audiotok.losses import MelSpectrogramL1Loss, SISNRLoss
from audiotok.losses.waveform import check_length, check_pair, projection_energies

_LIMIT_DB = 100.0
_MEL_BANDS = {2048: 150, 512: 80}  # STFT window in samples: bands
_FLOOR = 1e-5


class SegmentSISNR(SISNRLoss):
    """SI-SNR in dB over segments, higher is better: minus `SISNRLoss`, whose arguments and shapes it takes."""

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the mean SI-SNR in dB."""
        return -super().forward(estimate=estimate, reference=reference)


SIGNAL_METRICS: dict[str, type[nn.Module]] = {"sisnr": SegmentSISNR, "mel": MelSpectrogramL1Loss}
"""Of these `evaluate.metrics` of the configuration chooses; the section of a metric's name holds its arguments."""


def si_snr(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SI-SNR of whole clips in dB, higher is better.

    10 log10(|p|^2 / |e - p|^2) with p the projection of the estimate e on the reference, both centred.
    Computed in float64 without an additive epsilon, so that it does not depend on the level of either signal,
    unlike `SISNRLoss`. Limited to +-100 dB: +100 for identical signals, -100 for a silent estimate.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> [B], the mean over channels; NaN where the reference has a
        silent channel, for which the ratio is undefined.

    Raises:
        DataError: if the shapes differ.
    """
    check_pair(estimate, reference)
    signal, noise = projection_energies(estimate.double(), reference.double())
    ratio = 10 * (torch.log10(signal) - torch.log10(noise))
    ratio = ratio.masked_fill((signal == 0) & (noise == 0), -_LIMIT_DB)
    return ratio.clamp(-_LIMIT_DB, _LIMIT_DB).mean(-1)


def mel_distance(*, estimate: torch.Tensor, reference: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Mel distance, lower is better, 0 for identical clips.

    Sum over windows w in (2048, 512) of mean |A - B| + mean |log10 A^2 - log10 B^2|, with A and B mel
    magnitudes (Slaney's scale and area normalisation, 0 to sample_rate / 2 Hz; floored at 1e-5 in the
    logarithm) of centred, mirrored Hann frames every w / 4 samples.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> [B], means over channels, bands and frames.

    Raises:
        DataError: if the shapes differ or clips hold 1024 samples or less.
    """
    check_pair(estimate, reference)
    total = torch.zeros(len(reference), device=reference.device, dtype=reference.dtype)
    for window, bands in _MEL_BANDS.items():
        filters = _mel_filters(sample_rate, window, bands).to(reference)
        total += _distance(_magnitude(estimate, window) @ filters, _magnitude(reference, window) @ filters)
    return total


def stft_distance(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """STFT distance, lower is better, 0 for identical clips: `mel_distance` without its mel filters.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> [B], means over channels, bins and frames.

    Raises:
        DataError: if the shapes differ or clips hold 1024 samples or less.
    """
    check_pair(estimate, reference)
    total = torch.zeros(len(reference), device=reference.device, dtype=reference.dtype)
    for window in _MEL_BANDS:
        total += _distance(_magnitude(estimate, window), _magnitude(reference, window))
    return total


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logs = a.clamp(min=_FLOOR).square().log10() - b.clamp(min=_FLOOR).square().log10()
    return (a - b).abs().flatten(1).mean(1) + logs.abs().flatten(1).mean(1)


def _magnitude(wav: torch.Tensor, window: int) -> torch.Tensor:
    """Return [B, C, frames, bins]."""
    check_length(wav, window // 2 + 1, f"an STFT of {window} samples")
    taper = torch.hann_window(window, device=wav.device, dtype=wav.dtype)
    padded = F.pad(wav, (window // 2, window // 2), mode="reflect")
    frames = padded.unfold(-1, window, window // 4)
    spectrum: torch.Tensor = torch.fft.rfft(frames * taper)
    return spectrum.abs()


@functools.cache
def _mel_filters(sample_rate: int, window: int, bands: int) -> torch.Tensor:
    """Return [bins, bands]."""
    with warnings.catch_warnings():
        # At high sample rates the lowest bands are narrower than a bin: the protocol has them empty.
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        filters: torch.Tensor = melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, norm="slaney", mel_scale="slaney"
        )
    return filters
