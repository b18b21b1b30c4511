"""Squared MMD between the joint law of K variables and the product of their marginals, in closed form: no shuffle.

A Gaussian kernel over all dimensions is a product over variables, so that the mean over all shuffles can be written
down. With k_q(i, j) = exp(-|x_iq - x_jq|^2 / (2 a)) of variable q, r_q(i) its mean over j != i and m_q the mean of r_q:

    mean over i != j of prod_q k_q(i, j)  +  prod_q m_q  -  2 mean over i of prod_q r_q(i)

summed over widths a. Source: Pfister et al., "Kernel-based Tests for Joint Independence", JRSS B 2018 (dHSIC), whose
estimate has the pairs i = j as well and is biased by them.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from audiotok.losses.kernels import blocks_of, bounds, exponentials, lowest_exponent, terms_for


def closed_mmd(x: torch.Tensor, sigmas: Sequence[float], row_block: int | None = None) -> torch.Tensor:
    """Return the closed form above for N samples of K variables, x [N, K, D]; a scalar, may be negative.

    Expectation under independence: 0, for every N >= 2. Let the K sequences of samples be independent of each other and
    each exchangeable, and the widths given. Every kernel k_q(i, j) with i != j has one and the same expectation mu_q,
    and so have its means r_q(i) and m_q. Each of the three terms multiplies one factor of each variable, so that their
    expectations are prod_q mu_q, once, once more and minus twice. Standardising x by variables does not matter, as it
    leaves each sequence exchangeable. For the same reason the mean over all permutations of samples within variables is
    0 whatever the samples are.

    Cost: two visits of the tiles of an N x N matrix for each variable, so time grows with K N^2, memory with N.

    Args:
        x: samples, [N, K, D].
        sigmas: kernel widths a.
        row_block: side of a tile; None suits the device.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    side = row_block or (4096 if x.is_cuda else 768)
    differentiate = torch.is_grad_enabled() and x.requires_grad
    widths = sorted(sigmas, reverse=True)
    value: torch.Tensor = _ClosedForm.apply(wide, widths, side, differentiate)  # type: ignore[no-untyped-call]
    return value.to(x.dtype)


