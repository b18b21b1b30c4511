"""Adversarial training: discriminators, their losses and their updates."""

from audiotok.adversarial.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from audiotok.adversarial.losses import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    FeatureMatchingLoss,
    get_adv_criterion,
    get_fake_criterion,
    get_real_criterion,
)

__all__ = [
    "ADVERSARIAL_LOSSES",
    "AdversarialLoss",
    "FeatureMatchingLoss",
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "get_adv_criterion",
    "get_fake_criterion",
    "get_real_criterion",
]
