"""Learning-rate schedules at the points that define them."""

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, StepLR

from audiotok.errors import ConfigError
from audiotok.solvers.schedules import get_lr_scheduler

SETTINGS: dict[str, Any] = {
    "cosine": {"warmup": 10, "lr_min_ratio": 0.1},
    "linear_warmup": {"warmup": 10},
    "inverse_sqrt": {"warmup": 10},
    "polynomial_decay": {"warmup": 10, "end_lr_ratio": 0.2, "power": 2.0},
    "step": {"step_size": 10, "gamma": 0.5},
    "exponential": {"gamma": 0.9},
}


def rates(name: str | None, total: int = 100, **changes: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    settings = {key: dict(value) for key, value in SETTINGS.items()}
    if name in settings:
        settings[name].update(changes)
    scheduler = get_lr_scheduler(optimizer, {"lr_scheduler": name, **settings}, total)
    out = []
    for _ in range(total + 1):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return out


def test_no_schedule_keeps_the_rate() -> None:
    assert set(rates(None)) == {2.0}


@pytest.mark.parametrize("name", ["cosine", "linear_warmup", "inverse_sqrt", "polynomial_decay"])
def test_warmup_is_linear_and_reaches_the_rate(name: str) -> None:
    assert rates(name)[:11] == pytest.approx([2.0 * i / 10 for i in range(11)])


def test_ends_and_middles() -> None:
    assert rates("cosine")[-1] == pytest.approx(0.2)
    assert rates("cosine")[55] == pytest.approx((2.0 + 0.2) / 2)
    assert rates("polynomial_decay")[-1] == pytest.approx(0.4)
    assert rates("polynomial_decay")[55] == pytest.approx(2.0 * (0.2 + 0.8 * 0.25))
    assert rates("inverse_sqrt")[40] == pytest.approx(2.0 * math.sqrt(10 / 40))
    assert rates("linear_warmup")[-1] == 2.0


@pytest.mark.parametrize("name", ["cosine", "step", "exponential"])
def test_same_as_torch_where_torch_has_it(name: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    makers: dict[str, Any] = {
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=100, eta_min=0.2),
        "step": lambda: StepLR(optimizer, 10, 0.5),
        "exponential": lambda: ExponentialLR(optimizer, 0.9),
    }
    theirs = makers[name]()
    changes = {"warmup": 0} if name == "cosine" else {}
    for rate in rates(name, **changes):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("plateau", {}, "choose one of"),
        ("cosine", {"warmup": 1000}, "warmup=1000"),
        ("cosine", {"warmup": -1}, "warmup=-1"),
        ("inverse_sqrt", {"warmup": 0}, "at least 1"),
        ("step", {"step_size": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rates(name, **changes)
