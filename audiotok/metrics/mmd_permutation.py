"""Are the codebooks independent? The squared MMD between their joint law and the product of their marginals, tested.

`MMDLoss` samples the product of the marginals by one shuffle. Here the kernel, a product over codebooks, lets the mean
over all shuffles be written down, so that no shuffle adds noise. Pairs in which a sample meets itself are left out, as
by its estimator `disjoint`: the value is 0 on average for independent codebooks.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012; Pfister et al., "Kernel-based Tests for Joint
Independence", JRSS B 2018 (closed form and permutation test); Phipson and Smyth, 2010 (p-values never 0).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from audiotok.errors import ConfigError, DataError
from audiotok.losses.kernels import median_sigma
from audiotok.losses.mmd import MEDIAN, joint_samples, marginal_samples, standardise
from audiotok.metrics.codes import check_shuffle, draw_shuffles, p_value


@dataclass(frozen=True)
class MMDTest:
    """Outcome of `mmd_permutation_test`.

    Attributes:
        mmd: statistic minus its mean over permutations; 0 on average if independent, no unit, lower is better.
        error: standard deviation of the statistic over permutations.
        p: p-value; small means dependent, at least 1 / (1 + R).
        statistic: see `_independence_statistic`; null: that of each permutation, [R].
        sigmas: kernel widths.
        samples: number N of samples compared.
    """

    mmd: float
    error: float
    p: float
    statistic: float
    null: torch.Tensor
    sigmas: tuple[float, ...]
    samples: int

    def metrics(self) -> dict[str, float]:
        """The numbers to report: mmd, mmd_err, mmd_p."""
        return {"mmd": self.mmd, "mmd_err": self.error, "mmd_p": self.p}


@torch.no_grad()
def mmd_permutation_test(
    streams: torch.Tensor,
    sigmas: Sequence[float] | str = MEDIAN,
    delay: bool = True,
    num_permutations: int = 100,
    generator: torch.Generator | None = None,
    *,
    shuffle: str = "clips",
    max_samples: int = 1024,
) -> MMDTest:
    """Test whether the codebooks of streams [B, K, D, T] are independent, on data not trained on.

    The statistic of the streams as they are is ranked among those of R streams whose codebooks are permuted each on
    its own: p = (1 + #{null >= observed}) / (1 + R). If the codebooks are independent, permuted streams are as likely
    as the observed ones, and so every rank is as likely as any other: p <= a has probability a at most, whatever the
    kernel, the sample size, or a bias of the statistic, which the permuted streams have too. That needs what is
    exchanged to be independent draws, which clips are and neighbouring frames are not. For the same reason widths and
    standardisation never look at how the codebooks go together.

    Args:
        streams: what each codebook sees, [B, K, D, T], floating point, K >= 2.
        sigmas: kernel widths of `MMDLoss`; 'median' takes that of one permutation of the streams.
        delay: align as delayed prediction does.
        num_permutations: R.
        generator: a generator on the CPU; None draws from torch's global one.
        shuffle: what a permutation exchanges: 'clips' or 'frames'.
        max_samples: frames used at most, taken evenly from the first max_samples clips; cost grows with its square.

    Raises:
        ConfigError: for sigmas, num_permutations, shuffle or max_samples that cannot be.
        DataError: for streams that cannot be compared.
    """
    if num_permutations < 1 or max_samples < 4:
        raise ConfigError(f"num_permutations={num_permutations} and max_samples={max_samples}; at least 1 and 4.")
    samples, clips = _samples(streams, delay, max_samples)
    check_shuffle(shuffle, clips)
    n, k, _ = samples.shape
    source = torch.default_generator if generator is None else generator
    x = standardise(samples)
    orders = [draw_shuffles(k, clips, n // clips, shuffle, source).to(x.device) for _ in range(num_permutations + 1)]
    # Of a permutation, not of the streams: a width that saw how codebooks go together would bias the test.
    widths = _widths(sigmas, marginal_samples(x, orders.pop()).flatten(1))
    distances = torch.stack([_squared_distances(x[:, i]) for i in range(k)])
    identity = torch.arange(n, device=x.device).expand(k, n)
    observed, *rest = _independence_statistic(distances, widths, [identity, *orders])
    null = torch.tensor(rest, dtype=torch.float64)
    # Equal statistics may differ in the last digits of their terms: within this they count as ties.
    rounding = 1e-12 * float(_row_means(distances, widths).mean(-1).prod(-1).sum())
    return MMDTest(
        mmd=observed - float(null.mean()),
        error=float(null.std(correction=0)),
        p=p_value(observed, null.numpy(), rounding),
        statistic=observed,
        null=null,
        sigmas=widths,
        samples=n,
    )


def _independence_statistic(
    distances: torch.Tensor, sigmas: Sequence[float], orders: Sequence[torch.Tensor]
) -> list[float]:
    """Squared MMD between joint law and product of marginals, of samples permuted within each codebook.

    With k_q(i, j) = exp(-d_q(i, j) / (2 a)) of codebook q, r_q(i) its mean over j != i and m_q the mean of r_q:

        mean over i != j of prod_q k_q(i, j)  +  prod_q m_q  -  2 mean over i of prod_q r_q(i)

    summed over widths a. Over all permutations of frames its mean is exactly 0, for then the first term is prod_q m_q
    on average, and so is the third. Takes squared distances [K, N, N], zero on the diagonals, widths a and permutations
    [K, N]; returns one value per permutation.
    """
    k, n, _ = distances.shape
    rows = _row_means(distances, sigmas)
    product = float(rows.mean(-1).prod(-1).sum())
    values = []
    for order in orders:
        # Permuted distances are the distances of permuted samples: no matrix product per permutation.
        total = sum(distances[q].index_select(0, order[q]).index_select(1, order[q]) for q in range(k))
        assert isinstance(total, torch.Tensor)
        pairs = sum(float((total * (-0.5 / a)).exp_().fill_diagonal_(0).sum()) for a in sigmas)
        cross = rows.gather(-1, order.expand_as(rows)).prod(1).mean(-1)
        values.append(pairs / (n * (n - 1)) + product - 2 * float(cross.sum()))
    return values


def _row_means(distances: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Kernel of each width and codebook, meaned over j != i: [W, K, N]."""
    means = []
    for a in sigmas:
        kernel = (distances * (-0.5 / a)).exp_()
        kernel.diagonal(dim1=-2, dim2=-1).zero_()
        means.append(kernel.sum(-1) / (distances.shape[-1] - 1))
    return torch.stack(means)


def _samples(streams: torch.Tensor, delay: bool, max_samples: int) -> tuple[torch.Tensor, int]:
    """Samples [N, K, D] of float64 taken at the same frames of every clip kept, and how many clips."""
    if streams.dim() != 4 or not streams.is_floating_point():
        raise DataError(f"streams {list(streams.shape)} of {streams.dtype}; expected floating point [B, K, D, T].")
    k, t = streams.shape[1], streams.shape[3]
    if k < 2:
        raise DataError(f"streams hold K={k} codebook; dependence needs two or more.")
    if t < (needed := k + 1 if delay else 1):
        raise DataError(f"streams hold T={t} frames; K={k} codebooks, delay={delay}, need {needed} or more.")
    if not torch.isfinite(streams).all():
        raise DataError(f"streams {list(streams.shape)} hold NaN or infinite values.")
    kept = streams[:max_samples].double()
    clips, frames = len(kept), t - k if delay else t
    folded = joint_samples(kept, delay).unflatten(0, (clips, frames))
    count = min(frames, max_samples // max(clips, 1))
    picked = folded[:, [i * frames // count for i in range(count)]].flatten(0, 1)
    if len(picked) < 4:
        raise DataError(f"streams hold {len(picked)} sample(s); a test needs 4 or more.")
    return picked, clips


def _widths(sigmas: Sequence[float] | str, shuffled: torch.Tensor) -> tuple[float, ...]:
    if sigmas == MEDIAN:
        return (median_sigma(shuffled),)
    if isinstance(sigmas, str) or not sigmas or not all(math.isfinite(a) and a > 0 for a in sigmas):
        raise ConfigError(f"sigmas={sigmas!r}; give one or more finite widths > 0, or the word {MEDIAN!r}.")
    return tuple(float(a) for a in sigmas)


def _squared_distances(x: torch.Tensor) -> torch.Tensor:
    """Squared distances between the rows of x [N, D], with an exact zero diagonal."""
    lengths = x.square().sum(1)
    return (lengths[:, None] + lengths - 2 * x @ x.T).clamp_(min=0).fill_diagonal_(0)
