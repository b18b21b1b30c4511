"""Scale-invariant signal-to-noise ratio of whole clips.

Source: Luo and Mesgarani, "TasNet", ICASSP 2018; it is the SI-SDR of Le Roux et al., ICASSP 2019, on centred
signals.
"""

import torch

from audiotok.losses.waveform import check_pair

LIMIT_DB = 100.0


def si_snr(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SI-SNR in dB, higher is better.

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
    s, e = reference.double(), estimate.double()
    s, e = s - s.mean(-1, keepdim=True), e - e.mean(-1, keepdim=True)
    p = (e * s).sum(-1, keepdim=True) / s.square().sum(-1, keepdim=True) * s
    signal, noise = p.square().sum(-1), (e - p).square().sum(-1)
    ratio = 10 * (torch.log10(signal) - torch.log10(noise))
    ratio = ratio.masked_fill((signal == 0) & (noise == 0), -LIMIT_DB)
    return ratio.clamp(-LIMIT_DB, LIMIT_DB).mean(-1)
