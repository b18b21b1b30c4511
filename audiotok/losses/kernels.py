"""Gaussian kernels between two sets of samples: squared MMD estimates and the median heuristic for the width.

The N x N kernel matrices are visited in square tiles. One visit gives a tile's share of the sums and of their gradient,
a tile and its mirror image are visited once, and only three tiles are ever held. Random Fourier features do without.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, Lemma 6 and section 8; Rahimi and Recht, "Random
Features for Large-Scale Kernel Machines", NeurIPS 2007.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

ESTIMATORS = ("clips", "samples", "unbiased")
_MEDIAN_SAMPLES = 1024
_ROW_BLOCKS = {"cpu": 1536, "cuda": 4096}  # sides of a tile
RFF_ROWS = 1024
_MINIMAL_SIGMA = 1e-8

Terms = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


def squared_mmd(
    x: torch.Tensor,
    y: torch.Tensor,
    sigmas: Sequence[float],
    estimator: str = "unbiased",
    n_clips: int | None = None,
    row_block: int | None = None,
) -> torch.Tensor:
    """Squared MMD between two sets of N samples under k(u, v) = sum over a of exp(-|u - v|^2 / (2 a)).

    With S the sums of k over all N^2 pairs, W widths and B clips:

    - 'samples': (Sxx + Syy - 2 Sxy) / N^2, never negative, biased by about 2 k(0) / N;
    - 'unbiased': (Sxx - W N) / (N (N-1)) + (Syy - W N) / (N (N-1)) - 2 Sxy / N^2, may be negative;
    - 'clips': (Sxx - W B) / (B (B-1)) + (Syy - W B) / (B (B-1)) - 2 Sxy / B^2, then clamped at 0.

    Args:
        x: samples of one law, [N, F].
        y: as many samples of the other.
        sigmas: kernel widths a.
        estimator: one of ESTIMATORS.
        n_clips: B, needed by 'clips' only.
        row_block: side of a tile; None suits the device.

    Returns:
        A scalar, which can be differentiated once. Half precision is computed in float32.
    """
    n, w = len(x), len(sigmas)
    if estimator == "unbiased":
        value = kernel_sums(x, y, sigmas, 1 / (n * (n - 1)), -2 / n**2, row_block)
    elif estimator == "samples":
        value = (kernel_sums(x, y, sigmas, 1, -2, row_block) + 2 * w * n) / n**2
    else:
        assert estimator == "clips" and n_clips is not None
        b, pairs = n_clips, n_clips * (n_clips - 1)
        value = kernel_sums(x, y, sigmas, 1 / pairs, -2 / b**2, row_block) + 2 * w * (n - b) / pairs
        value = value.clamp(min=0)
    return value.to(x.dtype)


def kernel_sums(
    x: torch.Tensor,
    y: torch.Tensor,
    sigmas: Sequence[float],
    within: float,
    across: float,
    row_block: int | None = None,
) -> torch.Tensor:
    """Scalar within * (Sxx + Syy) + across * Sxy in float64, without pairs i = j in Sxx and Syy; see `squared_mmd`."""
    assert x.shape == y.shape and x.dim() == 2
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    row_block = row_block or _ROW_BLOCKS.get(x.device.type, _ROW_BLOCKS["cpu"])
    differentiate = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    total: torch.Tensor = _KernelSums.apply(  # type: ignore[no-untyped-call]
        x, y, sorted(sigmas, reverse=True), within, across, row_block, differentiate
    )
    return total


def pair_sum(
    x: torch.Tensor, y: torch.Tensor, i: torch.Tensor, j: torch.Tensor, sigmas: Sequence[float]
) -> torch.Tensor:
    """Return the sum over p of k(x[i_p], y[j_p]) in float64, computed anew in the backward pass."""

    def summed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squared = (x.index_select(0, i) - y.index_select(0, j)).square().sum(1).double()
        return torch.stack([(squared * (-0.5 / a)).exp().sum() for a in sigmas]).sum()

    return _recomputed(summed, x, y)


def median_sigma(x: torch.Tensor) -> float:
    """Kernel width by the median heuristic: a = median of |x_i - x_j|^2 over pairs i < j.

    Taken on the rows 0, s, 2 s, … of x [N, F] with s = ceil(N / 1024), so on at most 1024 samples; the kernel
    is then exp(-1/2) at the median distance. An even number of pairs takes the mean of the two middle ones.
    It is a plain number: no gradient flows through it.
    """
    strided = x.detach()[:: math.ceil(len(x) / _MEDIAN_SAMPLES)]
    distances, _ = nn.functional.pdist(strided).square().sort()
    middle = (distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
    return max(float(middle), _MINIMAL_SIGMA)


def squared_mmd_rff(
    x: torch.Tensor, y: torch.Tensor, sigmas: Sequence[float], num_features: int, seed: int
) -> torch.Tensor:
    """Estimate what `squared_mmd` with 'unbiased' gives, a scalar; on average over seeds it is exactly that.

    A Gaussian kernel is the mean of a cosine, exp(-|u - v|^2 / (2 a)) = E cos(w (u - v)) with w normal of variance 1/a.
    For each frequency w the sums c(x) = sum_i exp(i w x_i) over the samples are formed, and |c|^2 replaces the sum of
    the kernel over all pairs: (|c(x)|^2 - N) / (N (N-1)) + the same for y - 2 Re(c(x) conj c(y)) / N^2. Time and memory
    grow with N.

    Args:
        x: samples of one law, [N, F].
        y: as many samples of the other.
        sigmas: kernel widths a; each gets ceil(num_features / W) frequencies.
        num_features: frequencies in all; the error falls with its square root.
        seed: of the frequencies, which depend on nothing else.
    """
    assert x.shape == y.shape and x.dim() == 2
    n, per_width = len(x), math.ceil(num_features / len(sigmas))
    frequencies = _frequencies(x.shape[1], sigmas, per_width, seed).to(x)
    sums_x, sums_y = _wave_sums(x, frequencies), _wave_sums(y, frequencies)
    within = sums_x.square().sum() + sums_y.square().sum() - 2 * n * frequencies.shape[1]
    across = (sums_x * sums_y).sum()
    return ((within / (n * (n - 1)) - 2 * across / n**2) / per_width).to(x.dtype)


class _KernelSums(torch.autograd.Function):
    """The weighted sums of `kernel_sums`, and on the way their gradient.

    The gradient of exp(-|u - v|^2 / (2 a)) with respect to u is (v - u) / a times the kernel. With s_ij the sum over a
    of the terms divided by a, sample i is pulled by sum_j s_ij z_j - (sum_j s_ij) z_i: one matrix product per tile.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        widths: Sequence[float],
        within: float,
        across: float,
        row_block: int,
        differentiate: bool,
    ) -> torch.Tensor:
        z = torch.cat([x, y])
        z -= z.mean(0)  # distances stay, and lose fewer digits
        blocks = blocks_of(len(x), row_block)
        blocks += [slice(len(x) + block.start, len(x) + block.stop) for block in blocks]
        norms = torch.cat([z[block].square().sum(1) for block in blocks])
        side = max(block.stop - block.start for block in blocks)
        buffers = z.new_empty(2, side * side)
        terms = terms_for(z, widths, side)
        total = z.new_zeros((), dtype=torch.float64)  # Sxx, Syy and Sxy nearly cancel: single precision would not do
        grad, shrink = torch.zeros_like(z) if differentiate else None, z.new_zeros(len(z))
        for rows, columns, weight in _tiles(blocks, len(x), within, across):
            shape = rows.stop - rows.start, columns.stop - columns.start
            squared, slope = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
            torch.add(norms[rows, None], norms[columns], out=squared).addmm_(z[rows], z[columns].T, alpha=-2)
            if rows == columns:
                squared.fill_diagonal_(math.inf)  # a sample and itself do not count
            kernel_sum = terms(squared, slope)
            if kernel_sum is None:
                continue
            total.add_(kernel_sum, alpha=weight)
            if grad is not None:
                twice = 2 if rows == columns else 1  # a symmetric tile pulls both its sides alike
                for near, far, pull in ((rows, columns, slope), (columns, rows, slope.T))[: 3 - twice]:
                    grad[near].addmm_(pull, z[far], alpha=twice * weight / widths[0])
                    shrink[near].add_(pull.sum(1), alpha=twice * weight / widths[0])
        if grad is not None:
            ctx.save_for_backward(grad.addcmul_(shrink[:, None], z, value=-1))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors  # the whole gradient: the forward pass computed it tile by tile
        return *grad.mul(outer).chunk(2), None, None, None, None, None