class _ClosedForm(torch.autograd.Function):
    """The value, and on the way its gradient.

    With p_q(i) = prod m - 2 prod r(i), both over the variables other than q, the derivative by x_iq is, over N (N-1),

        sum over j != i and a of [2 prod_q k_q(i, j) + (p_q(i) + p_q(j)) k_q(i, j)] (x_jq - x_iq) / a

    where the terms in the brackets nearly cancel: they are added up before they meet the samples.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, widths: Sequence[float], side: int, differentiate: bool) -> torch.Tensor:
        n = len(x)
        tiles = _Tiles(x - x.mean(0), widths, side)
        rows = tiles.row_means()
        means = rows.mean(-1, keepdim=True)
        pulls = _product_of_others(means) - 2 * _product_of_others(rows) if differentiate else None
        joint, gradient = tiles.joint_sum(pulls)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return joint / (n * (n - 1)) + means.prod(1).sum() - 2 * rows.prod(1).mean(-1).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # the whole gradient: the forward pass computed it tile by tile
        return gradient.mul(outer), None, None, None


class _Tiles:
    """Tiles of the kernel matrices of x [N, K, D], a tile and its mirror image visited once."""

    def __init__(self, x: torch.Tensor, widths: Sequence[float], side: int) -> None:
        n, self.k, dimension = x.shape
        self.widths = widths
        self.z = x.flatten(1)
        self.variables = [slice(q * dimension, (q + 1) * dimension) for q in range(self.k)]
        self.pairs = list(combinations_with_replacement(blocks_of(n, side), 2))
        self.side = min(side, n)
        self.buffers = self.z.new_empty(4, self.side**2)

    def row_means(self) -> torch.Tensor:
        """Kernel of each width and variable, meaned over j != i: [W, K, N] in float64."""
        sums = self.z.new_zeros(len(self.widths), self.k, len(self.z), dtype=torch.float64)
        ones = [1.0] * len(self.widths)
        for rows, columns in self.pairs:
            for q, variable in enumerate(self.variables):
                for w, kernel in self._kernels(rows, columns, variable, ones):
                    sums[w, q, rows] += kernel.sum(1)
                    if rows != columns:
                        sums[w, q, columns] += kernel.sum(0)
        return sums / (len(self.z) - 1)

    def joint_sum(self, pulls: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sum over i != j of the product of all kernels; given p [W, K, N], also the value's derivative [N, K, D]."""
        n, ratios = len(self.z), [self.widths[0] / a for a in self.widths]
        total = self.z.new_zeros((), dtype=torch.float64)
        gradient, shrink = torch.zeros_like(self.z), self.z.new_zeros(n, self.k)
        terms = terms_for(self.z, self.widths, self.side)
        if pulls is not None:
            pulls = (pulls * pulls.new_tensor(ratios)[:, None, None]).to(self.z)
            most = pulls.abs().amax(-1).T.tolist()
        for rows, columns in self.pairs:
            joint = self._buffer(1, rows, columns)
            kernel_sum = terms(self._squared(rows, columns, slice(None)), joint)
            if kernel_sum is None:
                joint.zero_()
            else:
                total.add_(kernel_sum, alpha=1 if rows == columns else 2)
            if pulls is None:
                continue
            for q, variable in enumerate(self.variables):
                slope = torch.mul(joint, 2, out=self._buffer(2, rows, columns))
                for w, kernel in self._kernels(rows, columns, variable, most[q]):
                    slope.addcmul_(kernel, pulls[w, q, rows, None]).addcmul_(kernel, pulls[w, q, columns])
                for near, far, pull in ((rows, columns, slope), (columns, rows, slope.T))[: 1 + (rows != columns)]:
                    gradient[near, variable].addmm_(pull, self.z[far, variable])
                    shrink[near, q] += pull.sum(1)
        if pulls is None:
            return total, None
        gradient = gradient.unflatten(1, (self.k, -1))
        gradient.sub_(shrink[..., None] * self.z.view_as(gradient))
        return total, gradient.div_(n * (n - 1) * self.widths[0])

    def _kernels(
        self, rows: slice, columns: slice, variable: slice, factors: Sequence[float]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Number of each width and its kernel on a tile, 0 for i = j, unless all of it vanishes beside the factor."""
        squared = self._squared(rows, columns, variable)
        lowest, (least, most) = lowest_exponent(squared), bounds(squared)
        for w, (a, factor) in enumerate(zip(self.widths, factors, strict=True)):
            if factor and math.log(factor) - 0.5 * least / a >= lowest:
                yield w, exponentials(squared, a, most, lowest, self._buffer(3, rows, columns))

    def _squared(self, rows: slice, columns: slice, dimensions: slice) -> torch.Tensor:
        """Squared distances within some dimensions, inf for i = j."""
        u, v = self.z[rows, dimensions], self.z[columns, dimensions]
        squared = torch.add(u.square().sum(1)[:, None], v.square().sum(1), out=self._buffer(0, rows, columns))
        squared.addmm_(u, v.T, alpha=-2)
        return squared.fill_diagonal_(torch.inf) if rows == columns else squared

    def _buffer(self, number: int, rows: slice, columns: slice) -> torch.Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return self.buffers[number, : height * width].view(height, width)


def _product_of_others(factors: torch.Tensor) -> torch.Tensor:
    """Product over all q but one, for each: [W, K, N] -> [W, K, N]. Factors may be 0, so that none is divided by."""
    ones = torch.ones_like(factors[:, :1])
    before = torch.cat([ones, factors[:, :-1]], 1).cumprod(1)
    after = torch.cat([ones, factors.flip(1)[:, :-1]], 1).cumprod(1).flip(1)
    return before * after
