"""Adversarial training: the discriminators' own step and what they contribute to the generator's loss.

Sources: Lim and Ye, "Geometric GAN", 2017 (hinge); Mao et al., "Least Squares GAN", ICCV 2017 (mse); Kumar et
al., "MelGAN", NeurIPS 2019 (feature matching).
"""

from collections.abc import Callable
from typing import Any

import flashy
import torch
from torch import nn
from torch.nn import functional as F

from audiotok.adversarial.discriminators import FeatureMaps
from audiotok.errors import CheckpointError, ConfigError
from audiotok.integrity import misfit_of_moments
from audiotok.losses.waveform import check_pair

Criterion = Callable[[torch.Tensor], torch.Tensor]
_CRITERIA: dict[str, tuple[Criterion, Criterion, Criterion]] = {  # generator on fake; adversary on fake, on real logits
    "mse": (lambda x: (x - 1).square().mean(), lambda x: x.square().mean(), lambda x: (x - 1).square().mean()),
    "hinge": (lambda x: -x.mean(), lambda x: F.relu(1 + x).mean(), lambda x: F.relu(1 - x).mean()),
    "hinge2": (lambda x: F.relu(1 - x).mean(), lambda x: F.relu(1 + x).mean(), lambda x: F.relu(1 - x).mean()),
}
ADVERSARIAL_LOSSES = tuple(_CRITERIA)


class FeatureMatchingLoss(nn.Module):
    """Distance between two lists of feature maps of one discriminator, on fake and on real signals; lower is better.

    Args:
        loss: distance between two maps of the same shape; mean absolute difference when None.
        normalize: average over the maps rather than sum.
    """

    def __init__(self, loss: nn.Module | None = None, normalize: bool = True) -> None:
        super().__init__()
        self.loss = nn.L1Loss() if loss is None else loss
        self.normalize = normalize

    def forward(self, *, fake: FeatureMaps, real: FeatureMaps) -> torch.Tensor:
        """Return the distance."""
        assert len(fake) == len(real) > 0
        distances = torch.stack([self.loss(a, b) for a, b in zip(fake, real, strict=True)])
        return distances.mean() if self.normalize else distances.sum()


class AdversarialLoss(nn.Module):
    """One adversary with its optimizer, the loss that trains it, and its scores of the generator.

    Per step, call `adversary_loss` (to update the adversary by) and the module itself (the generator's losses). The
    state dict holds the optimizer's state next to the adversary's, as plain containers of tensors and numbers.

    Args:
        adversary: maps [B, C, T] to (logits, feature maps), see `DiscriminatorOutput`; broadcast from rank 0 here.
        optimizer: over the adversary's parameters.
        loss: criterion of the generator, on the logits of fake signals.
        loss_real, loss_fake: criteria of the adversary, on the logits of real and of fake signals.
        loss_feat: feature matching, on the maps of one sub-discriminator; None leaves it out (0).
        normalize: average over the sub-discriminators rather than sum.
    """

    def __init__(
        self,
        adversary: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Criterion,
        loss_real: Criterion,
        loss_fake: Criterion,
        loss_feat: FeatureMatchingLoss | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.adversary = adversary
        flashy.distrib.broadcast_model(adversary)
        self.optimizer = optimizer
        self.loss = loss
        self.loss_real = loss_real
        self.loss_fake = loss_fake
        self.loss_feat = loss_feat
        self.normalize = normalize

    def adversary_loss(self, *, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Loss of the adversary on fake and real signals [B, C, T], with its graph; DataError if the shapes differ."""
        check_pair(fake, real)
        # Detached: this step must leave no gradient in the codec, and frees its own graph.
        logits_fake, _ = self.adversary(fake.detach())
        logits_real, _ = self.adversary(real.detach())
        pairs = zip(logits_fake, logits_real, strict=True)
        return self._reduce([self.loss_fake(f) + self.loss_real(r) for f, r in pairs])

    def forward(self, *, fake: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (adversarial loss, feature matching loss) of the generator for signals [B, C, T].

        Gradient flows to `fake` only; DataError if the shapes differ.
        """
        check_pair(fake, real)
        # The parameters are frozen while the graph is made, else its backward would add to the adversary's gradients.
        with flashy.utils.readonly(self.adversary):
            logits, maps_fake = self.adversary(fake)
            adv = self._reduce([self.loss(logit) for logit in logits])
            if self.loss_feat is None:
                return adv, torch.zeros_like(adv)
            with torch.no_grad():
                _, maps_real = self.adversary(real)
            pairs = zip(maps_fake, maps_real, strict=True)
            return adv, self._reduce([self.loss_feat(fake=f, real=r) for f, r in pairs])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizer's state for `state_dict`."""
        return {"optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: Any) -> None:
        """Restore the optimizer; CheckpointError if the state holds none, or one over other parameters."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"adversary state does not fit its optimizer: {error}.") from error
        if found := misfit_of_moments(self.optimizer):
            raise CheckpointError(f"adversary state does not fit its optimizer: {found}.")

    def _reduce(self, losses: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(losses)
        return stacked.mean() if self.normalize else stacked.sum()


def get_adv_criterion(name: str) -> Criterion:
    """Generator's criterion on fake logits, a mean: mse (x-1)^2, hinge -x, hinge2 max(0, 1-x); ConfigError else."""
    return _criteria(name)[0]


def get_fake_criterion(name: str) -> Criterion:
    """Adversary's criterion on fake logits, a mean: mse x^2, hinge and hinge2 max(0, 1+x); ConfigError else."""
    return _criteria(name)[1]


def get_real_criterion(name: str) -> Criterion:
    """Adversary's criterion on real logits, a mean: mse (x-1)^2, hinge and hinge2 max(0, 1-x); ConfigError else."""
    return _criteria(name)[2]


def _criteria(name: str) -> tuple[Criterion, Criterion, Criterion]:
    if name not in _CRITERIA:
        raise ConfigError(f"adversarial.adv_loss={name!r}; choose one of: {', '.join(ADVERSARIAL_LOSSES)}.")
    return _CRITERIA[name]
