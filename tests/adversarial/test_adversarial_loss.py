"""Criteria by hand, and the adversary's update and state."""

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from audiotok.adversarial import (
    AdversarialLoss,
    FeatureMatchingLoss,
    get_adv_criterion,
    get_fake_criterion,
    get_real_criterion,
)
from audiotok.adversarial.discriminators import DiscriminatorOutput
from audiotok.errors import CheckpointError, ConfigError, DataError


class TwoScales(nn.Module):
    """Two linear judges whose feature maps are the signal times their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, -2.0]))

    def forward(self, wav: torch.Tensor) -> DiscriminatorOutput:
        maps = [wav * weight for weight in self.weights]
        return [m.mean(-1) for m in maps], [[m, m + 1] for m in maps]


def make(name: str = "hinge", normalize: bool = True, feat: bool = True, lr: float = 0.1) -> AdversarialLoss:
    adversary = TwoScales()
    return AdversarialLoss(
        adversary,
        torch.optim.Adam(adversary.parameters(), lr=lr),
        loss=get_adv_criterion(name),
        loss_real=get_real_criterion(name),
        loss_fake=get_fake_criterion(name),
        loss_feat=FeatureMatchingLoss() if feat else None,
        normalize=normalize,
    )


def update(loss: AdversarialLoss, *, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Update the adversary once; its loss before."""
    value = loss.adversary_loss(fake=fake, real=real)
    loss.optimizer.zero_grad()
    value.backward()
    loss.optimizer.step()
    return value.detach()


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fake, real = torch.randn(2, 3, 1, 20, generator=generator)
    return fake, real + 1


@pytest.mark.parametrize(
    ("name", "adv", "fake", "real"),
    [
        ("mse", (9 + 1 + 0.25) / 3, (4 + 0 + 2.25) / 3, (9 + 1 + 0.25) / 3),
        ("hinge", (2 + 0 - 1.5) / 3, (0 + 1 + 2.5) / 3, (3 + 1 + 0) / 3),
        ("hinge2", (3 + 1 + 0) / 3, (0 + 1 + 2.5) / 3, (3 + 1 + 0) / 3),
    ],
)
def test_criteria_by_hand(name: str, adv: float, fake: float, real: float) -> None:
    logits = torch.tensor([-2.0, 0.0, 1.5])
    assert get_adv_criterion(name)(logits).item() == pytest.approx(adv)
    assert get_fake_criterion(name)(logits).item() == pytest.approx(fake)
    assert get_real_criterion(name)(logits).item() == pytest.approx(real)


def test_unknown_criterion_names_the_known_ones() -> None:
    for get in (get_adv_criterion, get_fake_criterion, get_real_criterion):
        with pytest.raises(ConfigError, match="'wgan'; choose one of: mse, hinge, hinge2"):
            get("wgan")


@pytest.mark.parametrize("normalize", [True, False])
def test_feature_matching_by_hand(normalize: bool) -> None:
    fake = [torch.tensor([1.0, 2.0]), torch.tensor([[5.0]])]
    real = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    value = FeatureMatchingLoss(normalize=normalize)(fake=fake, real=real).item()
    assert value == pytest.approx((1.5 + 4) / (2 if normalize else 1))
    squared = FeatureMatchingLoss(nn.MSELoss(), normalize)(fake=fake, real=real).item()
    assert squared == pytest.approx((2.5 + 16) / (2 if normalize else 1))


@pytest.mark.parametrize("normalize", [True, False])
def test_generator_losses_by_hand(normalize: bool) -> None:
    fake, real = draw()
    adv, feat = make("hinge", normalize)(fake=fake, real=real)
    scales = 2 if normalize else 1
    assert adv.item() == pytest.approx(-(0.5 - 2.0) * fake.mean().item() / scales, rel=1e-5)
    assert feat.item() == pytest.approx((0.5 + 2.0) * (fake - real).abs().mean().item() / scales, rel=1e-5)
    assert make(feat=False)(fake=fake, real=real)[1].item() == 0


def test_generator_losses_train_the_generator_alone() -> None:
    loss = make()
    fake, real = draw()
    fake.requires_grad_()
    real.requires_grad_()
    adv, feat = loss(fake=fake, real=real)
    (adv + feat).backward()
    assert fake.grad is not None and fake.grad.abs().min() > 0
    assert real.grad is None
    parameters = list(loss.adversary.parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)


def test_update_is_one_optimizer_step_on_the_adversarys_loss() -> None:
    loss, reference = make("mse"), make("mse")
    fake, real = draw()
    fake.requires_grad_()
    value = update(loss, fake=fake, real=real)
    a, b = fake.detach().mean(-1), real.mean(-1)
    weights = reference.adversary.weights
    assert isinstance(weights, nn.Parameter)
    wanted = sum((w * a).square().mean() + (w * b - 1).square().mean() for w in weights) / 2
    assert isinstance(wanted, torch.Tensor)
    wanted.backward()
    reference.optimizer.step()
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(loss.adversary.state_dict(), reference.adversary.state_dict())
    assert fake.grad is None and not value.requires_grad


def test_updates_tell_fake_from_real() -> None:
    loss = make("hinge", lr=0.05)
    values = [update(loss, fake=draw(seed)[0], real=draw(seed)[1]).item() for seed in range(100)]
    assert values[-1] < 0.7 * values[0]


def test_pairs_of_different_shape_are_refused() -> None:
    loss, (fake, real) = make(), draw()
    with pytest.raises(DataError, match="same shape"):
        loss(fake=fake[..., 1:], real=real)
    with pytest.raises(DataError, match="same shape"):
        update(loss, fake=fake[:1], real=real)


def test_state_resumes_the_optimizer_from_a_safe_file(tmp_path: Path) -> None:
    whole, first, resumed = make(), make(), make()
    for seed in range(4):
        update(whole, fake=draw(seed)[0], real=draw(seed)[1])
    for seed in range(2):
        update(first, fake=draw(seed)[0], real=draw(seed)[1])
    torch.save({"adversaries": nn.ModuleDict({"tiny": first}).state_dict()}, tmp_path / "checkpoint.th")
    state = torch.load(tmp_path / "checkpoint.th", weights_only=True)
    nn.ModuleDict({"tiny": resumed}).load_state_dict(state["adversaries"])
    for seed in range(2, 4):
        update(resumed, fake=draw(seed)[0], real=draw(seed)[1])
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_state_of_another_adversary_is_refused() -> None:
    loss = make()
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    state["_extra_state"]["optimizer"]["param_groups"] = []
    with pytest.raises(CheckpointError, match="does not fit its optimizer"):
        loss.load_state_dict(state)
    state["_extra_state"] = None
    with pytest.raises(CheckpointError, match="does not fit its optimizer"):
        loss.load_state_dict(state)
