"""Mel power spectrograms with one frame per hop, as the spectral losses of EnCodec take them."""

import logging
import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from audiotok.errors import ConfigError
from audiotok.losses.pairs import check_length

_LOGGER = logging.getLogger(__name__)


class MelPower(nn.Module):
    """Mel power spectrogram with ceil(T / hop) frames: mirrored ends, then zeros to fill the last window.

    Args:
        sample_rate: in Hz.
        n_fft: FFT size in samples.
        hop_length: in samples, at most n_fft.
        win_length: Hann window in samples, at most n_fft; None means n_fft.
        n_mels: mel bands (HTK scale, unscaled triangles).
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz; None means half the sample rate.
        normalized: divide the STFT by the norm of its window.

    Shape:
        [B, C, T] -> [B, C, n_mels, ceil(T / hop_length)].

    Raises:
        ConfigError: if hop_length or win_length exceed n_fft.
        DataError: if T is at most (n_fft - hop_length) / 2, which is mirrored at each end.
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
        check_sizes("mel", n_fft, hop_length, win_length or n_fft)
        self.n_fft = n_fft
        self.hop_length = hop_length
        with warnings.catch_warnings():
            # A small FFT has fewer bins than mel bands: empty bands are wanted, and counted in the log below.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
            self.transform = MelSpectrogram(
                sample_rate,
                n_fft,
                win_length,
                hop_length,
                f_min,
                f_max,
                n_mels=n_mels,
                normalized=normalized,
                center=False,
            )
        empty = int((self.transform.mel_scale.fb.amax(dim=0) == 0).sum())
        if empty:
            _LOGGER.debug("%d of %d mel bands are empty with n_fft=%d at %d Hz", empty, n_mels, n_fft, sample_rate)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Transform [B, C, T] to [B, C, n_mels, ceil(T / hop)]."""
        side = (self.n_fft - self.hop_length) // 2
        check_length(wav, side + 1, f"a mel spectrogram of n_fft={self.n_fft}, hop_length={self.hop_length}")
        wav = F.pad(wav, (side, side), mode="reflect")
        frames = math.ceil((wav.shape[-1] - self.n_fft) / self.hop_length) + 1
        wav = F.pad(wav, (0, (frames - 1) * self.hop_length + self.n_fft - wav.shape[-1]))
        mel: torch.Tensor = self.transform(wav)
        return mel


def check_sizes(name: str, n_fft: int, hop_length: int, win_length: int) -> None:
    """Refuse a hop or a window that is not in 1..n_fft.

    Raises:
        ConfigError: naming the three.
    """
    if not (0 < hop_length <= n_fft and 0 < win_length <= n_fft):
        raise ConfigError(
            f"{name}: n_fft={n_fft}, hop_length={hop_length}, win_length={win_length}; "
            "hop and window must be above 0 and at most n_fft."
        )
