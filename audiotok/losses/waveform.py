"""Losses between waveforms, and the checks that every loss and metric on a pair of signals begins with.

Sources: Luo and Mesgarani, "TasNet", ICASSP 2018 (SI-SNR); EnCodec's training code (its segments and epsilon).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from audiotok.errors import ConfigError, DataError

FLOAT32_EPSILON = torch.finfo(torch.float32).eps


class L1Loss(nn.Module):
    """Mean absolute difference of estimate and reference [B, C, T], a scalar; 0 if identical, lower is better."""

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss; DataError if the shapes differ."""
        check_pair(estimate, reference)
        return F.l1_loss(estimate, reference)


class L2Loss(nn.Module):
    """Mean squared difference of estimate and reference [B, C, T], a scalar; 0 if identical, lower is better."""

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss; DataError if the shapes differ."""
        check_pair(estimate, reference)
        return F.mse_loss(estimate, reference)


class SISNRLoss(nn.Module):
    """Minus the SI-SNR in dB: lower is better, negative once training goes well.

    SI-SNR = 10 log10(|p|^2 / |e - p|^2) of one segment, see `projection_energies`, with every energy raised by epsilon
    times the segment's length. Segments start every `segment * (1 - overlap)` seconds; those that reach beyond the end
    are filled with zeros. The loss is the mean over clips, channels and all segments, the filled ones included, as in
    the reference implementation.

    Args:
        sample_rate: in Hz.
        segment: length of a segment in seconds; None takes the whole signal as one.
        overlap: part of a segment shared with the next one, in [0, 1).
        epsilon: added to energies, per sample; keeps silent segments finite.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.

    Raises:
        ConfigError: for a segment or an overlap that leaves less than one sample per segment or step.
        DataError: if the shapes differ.
    """

    def __init__(
        self, sample_rate: int, segment: float | None = 5.0, overlap: float = 0.5, epsilon: float = FLOAT32_EPSILON
    ) -> None:
        super().__init__()
        self.frame = None if segment is None else int(segment * sample_rate)
        self.stride = None if self.frame is None else int(self.frame * (1 - overlap))
        if not 0 <= overlap < 1 or (self.stride is not None and self.stride < 1):
            raise ConfigError(
                f"sisnr.segment={segment} s, sisnr.overlap={overlap} at {sample_rate} Hz; "
                "overlap must be in [0, 1) and a step between segments at least one sample."
            )
        self.epsilon = epsilon

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return minus the mean SI-SNR in dB."""
        check_pair(estimate, reference)
        length = reference.shape[-1]
        frame, stride = self.frame or length, self.stride or length
        floor = self.epsilon * frame  # epsilon is per sample, energies are sums over the segment
        segments = _segments(estimate, frame, stride), _segments(reference, frame, stride)
        signal, noise = projection_energies(*segments, floor)
        return -10 * (torch.log10(floor + signal) - torch.log10(floor + noise)).mean()


def projection_energies(e: torch.Tensor, s: torch.Tensor, floor: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies |p|^2 and |e - p|^2 of the estimate's projection p = (<e, s> / (floor + |s|^2)) s and of its rest.

    Estimate e [..., T] and reference s [..., T] are centred first; the results are [...].
    """
    s, e = s - s.mean(-1, keepdim=True), e - e.mean(-1, keepdim=True)
    p = (e * s).sum(-1, keepdim=True) / (floor + s.square().sum(-1, keepdim=True)) * s
    return p.square().sum(-1), (e - p).square().sum(-1)


def check_pair(estimate: torch.Tensor, reference: torch.Tensor) -> None:
    """DataError, naming both shapes, unless they are the same [B, C, T] with at least one sample."""
    if estimate.dim() != 3 or estimate.shape != reference.shape or estimate.numel() == 0:
        raise DataError(
            f"estimate is {list(estimate.shape)} and reference {list(reference.shape)}; "
            "both must have the same shape [B, C, T] and hold samples: trim or pad one of them."
        )


def check_length(wav: torch.Tensor, minimum: int, purpose: str) -> None:
    """DataError, naming length, minimum and purpose, for a signal [B, C, T] of fewer than `minimum` samples."""
    if wav.shape[-1] < minimum:
        raise DataError(f"a signal of {wav.shape[-1]} samples is too short; {purpose} needs {minimum} or more.")


def _segments(wav: torch.Tensor, frame: int, stride: int) -> torch.Tensor:
    """Cut [B, C, T] into [B, C, ceil(T / stride), frame], filling the end with zeros."""
    count = math.ceil(wav.shape[-1] / stride)
    missing = (count - 1) * stride + frame - wav.shape[-1]
    return F.pad(wav, (0, missing)).unfold(-1, frame, stride)
