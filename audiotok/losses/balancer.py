"""Combine losses by the size of their gradients at the model's output rather than by their values.

Source: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, section 3.4.
"""

import math
from collections.abc import Mapping
from typing import Any

import flashy
import torch

from audiotok.errors import CheckpointError, ConfigError, DivergedError


class Balancer:
    """Sends one balanced gradient into the model for several losses of its output.

    With g_i the gradient of loss i at the output, w_i its weight and |g_i| averaged over steps and ranks,

        G = sum_i total_norm * w_i / sum_j(w_j) * g_i / (epsilon + average |g_i|)

    so a weight is the share of the gradient its loss contributes, whatever the scale of its values. Sums run
    over the losses of the call that have a weight above 0. The average is an exponential one, corrected for
    its start: sum_t decay^t |g|_t / sum_t decay^t, with t counted backwards from now.

    Approximations: norms of ranks are averaged as they are, not their squares; and the norm of the sum is taken for the
    sum of the norms, which holds only when gradients are aligned.

    Args:
        weights: of each loss, >= 0; a loss of weight 0 is left alone.
        balance_grads: if False, G is the plain weighted sum of the gradients.
        total_norm: norm G is aimed at, > 0.
        ema_decay: decay of the average in (0, 1]; 1 is a plain average over all steps.
        per_batch_item: take norms per batch item and average them, rather than over the whole batch.
        epsilon: keeps a vanishing gradient finite.
        monitor: fill `metrics` with the share of each loss in the summed norms, as `ratio_NAME`.

    Raises:
        ConfigError: for weights, a norm or a decay outside of the above.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        balance_grads: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
        monitor: bool = False,
    ) -> None:
        self.weights = {name: float(weight) for name, weight in weights.items()}
        bad = {name: w for name, w in self.weights.items() if not (math.isfinite(w) and w >= 0)}
        if bad:
            raise ConfigError(f"loss weights {bad}; a weight must be finite and >= 0.")
        if not (total_norm > 0 and 0 < ema_decay <= 1):
            raise ConfigError(
                f"balancer.total_norm={total_norm}, balancer.ema_decay={ema_decay}; "
                "total_norm must be above 0 and ema_decay in (0, 1]."
            )
        self.balance_grads = balance_grads
        self.total_norm = total_norm
        self.ema_decay = ema_decay
        self.per_batch_item = per_batch_item
        self.epsilon = epsilon
        self.monitor = monitor
        self.metrics: dict[str, float] = {}  # of the last call
        self._totals: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def backward(
        self, losses: Mapping[str, torch.Tensor], output: torch.Tensor, penalty: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Backpropagate the balanced gradient through the model that made `output`.

        Args:
            losses: scalars by name, each depending on the model through `output` only.
            output: what the model returned, with its graph, [B, ...].
            penalty: a scalar whose own gradient is added, not balanced, in the same pass through the model.

        Returns:
            The weighted sum of the loss values with the very weights their gradients got; a detached scalar.

        Raises:
            ConfigError: if a loss has no weight, no loss has a weight above 0, or one does not depend on output.
            DivergedError: if the norm of a gradient is not finite, on any rank.
        """
        active = self._active(losses)
        grads = {name: _gradient(name, loss, output) for name, loss in active.items()}
        norms = self._average_norms({name: self._norm(grad) for name, grad in grads.items()}, len(output))
        share = sum(self.weights[name] for name in active)
        total = torch.zeros_like(output)
        effective = torch.zeros((), device=output.device, dtype=output.dtype)
        for name, grad in grads.items():
            scale = self.weights[name]
            if self.balance_grads:
                scale = self.total_norm * scale / share / (self.epsilon + norms[name])
            total.add_(grad, alpha=scale)
            effective += scale * active[name].detach()  # a value to log: the gradient goes through `total` only
        if self.monitor:
            summed = sum(norms.values()) or 1.0
            self.metrics = {f"ratio_{name}": norm / summed for name, norm in norms.items()}
        if penalty is None:
            output.backward(total)
        else:
            torch.autograd.backward([output, penalty], [total, None])
        return effective

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The running averages, as plain floats: a resumed run continues exactly."""
        return {"totals": dict(self._totals), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; CheckpointError if the state is not of that form."""
        if set(state) != {"totals", "counts"} or set(state["totals"]) != set(state["counts"]):
            raise CheckpointError(
                f"balancer state holds {sorted(state)}; expected totals and counts over the same losses."
            )
        self._totals = {name: float(value) for name, value in state["totals"].items()}
        self._counts = {name: float(value) for name, value in state["counts"].items()}

    def _active(self, losses: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        unknown = sorted(set(losses) - set(self.weights))
        if unknown:
            raise ConfigError(f"losses {unknown} have no weight; weighted are: {', '.join(sorted(self.weights))}.")
        active = {name: loss for name, loss in losses.items() if self.weights[name] > 0}
        if not active:
            raise ConfigError(f"the weights of {sorted(losses)} sum to 0; give one of these losses a weight above 0.")
        return active

    def _norm(self, grad: torch.Tensor) -> torch.Tensor:
        rows = grad.reshape(len(grad), -1) if self.per_batch_item else grad.reshape(1, -1)
        norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms.mean()

    def _average_norms(self, norms: dict[str, torch.Tensor], batch_size: int) -> dict[str, float]:
        values = torch.stack(list(norms.values())).tolist()  # one wait for the device, not one per loss
        for name, value in zip(norms, values, strict=True):
            self._totals[name] = self._totals.get(name, 0.0) * self.ema_decay + value
            self._counts[name] = self._counts.get(name, 0.0) * self.ema_decay + 1
        local = {name: self._totals[name] / self._counts[name] for name in norms}
        count = batch_size if self.per_batch_item else 1
        averaged: dict[str, float] = flashy.distrib.average_metrics(local, count)
        # Only now, so that every rank sees the same thing and none waits for another in the reduction above.
        broken = sorted(name for name, value in averaged.items() if not math.isfinite(value))
        if broken:
            raise DivergedError(f"the gradients of {broken} are not finite; lower the learning rate or check the data.")
        return averaged


def _gradient(name: str, loss: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    # retain_graph: losses may share a graph up to `output`, and the model's own graph is still to be walked.
    grad: torch.Tensor | None = None
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss, [output], retain_graph=True, allow_unused=True)
    if grad is None:
        raise ConfigError(f"loss {name!r} does not depend on the model's output and cannot be balanced.")
    return grad
