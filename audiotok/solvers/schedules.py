"""Learning-rate schedules: pure functions from the update index to a factor on the base rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from audiotok.errors import ConfigError

Factor = Callable[[int], float]


def get_lr_scheduler(optimizer: Optimizer, cfg: Mapping[str, Any], total_updates: int) -> LambdaLR | None:
    """Scheduler named by `cfg.lr_scheduler`, stepped once an update; None for a constant rate.

    Args:
        optimizer: whose rates to scale.
        cfg: the `schedule` section of the configuration.
        total_updates: number of updates of the whole training.

    Raises:
        ConfigError: if the name is unknown or a setting cannot be used.
    """
    name = cfg["lr_scheduler"]
    if name is None:
        return None
    if name not in FACTORS:
        raise ConfigError(f"schedule.lr_scheduler={name!r}; choose one of: null, {', '.join(FACTORS)}")
    settings = dict(cfg[name])
    warmup = settings.get("warmup", 0)
    if warmup < 0 or warmup > total_updates:
        raise ConfigError(
            f"schedule.{name}.warmup={warmup} updates, of {total_updates} in all; give a number between them"
        )
    return LambdaLR(optimizer, FACTORS[name](total_updates, **settings))


def cosine(total: int, warmup: int, lr_min_ratio: float) -> Factor:
    """Linear warm-up, then half a cosine from 1 down to `lr_min_ratio`."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return lr_min_ratio + (1 - lr_min_ratio) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def linear_warmup(total: int, warmup: int) -> Factor:
    """Linear warm-up, then constant."""
    return lambda step: min(step / warmup, 1.0) if warmup else 1.0


def inverse_sqrt(total: int, warmup: int) -> Factor:
    """Linear warm-up, then proportional to one over the square root of the update (Vaswani et al., 2017)."""
    if warmup < 1:
        raise ConfigError(f"schedule.inverse_sqrt.warmup={warmup}; give at least 1 update")
    return lambda step: step / warmup if step < warmup else math.sqrt(warmup / step)


def polynomial_decay(total: int, warmup: int, end_lr_ratio: float, power: float) -> Factor:
    """Linear warm-up, then a polynomial from 1 down to `end_lr_ratio`."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        left = max(1 - (step - warmup) / max(total - warmup, 1), 0.0)
        return float(end_lr_ratio + (1 - end_lr_ratio) * left**power)

    return factor


def step_decay(total: int, step_size: int, gamma: float) -> Factor:
    """Times `gamma` every `step_size` updates."""
    if step_size < 1:
        raise ConfigError(f"schedule.step.step_size={step_size}; give at least 1 update")
    return lambda step: float(gamma ** (step // step_size))


def exponential(total: int, gamma: float) -> Factor:
    """Times `gamma` every update."""
    return lambda step: float(gamma**step)


FACTORS: dict[str, Callable[..., Factor]] = {
    "cosine": cosine,
    "linear_warmup": linear_warmup,
    "inverse_sqrt": inverse_sqrt,
    "polynomial_decay": polynomial_decay,
    "step": step_decay,
    "exponential": exponential,
}
