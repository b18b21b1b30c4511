"""Scale-invariant signal-to-noise ratio as a loss, over overlapping segments.

Source: Luo and Mesgarani, "TasNet", ICASSP 2018 (definition); EnCodec's training code (segments, epsilon).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from audiotok.errors import ConfigError
from audiotok.losses.pairs import check_pair

FLOAT32_EPSILON = torch.finfo(torch.float32).eps


class SISNRLoss(nn.Module):
    """Minus the SI-SNR in dB: lower is better, negative once training goes well.

    With s the reference and e the estimate of one segment, both centred, and p = (<e, s> / |s|^2) s:
    SI-SNR = 10 log10(|p|^2 / |e - p|^2), every energy raised by epsilon times the segment's length. Segments
    start every `segment * (1 - overlap)` seconds; those that reach beyond the end are filled with zeros. The
    loss is the mean over clips, channels and all segments, the filled ones included, as in the reference
    implementation.

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
        self,
        sample_rate: int = 16000,
        segment: float | None = 20.0,
        overlap: float = 0.5,
        epsilon: float = FLOAT32_EPSILON,
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
        s, e = _segments(reference, frame, stride), _segments(estimate, frame, stride)
        s, e = s - s.mean(-1, keepdim=True), e - e.mean(-1, keepdim=True)
        floor = self.epsilon * frame
        p = (e * s).sum(-1, keepdim=True) / (floor + s.square().sum(-1, keepdim=True)) * s
        signal, noise = p.square().sum(-1), (e - p).square().sum(-1)
        return -10 * (torch.log10(floor + signal) - torch.log10(floor + noise)).mean()


def _segments(wav: torch.Tensor, frame: int, stride: int) -> torch.Tensor:
    """Cut [B, C, T] into [B, C, ceil(T / stride), frame], filling the end with zeros."""
    count = math.ceil(wav.shape[-1] / stride)
    missing = (count - 1) * stride + frame - wav.shape[-1]
    return F.pad(wav, (0, missing)).unfold(-1, frame, stride)
