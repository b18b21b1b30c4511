"""Are the codebooks independent? The squared MMD between their joint law and the product of their marginals, tested.

`MMDLoss` samples the product of the marginals by one shuffle. Here the kernel, a product over codebooks, lets the mean
over all shuffles be written down, so that no shuffle adds noise. Pairs in which a sample meets itself are left out, as
by its estimator `disjoint`: the value is 0 on average for independent codebooks.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012; Pfister et al., "Kernel-based Tests for Joint
Independence", JRSS B 2018 (closed form and permutation test); Phipson and Smyth, 2010 (p-values never 0).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.losses.kernels import median_sigma
from audiotok.losses.mmd import MEDIAN, joint_samples, marginal_samples, standardise
from audiotok.metrics.codes import p_value
from audiotok.metrics.shuffles import BASELINES, FRAMES_ALONE, Shuffles, Tracks, evenly_in_runs

logger = logging.getLogger(__name__)

_FRAMES_ALONE = 32  # of such a recording that are compared


@dataclass(frozen=True)
class MMDTest:
    """Outcome of `mmd_permutation_test`.

    Attributes:
        mmd: statistic minus its mean over shuffles; 0 on average if independent, no unit, lower is better.
        error: standard deviation of the statistic over shuffles.
        p: p-value; small means dependent, at least 1 / (1 + R).
        statistic: see `_independence_statistic`; null: that of each permutation, [R].
        sigmas: kernel widths.
        samples: number N of samples compared.
        missing: why there is no `mmd` and no `error`, which are NaN then; missing_p: why there is no p. None if all is.
    """

    mmd: float
    error: float
    p: float
    statistic: float
    null: torch.Tensor
    sigmas: tuple[float, ...]
    samples: int
    missing: str | None
    missing_p: str | None

    def metrics(self) -> dict[str, float]:
        """The numbers to report: mmd, mmd_err, mmd_p, as far as there are any."""
        values = {"mmd": self.mmd, "mmd_err": self.error, "mmd_p": self.p}
        return {name: value for name, value in values.items() if not math.isnan(value)}


@torch.no_grad()
def mmd_permutation_test(
    streams: torch.Tensor,
    sigmas: Sequence[float] | str = MEDIAN,
    delay: bool = True,
    num_permutations: int = 199,
    generator: torch.Generator | None = None,
    *,
    tracks: Tracks = None,
    shuffle: str = "shifts",
    max_samples: int = 1024,
) -> MMDTest:
    """Test whether the codebooks of streams [B, K, D, T] are independent, on data not trained on.

    The statistic of the streams as they are is ranked among those of R streams whose codebooks are shuffled against
    each other: p = (1 + #{null >= observed}) / (1 + R). If the codebooks are independent and the shuffle holds (see
    `Shuffles`), shuffled streams are as likely as the observed ones, and so every rank is as likely as any other:
    p <= a has probability a at most, whatever the kernel, the sample size, or a bias of the statistic, which the
    shuffled streams have too. For the same reason widths and standardisation never look at how the codebooks go
    together. Where no shuffle holds, or none could give a small p, the numbers are NaN and the log says why.

    Args:
        streams: what each codebook sees, [B, K, D, T], floating point, K >= 2.
        sigmas: kernel widths of `MMDLoss`; 'median' takes that of one permutation of the streams.
        delay: align as delayed prediction does.
        num_permutations: R.
        generator: a generator on the CPU; None draws from torch's global one.
        tracks: recording of each clip, B integers, clips of one recording in the order of time. None: each clip is a
            recording of its own.
        shuffle: 'shifts', 'recordings' or 'frames', see `Shuffles`.
        max_samples: frames used at most, taken evenly from clips that are spread evenly over recordings and time; cost
            grows with its square.

    Raises:
        ConfigError: for sigmas, num_permutations, shuffle or max_samples that cannot be.
        DataError: for streams or tracks that cannot be compared.
    """
    if num_permutations < 1 or max_samples < 4:
        raise ConfigError(f"num_permutations={num_permutations} and max_samples={max_samples}; at least 1 and 4.")
    samples, arranged = _samples(streams, delay, max_samples, tracks, shuffle)
    n, k, _ = samples.shape
    source = torch.default_generator if generator is None else generator
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=source)))
    x = standardise(samples)

    def shuffled(apart: bool) -> torch.Tensor:
        return torch.from_numpy((arranged.draw_apart if apart else arranged.draw)(k, rng)).to(x.device)

    # Of a shuffle, not of the streams: a width that saw how codebooks go together would bias the test.
    free = torch.stack([torch.randperm(n, generator=source) for _ in range(k)])
    widths = _widths(sigmas, marginal_samples(x, free).flatten(1))
    distances = torch.stack([_squared_distances(x[:, i]) for i in range(k)])
    baseline = [] if arranged.missing else [shuffled(True) for _ in range(min(BASELINES, num_permutations))]
    orders = [] if arranged.missing_p else [shuffled(False) for _ in range(num_permutations)]
    identity = torch.arange(n, device=x.device).expand(k, n)
    observed, *rest = _independence_statistic(distances, widths, [identity, *baseline, *orders])
    apart, null = (torch.tensor(v, dtype=torch.float64) for v in (rest[: len(baseline)], rest[len(baseline) :]))
    # Equal statistics may differ in the last digits of their terms: within this they count as ties.
    rounding = 1e-12 * float(_row_means(distances, widths).mean(-1).prod(-1).sum())
    lesser = (("mmd_p", arranged.missing_p), ("mmd_err", arranged.missing_error))
    for name, reason in (("mmd", arranged.missing),) if arranged.missing else lesser:
        if reason:
            logger.warning("%s is left out: %s", name, reason)
    return MMDTest(
        mmd=observed - float(apart.mean()),
        error=math.nan if arranged.missing_error else float(apart.std(correction=0)),
        p=math.nan if arranged.missing_p else p_value(observed, null.numpy(), rounding),
        statistic=observed,
        null=null,
        sigmas=widths,
        samples=n,
        missing=arranged.missing,
        missing_p=arranged.missing_p,
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
    # Only how codebooks lie to each other counts: with the first one in its place, its kernel is gathered never.
    relative = [order[:, order[0].argsort()] for order in orders]
    values = float(rows.mean(-1).prod(-1).sum()) - 2 * torch.stack(
        [rows.gather(-1, order.expand_as(rows)).prod(1).mean(-1).sum() for order in relative]
    )
    for a in sigmas:
        kernels = (distances * (-0.5 / a)).exp_()
        kernels[0].fill_diagonal_(0)
        for index, order in enumerate(relative):
            product = kernels[0]
            for q in range(1, k):
                product = product * kernels[q].index_select(0, order[q]).index_select(1, order[q])
            values[index] += product.sum() / (n * (n - 1))
    found: list[float] = values.tolist()
    return found


def _row_means(distances: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Kernel of each width and codebook, meaned over j != i: [W, K, N]."""
    means = []
    for a in sigmas:
        kernel = (distances * (-0.5 / a)).exp_()
        kernel.diagonal(dim1=-2, dim2=-1).zero_()
        means.append(kernel.sum(-1) / (distances.shape[-1] - 1))
    return torch.stack(means)


