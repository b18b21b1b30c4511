"""Quality of reconstructed signals: SI-SDR, mel and STFT distances; and what a metric of the evaluate stage is.

Sources: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019 (SI-SDR; on centred signals it is the SI-SNR of
Luo and Mesgarani, "TasNet", ICASSP 2018); Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS
2023, and the settings of its published evaluation (both distances, and the level that they are measured at).
"""

import functools
import math
import warnings
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.functional import highpass_biquad, melscale_fbanks, treble_biquad

from audiotok.errors import DataError
from audiotok.losses import MelSpectrogramL1Loss, SISNRLoss
from audiotok.losses.waveform import check_length, check_pair, projection_energies
from audiotok.metrics.frechet import FrechetCodecDistance, FrechetMelDistance
from audiotok.metrics.perceptual import PESQ, STOI, ViSQOL

_LIMIT_DB = 100.0
_MEL_BANDS = {2048: 150, 512: 80}  # STFT window in samples: bands
_FLOOR = 1e-5
_LEVEL_LUFS = -16.0  # of the test set of Kumar et al.
_SILENCE_LUFS = -70.0  # the absolute gate of ITU-R BS.1770: nothing below counts
_BLOCK_S = 0.4  # that loudness is measured over
_HEADROOM = 8.0  # torchaudio clips what its filters give to +-1


class SignalMetric(Protocol):
    """A metric of one clip, listed in SIGNAL_METRICS; its class takes `sample_rate` and its section of `metrics`.

    A class attribute `parallel = True` has its objects pickled, to run in worker processes: for what takes seconds.
    An attribute `protocol` holds a few words for readers of the number: settings, versions of packages.
    """

    def __call__(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        """The value of a clip [C, T] in float32 on the CPU; DataError, with a short reason, where it has none."""


class SetMetric(Protocol):
    """A metric of all clips together, listed in SET_METRICS; its class takes what one of SIGNAL_METRICS takes.

    A class attribute `needs_quantized = True` has `quantized` measured, at the cost of encoding each estimate.
    """

    def update(self, *, estimate: torch.Tensor, reference: torch.Tensor, quantized: torch.Tensor | None) -> None:
        """Take a clip: both [C, T] in float32 on the CPU, and dequantised vectors of these, [2, D, T'] in that order.

        DataError, with a short reason, for a clip that it cannot take.
        """

    def merge(self, other: Self) -> None:
        """Take what another one has taken, on another rank: its objects are pickled."""

    def compute(self) -> float:
        """The value; DataError, with a short reason, where it has none."""


class SISDR:
    """SI-SDR of whole clips in dB, higher is better: `si_snr` of a clip [C, T]. `sample_rate` has no effect."""

    protocol: ClassVar[str] = "whole clips, centred"

    def __init__(self, sample_rate: int) -> None:
        pass

    def __call__(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        """SI-SDR; DataError where the reference, or a channel of it, is silent."""
        value = float(si_snr(estimate=estimate[None], reference=reference[None]))
        if math.isnan(value):
            raise DataError("the reference has a silent channel" if reference.any() else "the reference is silent")
        return value


class MelDistance:
    """`mel_distance` of clips brought to one level, lower is better.

    Args:
        sample_rate: of the clips, in Hz; the distance depends on it.
        level: loudness of the reference in LUFS (ITU-R BS.1770); one gain for both clips, less where the peak of the
            reference would exceed 1. None leaves clips as they are. The distance depends on it.
    """

    def __init__(self, sample_rate: int, level: float | None = _LEVEL_LUFS) -> None:
        self.sample_rate, self.level = sample_rate, level
        self.protocol = "level as recorded" if level is None else f"{level:g} LUFS"

    def __call__(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        """The distance of a clip [C, T]; DataError where it is too short, or its reference silent."""
        gain = 1.0 if self.level is None else _gain(reference, self.sample_rate, self.level)
        return self._distance(gain * estimate[None], gain * reference[None])

    def _distance(self, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        return float(mel_distance(estimate=estimate, reference=reference, sample_rate=self.sample_rate))


class STFTDistance(MelDistance):
    """`stft_distance` of clips brought to one level, lower is better; arguments and errors as of `MelDistance`."""

    def _distance(self, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        return float(stft_distance(estimate=estimate, reference=reference))


class _LossMetric:
    """A training loss as a metric of clips, for runs that were frozen when evaluate measured losses."""

    loss: ClassVar[type[nn.Module]]
    sign: ClassVar[float] = 1.0
    protocol: ClassVar[str] = "as the training loss"

    def __init__(self, sample_rate: int, **settings: Any) -> None:
        self._measure = self.loss(sample_rate, **settings)

    def __call__(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> float:
        return self.sign * float(self._measure(estimate=estimate[None], reference=reference[None]))


class SegmentSISNR(_LossMetric):
    """Minus `SISNRLoss` in dB, higher is better; its epsilon and its zeros make it depend on level and length."""

    loss = SISNRLoss
    sign = -1.0


class LogMelL1(_LossMetric):
    """`MelSpectrogramL1Loss`, lower is better."""

    loss = MelSpectrogramL1Loss


SIGNAL_METRICS: dict[str, type[SignalMetric]] = {
    "sisdr": SISDR,
    "mel_distance": MelDistance,
    "stft_distance": STFTDistance,
    "visqol": ViSQOL,
    "pesq": PESQ,
    "stoi": STOI,
    "sisnr": SegmentSISNR,
    "mel": LogMelL1,
}
"""Of these `evaluate.metrics` of the configuration chooses; `metrics.NAME` holds the arguments of one."""
SET_METRICS: dict[str, type[SetMetric]] = {"fcd": FrechetCodecDistance, "fmd": FrechetMelDistance}
"""Likewise, of all clips together."""


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


def _gain(reference: torch.Tensor, sample_rate: int, level: float) -> float:
    """Gain that brings a clip [C, T] to a level in LUFS, or its peak to 1 if that is less."""
    if reference.shape[-1] < _BLOCK_S * sample_rate:
        raise DataError(f"clips are shorter than {_BLOCK_S:g} s, and have no loudness")
    return min(float(10 ** ((level - _loudness(reference, sample_rate)) / 20)), 1 / float(reference.abs().max()))


def _loudness(wav: torch.Tensor, sample_rate: int) -> float:
    """LUFS of a clip [C, T] by ITU-R BS.1770-4, whose channels count alike; DataError if all of it is below the gate.

    Not torchaudio's `loudness`: scaled down, so that its filters do not clip, it takes quiet clips for silence.
    """
    scale = _HEADROOM * max(1.0, float(wav.abs().max()))
    filtered = treble_biquad(wav.double() / scale, sample_rate, 4.0, 1500.0, 1 / math.sqrt(2))
    filtered = scale * highpass_biquad(filtered, sample_rate, 38.0, 0.5)
    block = round(_BLOCK_S * sample_rate)
    power = filtered.square().unfold(-1, block, block // 4).mean(-1).sum(0)
    power = power[_lufs(power) > _SILENCE_LUFS]
    if not len(power):
        raise DataError("the reference is silent")
    return float(_lufs(power[_lufs(power) > _lufs(power.mean()) - 10].mean()))


def _lufs(power: torch.Tensor) -> torch.Tensor:
    return -0.691 + 10 * torch.log10(power)


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
