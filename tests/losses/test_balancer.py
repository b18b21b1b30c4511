"""The balancer against its formula worked out by hand in NumPy."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audiotok.errors import CheckpointError, ConfigError, DivergedError
from audiotok.losses import Balancer

Array = NDArray[np.float64]


def draw(seed: int) -> dict[str, torch.Tensor]:
    """Gradients of two linear losses, [4, 1, 5], of different size per batch item and step."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None] * (1 + seed)
    noise = torch.randn(2, 4, 1, 5, generator=generator, dtype=torch.float64)
    return {"a": noise[0] * sizes, "b": 100 * noise[1]}


def step(balancer: Balancer, slopes: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the input and effective loss, for losses <slope, output> of output = 2 * input + 1."""
    model_input = torch.zeros(4, 1, 5, dtype=torch.float64, requires_grad=True)
    output = 2 * model_input + 1
    losses = {name: (slope * output).sum() for name, slope in slopes.items()}
    effective = balancer.backward(losses, output)
    assert model_input.grad is not None
    return model_input.grad, effective


def norm(slope: torch.Tensor, per_batch_item: bool) -> float:
    rows = slope.reshape(4, -1).numpy()
    return float(np.sqrt((rows**2).sum(1)).mean() if per_batch_item else np.sqrt((rows**2).sum()))


@pytest.mark.parametrize("per_batch_item", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.999, 1.0])
def test_three_steps_follow_the_formula(per_batch_item: bool, decay: float) -> None:
    weights, total_norm = {"a": 3.0, "b": 1.0}, 0.7
    balancer = Balancer(weights, total_norm=total_norm, ema_decay=decay, per_batch_item=per_batch_item)
    history: dict[str, list[float]] = {"a": [], "b": []}
    for index in range(3):
        slopes = draw(index)
        gradient, effective = step(balancer, slopes)
        wanted, wanted_loss = torch.zeros(4, 1, 5, dtype=torch.float64), 0.0
        for name, slope in slopes.items():
            history[name].append(norm(slope, per_batch_item))
            powers = [decay**age for age in range(index, -1, -1)]
            average = sum(p * n for p, n in zip(powers, history[name], strict=True)) / sum(powers)
            scale = total_norm * weights[name] / 4 / average
            wanted += scale * slope
            wanted_loss += scale * slope.sum().item()
        torch.testing.assert_close(gradient, 2 * wanted)
        assert effective.item() == pytest.approx(wanted_loss)
        assert not effective.requires_grad


def test_scale_of_a_loss_does_not_matter() -> None:
    slopes = draw(0)
    louder = {"a": slopes["a"] * 1e4, "b": slopes["b"]}
    weights = {"a": 1.0, "b": 2.0}
    torch.testing.assert_close(step(Balancer(weights), slopes)[0], step(Balancer(weights), louder)[0])


def test_without_balancing_it_is_the_weighted_sum() -> None:
    slopes = draw(1)
    gradient, effective = step(Balancer({"a": 3.0, "b": 0.1}, balance_grads=False), slopes)
    wanted = 3 * slopes["a"] + 0.1 * slopes["b"]
    torch.testing.assert_close(gradient, 2 * wanted)
    assert effective.item() == pytest.approx(wanted.sum().item())


def test_monitor_reports_shares_of_the_norms() -> None:
    slopes = draw(2)
    balancer = Balancer({"a": 1.0, "b": 5.0}, monitor=True)
    assert balancer.metrics == {}
    step(balancer, slopes)
    norms = {name: norm(slope, True) for name, slope in slopes.items()}
    assert balancer.metrics == pytest.approx({f"ratio_{k}": v / sum(norms.values()) for k, v in norms.items()})


def test_losses_of_weight_zero_or_left_out_change_nothing() -> None:
    slopes = draw(3)
    alone = step(Balancer({"a": 2.0}), {"a": slopes["a"]})
    silent = step(Balancer({"a": 2.0, "b": 0.0}), slopes)
    absent = step(Balancer({"a": 2.0, "b": 7.0}), {"a": slopes["a"]})
    torch.testing.assert_close(silent, alone)
    torch.testing.assert_close(absent, alone)


def test_a_loss_left_out_of_one_step_keeps_its_average() -> None:
    balancer = Balancer({"a": 1.0, "b": 1.0}, ema_decay=0.5)
    first, second = draw(0), draw(2)
    step(balancer, first)
    step(balancer, {"a": second["a"]})
    gradient, _ = step(balancer, {"b": second["b"]})
    average = (0.5 * norm(first["b"], True) + norm(second["b"], True)) / 1.5
    torch.testing.assert_close(gradient, 2 * second["b"] / average)


def test_a_resumed_run_goes_on_exactly() -> None:
    weights = {"a": 3.0, "b": 1.0}
    whole = Balancer(weights)
    for index in range(4):
        step(whole, draw(index))
    first, resumed = Balancer(weights), Balancer(weights)
    for index in range(2):
        step(first, draw(index))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for index in range(2, 4):
        step(resumed, draw(index))
    assert resumed.state_dict() == whole.state_dict()
    assert torch.equal(step(resumed, draw(4))[0], step(whole, draw(4))[0])


def test_a_foreign_state_is_refused() -> None:
    for state in ({}, {"totals": {"a": 1.0}}, {"totals": {"a": 1.0}, "counts": {}}):
        with pytest.raises(CheckpointError, match="expected totals and counts"):
            Balancer({"a": 1.0}).load_state_dict(state)


@pytest.mark.parametrize(
    "bad",
    [
        {"weights": {"a": -1.0}},
        {"weights": {"a": math.nan}},
        {"total_norm": 0.0},
        {"ema_decay": 0.0},
        {"ema_decay": 1.1},
    ],
)
def test_unusable_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Balancer(**{"weights": {"a": 1.0}, **bad})


def test_losses_that_cannot_be_weighed_are_refused() -> None:
    slopes = draw(0)
    with pytest.raises(ConfigError, match=r"\['b'\] have no weight; weighted are: a"):
        step(Balancer({"a": 1.0}), slopes)
    with pytest.raises(ConfigError, match="sum to 0"):
        step(Balancer({"a": 0.0, "b": 0.0}), slopes)
    output = torch.ones(2, 1, 3, requires_grad=True) * 2
    for stranger in (torch.tensor(1.0), torch.ones(1, requires_grad=True).sum()):
        with pytest.raises(ConfigError, match="'a' does not depend"):
            Balancer({"a": 1.0}).backward({"a": stranger}, output)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    slopes = draw(0)
    slopes["b"][0, 0, 0] = math.inf
    with pytest.raises(DivergedError, match=r"gradients of \['b'\]"):
        step(Balancer({"a": 1.0, "b": 1.0}), slopes)


def test_a_penalty_adds_its_own_gradient_in_the_same_pass() -> None:
    def gradients(together: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        first, second = (
            torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
        )
        hidden = torch.tanh(torch.randn(3, 4, generator=generator, dtype=torch.float64) @ first)
        output, penalty = hidden @ second, hidden.square().mean()
        losses = {"a": output.square().mean(), "b": output.abs().mean()}
        if not together:
            penalty.backward(retain_graph=True)
        Balancer({"a": 1.0, "b": 2.0}).backward(losses, output, penalty if together else None)
        return [weight.grad for weight in (first, second) if weight.grad is not None]

    apart = gradients(together=False)
    assert len(apart) == 2
    torch.testing.assert_close(gradients(together=True), apart, rtol=1e-12, atol=1e-14)
