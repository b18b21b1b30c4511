"""Gaussian kernels between two sets of samples: squared MMD estimates and the median heuristic for the width.

Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, Lemma 6 and section 8.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

ESTIMATORS = ("clips", "samples", "unbiased")
MEDIAN_SAMPLES = 1024
ROW_BLOCK = 512
_MINIMAL_SIGMA = 1e-8


def squared_mmd(
    x: torch.Tensor,
    y: torch.Tensor,
    sigmas: Sequence[float | torch.Tensor],
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
        x: samples of one law, [N, F].
        y: samples of the other, [N, F].
        sigmas: kernel widths a.
        estimator: one of ESTIMATORS.
        n_clips: B, needed by 'clips' only.
        row_block: rows of a kernel matrix held at once.
    """
    assert x.shape == y.shape and x.dim() == 2
    n, diagonal = len(x), len(sigmas) * len(x)
    xx = _kernel_sum(x, x, sigmas, row_block, skip_diagonal=True)
    yy = _kernel_sum(y, y, sigmas, row_block, skip_diagonal=True)
    xy = _kernel_sum(x, y, sigmas, row_block, skip_diagonal=False)
    if estimator == "unbiased":
        return (xx + yy) / (n * (n - 1)) - 2 * xy / n**2
    if estimator == "samples":
        return (xx + yy + 2 * diagonal - 2 * xy) / n**2
    assert estimator == "clips" and n_clips is not None
    excess = diagonal - len(sigmas) * n_clips
    return ((xx + yy + 2 * excess) / (n_clips * (n_clips - 1)) - 2 * xy / n_clips**2).clamp(min=0)


def median_sigma(x: torch.Tensor) -> torch.Tensor:
    """Kernel width by the median heuristic: a = median of |x_i - x_j|^2 over pairs i < j, without gradient.

    Taken on the rows 0, s, 2 s, … of x [N, F] with s = ceil(N / 1024), so on at most 1024 samples; the kernel
    is then exp(-1/2) at the median distance. An even number of pairs takes the mean of the two middle ones.
    """
    strided = x.detach()[:: math.ceil(len(x) / MEDIAN_SAMPLES)]
    distances, _ = nn.functional.pdist(strided).square().sort()
    middle = (distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
    return middle.clamp(min=_MINIMAL_SIGMA)


def _kernel_sum(
    x: torch.Tensor,
    y: torch.Tensor,
    sigmas: Sequence[float | torch.Tensor],
    row_block: int,
    skip_diagonal: bool,
) -> torch.Tensor:
    """Sum of the kernel over pairs (x_i, y_j), without i = j if asked: those are known exactly."""
    total = x.new_zeros(())
    for start in range(0, len(x), row_block):
        rows = x[start : start + row_block]
        diagonal = start if skip_diagonal else None
        total = total + checkpoint(
            _block_sum, rows, y, sigmas, diagonal, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _block_sum(
    rows: torch.Tensor, y: torch.Tensor, sigmas: Sequence[float | torch.Tensor], diagonal: int | None
) -> torch.Tensor:
    squared = rows.square().sum(1)[:, None] + y.square().sum(1) - 2 * rows @ y.T
    squared = squared.clamp(min=0)
    if diagonal is not None:
        index = torch.arange(len(y), device=y.device)
        same = index[diagonal : diagonal + len(rows), None] == index
        squared = squared.masked_fill(same, math.inf)
    return torch.stack([torch.exp(squared * (-0.5 / a)).sum() for a in sigmas]).sum()