def blocks_of(n: int, row_block: int) -> list[slice]:
    """Cut 0..n-1 into the fewest nearly equal blocks of at most row_block."""
    count = math.ceil(n / row_block)
    return [slice(a, b) for a, b in pairwise(n * i // count for i in range(count + 1))]


def _tiles(blocks: list[slice], n: int, within: float, across: float) -> Iterator[tuple[slice, slice, float]]:
    """Pairs of blocks, each once, and the weight of their sum: a tile within x or y stands for its mirror too."""
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            crosses = rows.stop <= n <= columns.start
            yield rows, columns, across if crosses else within if rows == columns else 2 * within


def terms_for(z: torch.Tensor, widths: Sequence[float], side: int) -> Terms:
    """What `_tile_terms` does with squared distances and slope, in tiles of that side at most, like z."""
    if z.is_cuda and find_spec("triton"):
        from audiotok.losses.triton_kernels import fused_terms  # optional, and slow to import

        return fused_terms(widths, z)
    return partial(_tile_terms, widths=widths, spare=z.new_empty(side * side))


def _tile_terms(
    squared: torch.Tensor, slope: torch.Tensor, *, widths: Sequence[float], spare: torch.Tensor
) -> torch.Tensor | None:
    """Fill slope with the sum over a of (a_0 / a) exp(-squared / (2 a)) and return the sum of the kernel over the tile.

    Args:
        squared: squared distances [R, C], inf for a pair that does not count; rounding below 0 is put right.
        slope: [R, C], written.
        widths: a_0 >= a_1 >= … .
        spare: room for R * C numbers or more.

    Returns:
        A scalar in float64; None if every pair gives 0, and slope then means nothing.
    """
    limits, lowest = torch.finfo(squared.dtype), lowest_exponent(squared)
    least, most = bounds(squared)
    if -0.5 * least / widths[0] < lowest:
        return None
    total = _precise_sum(exponentials(squared, widths[0], most, lowest, slope))
    for a in widths[1:]:
        ratio = widths[0] / a
        # Below a quarter of the widest term's last digit at the least distance, hence at all: lost in the sum.
        if ratio * math.exp(0.5 * least / widths[0] * (1 - ratio)) < limits.eps / 4:
            continue
        term = exponentials(squared, a, most, lowest, spare[: squared.numel()].view_as(squared))
        total += _precise_sum(term)
        slope.add_(term, alpha=ratio)
    return total


def lowest_exponent(like: torch.Tensor) -> float:
    """Least exponent whose exponential counts: below it, the result would be subnormal."""
    return math.log(torch.finfo(like.dtype).tiny) + 0.5


def bounds(squared: torch.Tensor) -> tuple[float, float]:
    """Least and greatest squared distance of a tile (0 and inf on CUDA), once those that rounding put below 0 are 0."""
    if squared.is_cuda:  # reading the bounds would wait for the device
        squared.clamp_(min=0)
        return 0.0, math.inf
    least, most = (float(bound) for bound in squared.aminmax())
    if least < 0:
        least, squared = 0.0, squared.clamp_(min=0)
    return least, most


def _precise_sum(tile: torch.Tensor) -> torch.Tensor:
    """Sum of a tile in float64: the last digits of a float32 are what sums of three tiles differ by."""
    return tile.sum(1).sum(dtype=torch.float64)  # by rows, as float64 of the whole tile would be a copy of it


def exponentials(squared: torch.Tensor, a: float, most: float, lowest: float, out: torch.Tensor) -> torch.Tensor:
    """Write exp(-squared / (2 a)) to out, 0 where the exponent is not above lowest; no distance is beyond most."""
    torch.mul(squared, -0.5 / a, out=out)
    if -0.5 * most / a > lowest:
        return out.exp_()
    # exp takes a hundred times longer where its result is subnormal: such exponents are clamped, then count 0.
    return torch.threshold_(out.clamp_(min=lowest).exp_(), math.exp(lowest) * (1 + 1e-6), 0.0)


def _frequencies(dimension: int, sigmas: Sequence[float], per_width: int, seed: int) -> torch.Tensor:
    """Draw per_width normal frequencies of variance 1 / a for every width a, [F, W * per_width] in float64."""
    normal = _normal_numbers(dimension, len(sigmas), per_width, seed)
    return (normal / torch.tensor(list(sigmas), dtype=torch.float64).sqrt()[:, None]).flatten(1)


@lru_cache(maxsize=2)  # drawing them anew takes far longer than all the rest does on a GPU
def _normal_numbers(dimension: int, n_widths: int, per_width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dimension, n_widths, per_width, generator=generator, dtype=torch.float64)


def _wave_sums(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Sums of cos(w x_i) and sin(w x_i) over the samples, [N, F] and [F, M] -> [2, M] in float64."""
    # By blocks of rows, each of which the backward pass computes anew, so that no N x M tensor is kept.
    blocks = [_recomputed(_block_sums, rows, frequencies) for rows in x.split(RFF_ROWS)]
    return torch.stack(blocks).sum(0)


def _block_sums(rows: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    phases = rows @ frequencies
    return torch.stack([phases.cos().sum(0), phases.sin().sum(0)]).double()


def _recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Result, one tensor, of a deterministic function whose graph is not kept: the backward pass computes it anew."""
    # torch.utils.checkpoint does this and much more, and its first call imports the compiler, which takes seconds.
    result: torch.Tensor = _Recompute.apply(function, *arguments)  # type: ignore[no-untyped-call]
    return result


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():  # off within a backward pass
            result = ctx.function(*leaves)
        gradients = iter(torch.autograd.grad(result, [leaf for leaf in leaves if leaf.requires_grad], outer))
        return None, *(next(gradients) if need else None for need in needed)
