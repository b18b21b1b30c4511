"""Learning-rate schedules: functions from the index of the update to a factor on the base rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from audiotok.errors import ConfigError


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
    if name not in _FACTORS:
        raise ConfigError(f"schedule.lr_scheduler={name!r}; choose one of: null, {', '.join(_FACTORS)}")
    settings = dict(cfg[name])
    warmup = settings.get("warmup", 0)  # step and exponential have none
    if warmup < 0 or warmup > total_updates:
        raise ConfigError(
            f"schedule.{name}.warmup={warmup} updates, of {total_updates} in all; give a number between them"
        )

    def factor(step: int) -> float:
        return rate_factor(cfg, step, total_updates)

    return LambdaLR(optimizer, factor)  # which calls it for update 0 at once: what settings raise, they raise here


def set_rates(scheduler: LambdaLR) -> None:
    """Set the rates of its optimiser to those of its step, after a checkpoint that may be of another horizon."""
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    rates = [base * factor(scheduler.last_epoch) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def rate_factor(cfg: Mapping[str, Any], step: int, total_updates: int) -> float:
    """Factor on the base rate at an update; as `get_lr_scheduler`, 1 for a constant rate."""
    name = cfg["lr_scheduler"]
    if name not in _FACTORS:
        return 1.0
    settings = dict(cfg[name])
    warmup = settings.get("warmup", 0)
    return step / warmup if step < warmup else _FACTORS[name](step, total_updates, **settings)


def _cosine(step: int, total: int, warmup: int, lr_min_ratio: float) -> float:
    """Half a cosine from 1 down to `lr_min_ratio`."""
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lr_min_ratio + (1 - lr_min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def _inverse_sqrt(step: int, total: int, warmup: int) -> float:
    """Proportional to one over the square root of the update (Vaswani et al., 2017)."""
    if warmup < 1:
        raise ConfigError(f"schedule.inverse_sqrt.warmup={warmup}; give at least 1 update")
    return math.sqrt(warmup / step)


def _polynomial_decay(step: int, total: int, warmup: int, end_lr_ratio: float, power: float) -> float:
    """A polynomial from 1 down to `end_lr_ratio`."""
    left = max(1 - (step - warmup) / max(total - warmup, 1), 0.0)
    return float(end_lr_ratio + (1 - end_lr_ratio) * left**power)


def _step(step: int, total: int, step_size: int, gamma: float) -> float:
    """Times `gamma` every `step_size` updates."""
    if step_size < 1:
        raise ConfigError(f"schedule.step.step_size={step_size}; give at least 1 update")
    return float(gamma ** (step // step_size))


_FACTORS: dict[str, Callable[..., float]] = {  # after the warm-up, which is linear
    "cosine": _cosine,
    "linear_warmup": lambda step, total, warmup: 1.0,
    "inverse_sqrt": _inverse_sqrt,
    "polynomial_decay": _polynomial_decay,
    "step": _step,
    "exponential": lambda step, total, gamma: float(gamma**step),
}
