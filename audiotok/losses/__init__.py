"""Training losses: reconstruction, independence of the codebooks, and the balancer that weighs them.

Losses on signals take keyword arguments only, `loss(estimate=..., reference=...)`, both [B, C, T].
"""

from audiotok.losses.balancer import Balancer
from audiotok.losses.mmd import MMDLoss
from audiotok.losses.spectral import MelSpectrogramL1Loss, MRSTFTLoss, MultiScaleMelSpectrogramLoss
from audiotok.losses.waveform import L1Loss, L2Loss, SISNRLoss

__all__ = [
    "Balancer",
    "L1Loss",
    "L2Loss",
    "MMDLoss",
    "MRSTFTLoss",
    "MelSpectrogramL1Loss",
    "MultiScaleMelSpectrogramLoss",
    "SISNRLoss",
]
