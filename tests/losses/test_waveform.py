"""Sample-wise losses and the check that all pair losses share."""

import pytest
import torch
from torch import nn

from audiotok.errors import DataError
from audiotok.losses import (
    L1Loss,
    L2Loss,
    MelSpectrogramL1Loss,
    MRSTFTLoss,
    MultiScaleMelSpectrogramLoss,
    SISNRLoss,
)

PAIR_LOSSES = [
    L1Loss(),
    L2Loss(),
    MelSpectrogramL1Loss(16000),
    MultiScaleMelSpectrogramLoss(16000),
    MRSTFTLoss(),
    SISNRLoss(16000),
]


def test_values_by_hand() -> None:
    estimate, reference = torch.tensor([[[1.0, -2.0, 4.0]]]), torch.tensor([[[0.0, 2.0, 3.0]]])
    assert L1Loss()(estimate=estimate, reference=reference).item() == pytest.approx((1 + 4 + 1) / 3)
    assert L2Loss()(estimate=estimate, reference=reference).item() == pytest.approx((1 + 16 + 1) / 3)


@pytest.mark.parametrize("loss", PAIR_LOSSES, ids=lambda loss: type(loss).__name__)
def test_pairs_of_different_or_wrong_shape_are_refused(loss: nn.Module) -> None:
    wav = torch.zeros(2, 1, 4000)
    for other in (wav[..., :-1], wav[:1], wav[:, 0]):
        with pytest.raises(DataError, match=r"estimate is \[.*\] and reference \[2, 1, 4000\].*\[B, C, T\]"):
            loss(estimate=other, reference=wav)
    with pytest.raises(DataError, match="hold samples"):
        loss(estimate=wav[..., :0], reference=wav[..., :0])


@pytest.mark.parametrize("loss", PAIR_LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_closer_estimate_has_a_lower_loss_and_a_gradient(loss: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 2, 2, 4000, generator=generator) * 0.2
    values = []
    for level in (0.0, 0.05, 0.5):
        estimate = (reference + level * noise).requires_grad_()
        value = loss(estimate=estimate, reference=reference)
        (gradient,) = torch.autograd.grad(value, estimate)
        assert value.dim() == 0 and torch.isfinite(gradient).all()
        values.append(value.item())
    assert values[0] < values[1] < values[2]
    if not isinstance(loss, SISNRLoss):
        assert values[0] == 0