def _samples(
    streams: torch.Tensor, delay: bool, max_samples: int, tracks: Tracks, shuffle: str
) -> tuple[torch.Tensor, Shuffles]:
    """Samples [N, K, D] of float64 taken at the same frames of every clip kept, and their shuffles."""
    if streams.dim() != 4 or not streams.is_floating_point():
        raise DataError(f"streams {list(streams.shape)} of {streams.dtype}; expected floating point [B, K, D, T].")
    k, t = streams.shape[1], streams.shape[3]
    if k < 2:
        raise DataError(f"streams hold K={k} codebook; dependence needs two or more.")
    if t < (needed := k + 1 if delay else 1):
        raise DataError(f"streams hold T={t} frames; K={k} codebooks, delay={delay}, need {needed} or more.")
    if len(streams) == 0:
        raise DataError("streams hold 0 sample(s); a test needs 4 or more.")
    if not torch.isfinite(streams).all():
        raise DataError(f"streams {list(streams.shape)} hold NaN or infinite values.")
    frames = t - k if delay else t
    arranged = Shuffles(len(streams), frames, tracks, shuffle, FRAMES_ALONE)
    # A recording of one clip is turned by its frames, of which several have to be there.
    most = max_samples if tracks is not None or shuffle != "shifts" else max(1, max_samples // _FRAMES_ALONE)
    clips = arranged.clips[evenly_in_runs(len(arranged.clips), most)]
    count = min(frames, max_samples // max(1, len(clips)))
    if (len(clips), count) != (len(arranged.clips), frames):
        owner = None if tracks is None else np.asarray(tracks)[clips]
        arranged = Shuffles(len(clips), count, owner, shuffle, FRAMES_ALONE if arranged.missing else 1)
        clips = clips[arranged.clips]
    kept = streams[torch.from_numpy(clips).to(streams.device)].double()
    folded = joint_samples(kept, delay).unflatten(0, (len(kept), frames))
    picked = folded[:, [i * frames // count for i in range(count)]].flatten(0, 1)
    if len(picked) < 4:
        raise DataError(f"streams hold {len(picked)} sample(s); a test needs 4 or more.")
    return picked, arranged


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
