"""In which precision networks train, and whether they are compiled; everything around them stays in float32.

A network that was prepared here takes and returns float32. In training it runs under autocast, and with fp16 its
gradient is scaled within: multiplied at its output, divided at its input. Losses, the balancer, the quantiser and the
MMD thus see the same numbers in every precision; only the gradients of the network's parameters are left scaled, for
`Updates` to unscale. Source of the scaling: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LossScale:
    """Factor of the gradients in fp16: halved when they overflow, doubled after `patience` good updates in a row."""

    start, patience = 2.0**16, 2000
    least, most = 2.0**-16, 2.0**24  # below 1: the gradients of an MMD can be large

    def __init__(self) -> None:
        self.value = self.start
        self.good = 0

    def update(self, finite: bool) -> None:
        """Take in whether the gradients of an update were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value = max(self.least, self.value / 2)
        elif self.good == self.patience:
            self.value, self.good = min(self.most, self.value * 2), 0

    def state_dict(self) -> dict[str, float]:
        """Return the factor and the count of good updates."""
        return {"value": self.value, "good": float(self.good)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict`."""
        self.value, self.good = float(state["value"]), int(state["good"])


class Precision:
    """How the networks of a solver run in its train stage; every other stage has plain float32.

    Args:
        name: one of `PRECISIONS`.
        device: where the networks are.
        compiled: whether `prepare` passes them through torch.compile.
        training: whether the solver is within its train stage.

    Raises:
        ConfigError: if there is no compiler for what is to be compiled.
    """

    def __init__(self, name: str, device: torch.device, compiled: bool, training: Callable[[], bool]) -> None:
        if compiled:
            _require_compiler(device)
        self.name, self.device, self.compiled, self.training = name, device, compiled, training
        self.scales: dict[str, LossScale] = {}

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of what autocast casts to; None: no autocast."""
        return PRECISIONS[self.name]

    def new_scale(self, name: str) -> LossScale | None:
        """Scale for one optimiser, by a name in checkpoints; None unless fp16."""
        if self.name != "fp16":
            return None
        self.scales[name] = LossScale()
        return self.scales[name]

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the scales, by name."""
        return {name: scale.state_dict() for name, scale in self.scales.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Restore `state_dict`."""
        for name, scale in self.scales.items():
            scale.load_state_dict(state[name])

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass; for networks that `prepare` has not been given."""
        mixed = self.dtype is not None and self.training()
        return torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed)

    def prepare(self, networks: Iterable[nn.Module], scale: LossScale | None) -> None:
        """Have these networks run as described above; their keys in state dicts do not change."""
        if self.dtype is None and not self.compiled:
            return
        for network in networks:
            network.forward = self._wrapped(network.forward, scale)

    def compile(self, network: nn.Module) -> None:
        """Have a network run compiled in training, if that was chosen, but in the precision that it is called in."""
        if not self.compiled:
            return
        plain = network.forward
        run = _compiled(plain)
        network.forward = lambda *inputs: (run if self.training() else plain)(*inputs)

    def _wrapped(self, plain: Callable[..., Any], scale: LossScale | None) -> Callable[..., Any]:
        run = _compiled(plain) if self.compiled else plain

        def forward(x: Tensor) -> Any:
            if not self.training():
                return plain(x)
            if self.dtype is None:
                return run(x)
            if scale is not None:
                x = _GradientTimes.apply(x, 1 / scale.value)  # type: ignore[no-untyped-call]
            with self.autocast():
                y = run(x)
            return _in_float32(y, scale)

        return forward


def _require_compiler(device: torch.device) -> None:
    """ConfigError without the compiler that torch.compile calls: of C++ for a CPU, of C for a GPU, both Linux's."""
    variable, usual = ("CXX", ("g++", "clang++")) if device.type == "cpu" else ("CC", ("gcc", "clang", "cc"))
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([chosen] if chosen else usual)):
        found = f"{variable}={chosen} is no program" if chosen else f"found none of {', '.join(usual)}"
        raise ConfigError(f"compile=true needs a compiler: {found}; install g++, or give compile=false")


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._functorch.config as functorch

    # Discriminators share their code, with three graphs each: own step, generator's pass, and without gradients.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    functorch.donated_buffer = False  # the balancer walks graphs several times, with what they hold
    # Shapes of a training do not change, but those of one discriminator are not those of the next.
    made: Callable[..., Any] = torch.compile(function, dynamic=False)
    return made


def _in_float32(y: Any, scale: LossScale | None) -> Any:
    """Nested lists and tuples of tensors in float32, their gradients multiplied by the scale."""
    if isinstance(y, Tensor):
        y = y.float()
        return y if scale is None else _GradientTimes.apply(y, scale.value)  # type: ignore[no-untyped-call]
    return type(y)(_in_float32(one, scale) for one in y)


class _GradientTimes(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
