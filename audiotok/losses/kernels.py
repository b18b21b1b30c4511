"""Gaussian kernels between two sets of samples: squared MMD estimates and the median heuristic for the width.

Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, Lemma 6 and section 8.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

ESTIMATORS = ("clips", "samples", "unbiased")
MEDIAN_SAMPLES = 1024
ROW_BLOCK = 256
_MINIMAL_SIGMA = 1e-8


def squared_mmd(
    x: torch.Tensor,
    y: torch.Tensor,
    sigmas: Sequence[float],
    estimator: str = "unbiased",
    n_clips: int | None = None,
    row_block: int = ROW_BLOCK,
) -> torch.Tensor:
    """Squared MMD between two sets of N samples under k(u, v) = sum over a of exp(-|u - v|^2 / (2 a)).

    With S the sums of k over all N^2 pairs, W widths and B clips:

    - 'samples': (Sxx + Syy - 2 Sxy) / N^2, never negative, biased by about 2 k(0) / N;
    - 'unbiased': (Sxx - W N) / (N (N-1)) + (Syy - W N) / (N (N-1)) - 2 Sxy / N^2, may be negative;
    - 'clips': (Sxx - W B) / (B (B-1)) + (Syy - W B) / (B (B-1)) - 2 Sxy / B^2, then clamped at 0.

    Args:
        x: samples of one law.
        y: as many samples of the other.
        sigmas: kernel widths a.
        estimator: one of ESTIMATORS.
        n_clips: B, needed by 'clips' only.
        row_block: rows of a kernel matrix held at once.

    Shape:
        x [N, F], y [N, F] -> scalar, which can be differentiated once.
    """
    assert x.shape == y.shape and x.dim() == 2
    n, diagonal = len(x), len(sigmas) * len(x)
    xx = _kernel_sum(x, None, sigmas, row_block)
    yy = _kernel_sum(y, None, sigmas, row_block)
    xy = _kernel_sum(x, y, sigmas, row_block)
    if estimator == "unbiased":
        return (xx + yy) / (n * (n - 1)) - 2 * xy / n**2
    if estimator == "samples":
        return (xx + yy + 2 * diagonal - 2 * xy) / n**2
    assert estimator == "clips" and n_clips is not None
    excess = diagonal - len(sigmas) * n_clips
    return ((xx + yy + 2 * excess) / (n_clips * (n_clips - 1)) - 2 * xy / n_clips**2).clamp(min=0)


def median_sigma(x: torch.Tensor) -> float:
    """Kernel width by the median heuristic: a = median of |x_i - x_j|^2 over pairs i < j.

    Taken on the rows 0, s, 2 s, … of x [N, F] with s = ceil(N / 1024), so on at most 1024 samples; the kernel
    is then exp(-1/2) at the median distance. An even number of pairs takes the mean of the two middle ones.
    It is a plain number: no gradient flows through it.
    """
    strided = x.detach()[:: math.ceil(len(x) / MEDIAN_SAMPLES)]
    distances, _ = nn.functional.pdist(strided).square().sort()
    middle = (distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
    return max(float(middle), _MINIMAL_SIGMA)


def _kernel_sum(x: torch.Tensor, y: torch.Tensor | None, sigmas: Sequence[float], row_block: int) -> torch.Tensor:
    total: torch.Tensor = _KernelSum.apply(x, y, sigmas, row_block)  # type: ignore[no-untyped-call]
    return total


class _KernelSum(torch.autograd.Function):
    """Sum of the kernel over the pairs (x_i, y_j), or over i != j of x with itself when y is None.

    The gradient of exp(-|u - v|^2 / (2 a)) with respect to u is (v - u) / a times the kernel, so that the
    forward pass makes it on the way, block by block, and no kernel matrix outlives its block.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor | None, sigmas: Sequence[float], row_block: int
    ) -> torch.Tensor:
        other = x if y is None else y
        wants_x, wants_y = ctx.needs_input_grad[:2]
        grad_x = torch.zeros_like(x) if wants_x else None
        grad_y = torch.zeros_like(other) if wants_y else None
        total = x.new_zeros(())
        for start in range(0, len(x), row_block):
            block = slice(start, start + row_block)
            kernel, slope = _block(x[block], other, sigmas, diagonal=start if y is None else None)
            total += kernel.sum()
            if grad_x is not None:
                grad_x[block] = slope @ other - slope.sum(1, keepdim=True) * x[block]
            if grad_y is not None:
                grad_y += slope.T @ x[block] - slope.sum(0)[:, None] * other
        if y is None and grad_x is not None:
            grad_x *= 2  # x is on both sides of a symmetric kernel
        ctx.save_for_backward(grad_x, grad_y)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_x, grad_y = ctx.saved_tensors
        return None if grad_x is None else grad * grad_x, None if grad_y is None else grad * grad_y, None, None


def _block(
    rows: torch.Tensor, others: torch.Tensor, sigmas: Sequence[float], diagonal: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kernel between rows and others, and the sum over a of its terms divided by a.

    With diagonal set, row i is the same sample as number diagonal + i of the others, and that pair counts 0.
    """
    squared = (rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * rows @ others.T).clamp_(min=0)
    if diagonal is not None:
        squared.diagonal(diagonal).fill_(math.inf)
    kernel, slope = torch.zeros_like(squared), torch.zeros_like(squared)
    for a in sigmas:
        term = (squared * (-0.5 / a)).exp_()
        kernel += term
        slope.add_(term, alpha=1 / a)
    return kernel, slope
