"""Weights beside the ones being trained: their moving average, and the best ones so far."""

from typing import Any

import torch
from torch import nn

State = dict[str, Any]


def copy_to_cpu(state: State) -> State:
    """Detached CPU copy of a state dict, nested dicts included."""
    return {
        key: value.detach().to("cpu", copy=True)
        if isinstance(value, torch.Tensor)
        else copy_to_cpu(value)
        if isinstance(value, dict)
        else value
        for key, value in state.items()
    }


class WeightEMA:
    """Exponential moving average of the floating-point state of a module, buffers included.

    The average is unbiased: after n updates, update i weighs decay^(n-i) over the sum of those weights, so it does not
    remember the initialisation (Kingma and Ba, 2015, section 3, for the same correction).

    Args:
        module: whose state to follow; the average lives on the same device.
        decay: in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.count = 0.0
        self.average = {key: value.clone() for key, value in self._tensors().items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take the current weights into the average."""
        self.count = self.count * self.decay + 1.0
        current = self._tensors()
        targets = [self.average[key] for key in current]
        torch._foreach_lerp_(targets, list(current.values()), 1.0 / self.count)

    def state_dict(self) -> State:
        """Average and count, for the checkpoint."""
        return {"average": dict(self.average), "count": self.count}

    def load_state_dict(self, state: State) -> None:
        """Take over a saved average."""
        self.count = float(state["count"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)

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
        self.states[name] = copy_to_cpu(state)

    def state_dict(self) -> dict[str, State]:
        """The copies, by name."""
        return self.states

    def load_state_dict(self, state: dict[str, State]) -> None:
        """Take over saved copies."""
        self.states = {name: copy_to_cpu(sub) for name, sub in state.items()}
