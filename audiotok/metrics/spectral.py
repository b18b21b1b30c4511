"""Mel and STFT distances under the protocol of the Descript Audio Codec, for comparison with its tables.

Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023, and the default
settings of its published evaluation: windows of 2048 and 512 samples, 150 and 80 mel bands.
"""

import functools
import warnings

import torch
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from audiotok.losses.waveform import check_length, check_pair

MEL_BANDS = {2048: 150, 512: 80}
FLOOR = 1e-5


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
    for window, bands in MEL_BANDS.items():
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
    for window in MEL_BANDS:
        total += _distance(_magnitude(estimate, window), _magnitude(reference, window))
    return total


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logs = a.clamp(min=FLOOR).square().log10() - b.clamp(min=FLOOR).square().log10()
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
