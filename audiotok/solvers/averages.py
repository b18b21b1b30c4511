"""Averages: of metrics over a stage, of weights over training; and the best weights so far."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

State = dict[str, Any]


def to_floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics as Python floats, with one transfer from the device for all tensors."""
    floats = {name: float(value) for name, value in metrics.items() if not isinstance(value, torch.Tensor)}
    tensors = {name: value for name, value in metrics.items() if isinstance(value, torch.Tensor)}
    if tensors:
        stacked = torch.stack([value.detach().float().reshape(()) for value in tensors.values()])
        floats.update(zip(tensors, stacked.tolist(), strict=True))
    return {name: floats[name] for name in metrics}


class MetricAverages:
    """Running means of metrics, each over the steps that reported it."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, metrics: dict[str, float]) -> dict[str, float]:
        """Add the metrics of a step; returns the means so far."""
        for name, value in metrics.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        return self.means()

    def means(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    def state_dict(self) -> State:
        """Sums and counts, for the checkpoint."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: State) -> None:
        """Restore saved sums and counts."""
        self.totals, self.counts = dict(state["totals"]), dict(state["counts"])

    @staticmethod
    def merge(states: Sequence[State]) -> State:
        """Mean of the states of several ranks, for another number of ranks."""
        return {
            part: {name: sum(one[part].get(name, 0.0) for one in states) / len(states) for name in states[0][part]}
            for part in ("totals", "counts")
        }


class WeightEMA:
    """Exponential moving average of the floating-point state of a module, buffers included, on the module's device.

    The average is unbiased: after n updates, update i weighs decay^(n-i), decay in [0, 1), over the sum of those
    weights, so it does not remember the initialisation (Kingma and Ba, 2015, section 3, for the same correction).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.count = 0.0
        self.average = {key: value.clone() for key, value in self._tensors().items()}

    @torch.no_grad()
    def step(self) -> None:
        """Add the current weights to the average."""
        # The sum of all weights so far, so that 1 / count is the share of the newest: at first all, later 1 - decay.
        self.count = self.count * self.decay + 1.0
        current = self._tensors()
        targets = [self.average[key] for key in current]
        torch._foreach_lerp_(targets, list(current.values()), 1.0 / self.count)

    def state_dict(self) -> State:
        """Average and count, for the checkpoint."""
        return {"average": dict(self.average), "count": self.count}

    def load_state_dict(self, state: State) -> None:
        """Restore a saved average."""
        self.count = float(state["count"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)  # in place, and so on the module's device

    def full_state(self) -> State:
        """State dict of the module with the averages in place of its floating-point entries."""
        return {**self.module.state_dict(), **self.average}

    def _tensors(self) -> dict[str, torch.Tensor]:
        state: State = self.module.state_dict()
        return {key: value for key, value in state.items() if value.is_floating_point()}


class BestState:
    """CPU copies of the state of named modules at the best epoch so far."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    def update(self, name: str, state: State) -> None:
        """Keep a copy of `state` as the best one of `name`."""
        self.states[name] = _copy_to_cpu(state)

    def state_dict(self) -> dict[str, State]:
        """The copies, by name."""
        return self.states

    def load_state_dict(self, state: dict[str, State]) -> None:
        """Restore saved copies."""
        self.states = {name: _copy_to_cpu(sub) for name, sub in state.items()}


def _copy_to_cpu(state: State) -> State:
    return {
        key: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else deepcopy(value)
        for key, value in state.items()  # what is no tensor is the extra state of a module
    }
