"""Losses on spectrograms: mel L1, multi-scale mel, multi-resolution STFT.

Sources: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, section 3.4 (multi-scale mel); Yamamoto
et al., "Parallel WaveGAN", ICASSP 2020 (multi-resolution STFT). Values are those of EnCodec's training code.
"""

import logging
import math
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from audiotok.errors import ConfigError
from audiotok.losses.waveform import FLOAT32_EPSILON, check_length, check_pair

logger = logging.getLogger(__name__)

_WINDOWS = ("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window")
_POWER_FLOOR = 1e-7


class MelSpectrogramL1Loss(nn.Module):
    """Mean absolute difference of two (log10) mel power spectrograms; 0 if identical, lower is better.

    Args:
        sample_rate: in Hz.
        n_fft, hop_length: FFT size and hop in samples, hop at most n_fft.
        win_length: Hann window in samples, at most n_fft; None means n_fft.
        n_mels: mel bands.
        f_min, f_max: lowest and highest frequency in Hz; f_max None means half the sample rate.
        log: compare log10(floor_level + mel) rather than mel.
        normalized: divide the STFT by the norm of its window.
        floor_level: keeps the logarithm finite.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.

    Raises:
        ConfigError: if hop_length or win_length exceed n_fft.
        DataError: if the shapes differ, or T is at most (n_fft - hop_length) / 2, which is mirrored at each end.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        hop_length: int = 256,
        win_length: int | None = 1024,
        n_mels: int = 64,
        f_min: float = 64.0,
        f_max: float | None = None,
        log: bool = True,
        normalized: bool = False,
        floor_level: float = 1e-5,
    ) -> None:
        super().__init__()
        self.mel = _MelPower(sample_rate, n_fft, hop_length, win_length, n_mels, f_min, f_max, normalized)
        self.log = log
        self.floor_level = floor_level

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        check_pair(estimate, reference)
        mels = self.mel(estimate), self.mel(reference)
        if self.log:
            mels = torch.log10(self.floor_level + mels[0]), torch.log10(self.floor_level + mels[1])
        return F.l1_loss(*mels)


class MultiScaleMelSpectrogramLoss(nn.Module):
    """Sum over scales of L1 between mel spectrograms and alpha times MSE between their log10: 0 if identical.

    Lower is better. Scale i, for range_start <= i < range_end, has n_fft = win_length = 2^i and hop_length = 2^i / 4.

    Args:
        sample_rate: in Hz.
        range_start: power of two of the first scale, at least 2.
        range_end: power of two after the last scale.
        n_mels: mel bands at every scale; small scales leave some of them empty, which is part of the loss.
        f_min, f_max: lowest and highest frequency in Hz; f_max None means half the sample rate.
        normalized: divide each STFT by the norm of its window, and the sum by the sum of (1 + alpha).
        alphas: alpha = sqrt(2^i - 1) if True, else 1.
        floor_level: keeps the logarithm finite.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.

    Raises:
        ConfigError: if the range of scales is empty or starts below 2.
        DataError: if the shapes differ, or T is at most 3/8 of the largest n_fft.
    """

    def __init__(
        self,
        sample_rate: int,
        range_start: int = 6,
        range_end: int = 11,
        n_mels: int = 64,
        f_min: float = 64.0,
        f_max: float | None = None,
        normalized: bool = True,
        alphas: bool = False,
        floor_level: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 2 <= range_start < range_end:
            raise ConfigError(
                f"msspec.range_start={range_start}, msspec.range_end={range_end}; "
                "n_fft goes from 2^start to 2^(end - 1): start must be 2 or more and below end."
            )
        sizes = [2**i for i in range(range_start, range_end)]
        self.mels = nn.ModuleList(
            _MelPower(sample_rate, size, size // 4, size, n_mels, f_min, f_max, normalized) for size in sizes
        )
        self.alphas = [math.sqrt(size - 1) if alphas else 1.0 for size in sizes]
        self.scale = sum(1 + alpha for alpha in self.alphas) if normalized else 1.0
        self.floor_level = floor_level

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        check_pair(estimate, reference)
        total = estimate.new_zeros(())
        for mel, alpha in zip(self.mels, self.alphas, strict=True):
            a, b = mel(estimate), mel(reference)
            log_a, log_b = torch.log10(self.floor_level + a), torch.log10(self.floor_level + b)
            total = total + F.l1_loss(a, b) + alpha * F.mse_loss(log_a, log_b)
        return total / self.scale


class MRSTFTLoss(nn.Module):
    """Mean over resolutions of spectral convergence and log magnitude distance; lower is better.

    With X, Y the STFT magnitudes of estimate and reference (power floored at 1e-7): factor_sc * |Y - X| / |Y|
    in Frobenius norm over the whole batch, plus factor_mag * mean |log Y - log X|, natural logarithm.

    Args:
        n_ffts, hop_lengths, win_lengths: one of each per resolution, in samples; window and hop at most the FFT size.
        window: name of a window function of torch, one of _WINDOWS.
        factor_sc, factor_mag: weights of the spectral convergence and of the log magnitude distance.
        normalized: divide each STFT by the square root of its size.
        epsilon: keeps division and logarithm finite.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.

    Raises:
        ConfigError: for an unknown window, or lists that differ in length or are empty.
        DataError: if the shapes differ, or T is at most half the largest FFT size, which is mirrored at each end.
    """

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        window: str = "hann_window",
        factor_sc: float = 0.5,
        factor_mag: float = 0.5,
        normalized: bool = False,
        epsilon: float = FLOAT32_EPSILON,
    ) -> None:
        super().__init__()
        if not len(n_ffts) == len(hop_lengths) == len(win_lengths) > 0:
            counts = f"{len(n_ffts)} n_ffts, {len(hop_lengths)} hop_lengths, {len(win_lengths)} win_lengths"
            raise ConfigError(f"mrstft has {counts}; give as many of each, at least one.")
        if window not in _WINDOWS:
            raise ConfigError(f"mrstft.window={window!r}; choose one of: {', '.join(_WINDOWS)}.")
        self.resolutions = list(zip(n_ffts, hop_lengths, win_lengths, strict=True))
        for n_fft, hop_length, win_length in self.resolutions:
            _check_sizes("mrstft", n_fft, hop_length, win_length)
        for index, win_length in enumerate(win_lengths):
            self.register_buffer(f"window_{index}", getattr(torch, window)(win_length), persistent=False)
        self.factor_sc = factor_sc
        self.factor_mag = factor_mag
        self.normalized = normalized
        self.epsilon = epsilon

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        check_pair(estimate, reference)
        total = estimate.new_zeros(())
        for index in range(len(self.resolutions)):
            x, y = self._magnitude(estimate, index), self._magnitude(reference, index)
            convergence = torch.linalg.vector_norm(y - x) / (torch.linalg.vector_norm(y) + self.epsilon)
            log_distance = F.l1_loss(torch.log(self.epsilon + x), torch.log(self.epsilon + y))
            total = total + self.factor_sc * convergence + self.factor_mag * log_distance
        return total / len(self.resolutions)

    def _magnitude(self, wav: torch.Tensor, index: int) -> torch.Tensor:
        n_fft, hop_length, win_length = self.resolutions[index]
        check_length(wav, n_fft // 2 + 1, f"an STFT of n_fft={n_fft}")
        window = self.get_buffer(f"window_{index}")
        flat = wav.reshape(-1, wav.shape[-1])
        spectrum = torch.stft(
            flat, n_fft, hop_length, win_length, window, normalized=self.normalized, return_complex=True
        )
        # The floor comes before the root, whose gradient at 0 is infinite.
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=_POWER_FLOOR).sqrt()


class _MelPower(nn.Module):
    """Mel power spectrogram (HTK scale, unscaled triangles): [B, C, T] -> [B, C, n_mels, ceil(T / hop_length)].

    One frame per hop, with mirrored ends, then zeros to fill the last window, as in EnCodec.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        win_length: int | None,
        n_mels: int,
        f_min: float,
        f_max: float | None,
        normalized: bool,
    ) -> None:
        super().__init__()
        _check_sizes("mel", n_fft, hop_length, win_length or n_fft)
        self.n_fft, self.hop_length = n_fft, hop_length
        with warnings.catch_warnings():
            # A small FFT has fewer bins than mel bands: empty bands are part of the loss, and counted below.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
            sizes = (sample_rate, n_fft, win_length, hop_length, f_min, f_max)
            self.transform = MelSpectrogram(*sizes, n_mels=n_mels, normalized=normalized, center=False)
        empty = int((self.transform.mel_scale.fb.amax(dim=0) == 0).sum())
        if empty:
            logger.debug("%d of %d mel bands are empty with n_fft=%d at %d Hz", empty, n_mels, n_fft, sample_rate)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        side = (self.n_fft - self.hop_length) // 2
        check_length(wav, side + 1, f"a mel spectrogram of n_fft={self.n_fft}, hop_length={self.hop_length}")
        wav = F.pad(wav, (side, side), mode="reflect")
        frames = math.ceil((wav.shape[-1] - self.n_fft) / self.hop_length) + 1
        wav = F.pad(wav, (0, (frames - 1) * self.hop_length + self.n_fft - wav.shape[-1]))
        mel: torch.Tensor = self.transform(wav)
        return mel


def _check_sizes(name: str, n_fft: int, hop_length: int, win_length: int) -> None:
    """ConfigError for a hop or a window that is not in 1..n_fft."""
    if not (0 < hop_length <= n_fft and 0 < win_length <= n_fft):
        raise ConfigError(
            f"{name}: n_fft={n_fft}, hop_length={hop_length}, win_length={win_length}; "
            "hop and window must be above 0 and at most n_fft."
        )
