"""Trade time for memory: keep a function's arguments instead of its graph, and compute it anew in the backward pass.

`torch.utils.checkpoint` does this and much more, and its first call imports the compiler, which takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Return function(*arguments), which must be deterministic and have one floating point result."""
    result: torch.Tensor = _Recomputed.apply(function, *arguments)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        leaves = [
            argument.detach().requires_grad_(want) for argument, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            result = ctx.function(*leaves)
        gradients = iter(torch.autograd.grad(result, [leaf for leaf in leaves if leaf.requires_grad], outer))
        return None, *(next(gradients) if want else None for want in wanted)
