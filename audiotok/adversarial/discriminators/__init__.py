"""Discriminators on waveforms and spectrograms; each maps wav [B, C, T] to (logits, feature maps)."""

from audiotok.adversarial.discriminators.base import DiscriminatorOutput, FeatureMaps, MultiDiscriminator
from audiotok.adversarial.discriminators.mpd import MultiPeriodDiscriminator, PeriodDiscriminator
from audiotok.adversarial.discriminators.msd import MultiScaleDiscriminator, ScaleDiscriminator
from audiotok.adversarial.discriminators.msstftd import DiscriminatorSTFT, MultiScaleSTFTDiscriminator

__all__ = [
    "DiscriminatorOutput",
    "DiscriminatorSTFT",
    "FeatureMaps",
    "MultiDiscriminator",
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "PeriodDiscriminator",
    "ScaleDiscriminator",
]
