"""Random Fourier features: the squared MMD in time and memory that grow with N instead of N^2.

A Gaussian kernel is the mean of a cosine, exp(-|u - v|^2 / (2 a)) = E cos(w (u - v)) with w normal of variance 1 / a.
So with frequencies drawn once, the double sum over samples becomes the squared length of a sum over samples.

Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007.
"""

import math
from collections.abc import Sequence

import torch

from audiotok.losses.recompute import recomputed

ROWS = 1024


def squared_mmd_rff(
    x: torch.Tensor, y: torch.Tensor, sigmas: Sequence[float], num_features: int = 1024, seed: int = 0
) -> torch.Tensor:
    """Estimate what `kernels.squared_mmd` with 'unbiased' gives; on average over seeds it is exactly that.

    For each frequency the sums c(x) = sum_i exp(i w x_i) over the samples are formed, and |c|^2 replaces the sum of
    the kernel over all pairs: (|c(x)|^2 - N) / (N (N-1)) + the same for y - 2 Re(c(x) conj c(y)) / N^2.

    Args:
        x: samples of one law.
        y: as many samples of the other.
        sigmas: kernel widths a; each gets ceil(num_features / W) frequencies.
        num_features: frequencies in all; the error falls with its square root.
        seed: of the frequencies, which depend on nothing else.

    Shape:
        x [N, F], y [N, F] -> scalar.
    """
    assert x.shape == y.shape and x.dim() == 2
    n, per_width = len(x), math.ceil(num_features / len(sigmas))
    frequencies = draw_frequencies(x.shape[1], sigmas, per_width, seed).to(x)
    sums_x, sums_y = wave_sums(x, frequencies), wave_sums(y, frequencies)
    within = sums_x.square().sum() + sums_y.square().sum() - 2 * n * frequencies.shape[1]
    across = (sums_x * sums_y).sum()
    return ((within / (n * (n - 1)) - 2 * across / n**2) / per_width).to(x.dtype)


def draw_frequencies(dimension: int, sigmas: Sequence[float], per_width: int, seed: int) -> torch.Tensor:
    """Draw per_width normal frequencies of variance 1 / a for every width a, [F, W * per_width] in float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(dimension, len(sigmas), per_width, generator=generator, dtype=torch.float64)
    return (normal / torch.tensor(list(sigmas), dtype=torch.float64).sqrt()[:, None]).flatten(1)


def wave_sums(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Sums of cos(w x_i) and sin(w x_i) over the samples, [N, F] and [F, M] -> [2, M] in float64.

    Taken over blocks of rows, each of which the backward pass computes anew, so that no N x M tensor is kept.
    """
    blocks = [recomputed(_block_sums, rows, frequencies) for rows in x.split(ROWS)]
    return torch.stack(blocks).sum(0)


def _block_sums(rows: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    phases = rows @ frequencies
    return torch.stack([phases.cos().sum(0), phases.sin().sum(0)]).double()
