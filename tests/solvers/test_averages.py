"""Averaged and best weights against a float64 loop."""

import torch
from torch import nn

from audiotok.solvers.averages import BestState, WeightEMA


def test_average_is_the_unbiased_exponential_one() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)  # parameters, floating buffers, and an integer buffer
    ema, decay = WeightEMA(module, decay=0.9), 0.9
    seen: list[torch.Tensor] = []
    for _ in range(7):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3))
            module.running_mean = torch.randn(3)
            seen.append(module.weight.double().clone())
        ema.step()
    weights = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
    weighted = [w * x for w, x in zip(weights, seen, strict=True)]
    expected = torch.stack(weighted).sum(0) / sum(weights)
    assert torch.allclose(ema.average["weight"].double(), expected, atol=1e-6)
    assert "running_mean" in ema.average and "num_batches_tracked" not in ema.average
    assert set(ema.full_state()) == set(module.state_dict())


def test_saved_average_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    one, two = WeightEMA(first, 0.5), WeightEMA(second, 0.5)
    one.step()
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for module, ema in ((first, one), (second, two)):
        with torch.no_grad():
            module.weight.add_(1.0)
        ema.step()
    assert torch.equal(one.average["weight"], two.average["weight"])
    assert one.average["weight"] is not two.average["weight"]


def test_best_state_is_a_copy() -> None:
    module, best = nn.Linear(2, 2), BestState()
    best.update("model", module.state_dict())
    kept = best.states["model"]["weight"].clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(best.state_dict()["model"]["weight"], kept)
    other = BestState()
    other.load_state_dict(best.state_dict())
    best.states["model"]["weight"].zero_()
    assert torch.equal(other.states["model"]["weight"], kept)
