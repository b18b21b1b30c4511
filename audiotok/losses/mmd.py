"""Maximum mean discrepancy between the codebooks' joint law and the product of their marginals.

The criterion is zero when the codebooks are independent and grows with any dependence the kernel can see. A
batch of streams gives samples X of the joint law; shuffling the samples of each codebook on its own gives
samples Y of the product of the marginals; the squared MMD compares the two under a sum of Gaussian kernels. `closed`
does without the shuffle. What is compared may be others than the codebooks: see `BETWEEN`.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, Lemma 6 (estimators); Lemercier et al., "An
Independence-promoting Loss for Music Generation with Language Models", ICML 2024 (criterion, delay, kernel widths).
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import nn

from audiotok.errors import ConfigError, DataError
from audiotok.losses.closed import closed_mmd
from audiotok.losses.kernels import ESTIMATORS as PAIR_ESTIMATORS
from audiotok.losses.kernels import kernel_sums, median_sigma, pair_sum, squared_mmd, squared_mmd_rff

logger = logging.getLogger(__name__)

RELEASED_SIGMAS = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0)
MEDIAN = "median"
ESTIMATORS = (*PAIR_ESTIMATORS, "disjoint", "rff", "closed")
BETWEEN = ("codebooks", "dimensions", "frames")
_FEW_SAMPLES = 16  # per codebook; a warning is logged below: more than 1/16 of the pairs would share a codebook
_VARIANCE_FLOOR = 1e-8


class MMDLoss(nn.Module):
    """Squared MMD between the joint law of the codebooks and the product of their marginals.

    Steps: delay the streams (optional), fold time into the batch (N = B * T' samples of K codebooks),
    standardise every dimension over the N samples, shuffle each codebook on its own, then `squared_mmd`. `between`
    puts other variables in place of the codebooks, see `samples_of`.

    Value: independent codebooks give nearly 0 with `samples` and `unbiased`; `clips` adds a constant
    2 W (T' - 1) / (B - 1) for W widths, and its gradient is about T'^2 times that of `samples`, which is what
    the released weight of 1000 counts on.

    Bias: each sample of Y holds codebooks of K samples of X, so that K of the N pairs per sample share one and
    lie closer. Independent codebooks therefore get -2 (K / N) (E[k | one codebook equal] - E[k]) on average
    from `unbiased` and `rff` (and 2 W / N more from `samples`), which is far beyond the spread of the estimate:
    compare it with the same loss on shuffled streams, not with 0. `disjoint` is free of it: it leaves these
    pairs out of Sxy. Of every codebook, each pair left in each of the three sums then compares two different
    samples, so that all have one expectation if codebooks are independent, samples exchangeable and widths given.

    Cost: kernel sums with their gradient, in square tiles: time grows with N^2, memory with N. With `closed`, time
    grows with the number of variables too, with `rff` as N. At least float32, also under autocast; float64 stays.

    Args:
        sigmas: kernel widths a of exp(-d^2 / (2 a)), in squared units of the standardised stream, all > 0; or
            'median' for the one width given by `median_sigma`.
        estimator: 'clips' (as released), 'samples' (V-statistic) or 'unbiased' (U-statistic), see
            squared_mmd; 'disjoint' (above); 'rff' (random Fourier features, see squared_mmd_rff); 'closed' (no
            shuffle, see closed_mmd).
        delay: shift stream k right by k frames and drop the first K frames, as MusicGen's pattern does.
        row_block: side of a tile of a kernel matrix; changes memory and speed, not the value. None suits the device.
        num_features, seed: random frequencies of 'rff', the same at every call.
        between: what shall be independent, one of BETWEEN; only codebooks can be delayed.

    Shape:
        streams [B, K, D, T] -> scalar.

    Raises:
        ConfigError: for unusable sigmas, an unknown estimator or `between`, a delay of anything but codebooks,
            row_block < 1 or fewer features than widths.
    """

    def __init__(
        self,
        sigmas: Sequence[float] | str = RELEASED_SIGMAS,
        estimator: str = "unbiased",
        delay: bool = True,
        row_block: int | None = None,
        num_features: int = 1024,
        seed: int = 0,
        between: str = "codebooks",
    ) -> None:
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ConfigError(f"mmd.estimator={estimator!r}; choose one of: {', '.join(ESTIMATORS)}.")
        if between not in BETWEEN:
            raise ConfigError(f"mmd.between={between!r}; choose one of: {', '.join(BETWEEN)}.")
        if delay and between != "codebooks":
            raise ConfigError(
                f"mmd.between={between!r} with mmd.delay=true; only codebooks are delayed: give delay=false."
            )
        if row_block is not None and row_block < 1:
            raise ConfigError(f"mmd.row_block={row_block}; it counts rows of a kernel matrix and must be 1 or more.")
        self.sigmas = _checked_sigmas(sigmas)
        n_widths = 1 if isinstance(self.sigmas, str) else len(self.sigmas)
        if num_features < n_widths:
            raise ConfigError(f"mmd.num_features={num_features} for {n_widths} width(s); each needs one or more.")
        self.estimator = estimator
        self.between = between
        self.delay = delay
        self.row_block = row_block
        self.num_features = num_features
        self.seed = seed
        self._warned = False

    def forward(
        self,
        streams: torch.Tensor,
        permutations: torch.Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return the squared MMD.

        Args:
            streams: what each codebook sees, [B, K, D, T], floating point.
            permutations: indices [K, N] in 0..N-1, one shuffle of the N samples per codebook (or other variable); drawn
                when None. `closed` has no use for them.
            generator: source of the drawn permutations; None means torch's global one.

        Raises:
            DataError: for streams or permutations of another shape, kind or range, or too small to compare.
        """
        self._check(streams)
        # Half precision would lose the differences of nearly equal sums, which is what an MMD is.
        with torch.autocast(device_type=streams.device.type, enabled=False):
            wide = streams if streams.dtype == torch.float64 else streams.float()
            x = standardise(samples_of(wide, self.between, self.delay))
            n, k, _ = x.shape
            sigmas = (median_sigma(x.flatten(1)),) if isinstance(self.sigmas, str) else self.sigmas
            if self.estimator == "closed":
                return closed_mmd(x, sigmas, self.row_block)
            if permutations is None:
                permutations = draw_permutations(k, n, x.device, generator)
            y = marginal_samples(x, permutations)
            x, y = x.flatten(1), y.flatten(1)
            if self.estimator == "rff":
                return squared_mmd_rff(x, y, sigmas, self.num_features, self.seed)
            if self.estimator == "disjoint":
                return _disjoint_mmd(x, y, sigmas, permutations, self.row_block)
            return squared_mmd(x, y, sigmas, self.estimator, len(streams), self.row_block)

    def _check(self, streams: torch.Tensor) -> None:
        if streams.dim() != 4 or not streams.is_floating_point():
            found = f"{list(streams.shape)} of {streams.dtype}"
            raise DataError(f"MMD streams {found}; expected a floating point tensor [B, K, D, T].")
        b, k, d, t = streams.shape
        frames = t - k if self.delay else t
        n, variables = {"codebooks": (b * frames, k), "dimensions": (b * t, k * d), "frames": (b, t)}[self.between]
        if variables < 2:
            raise DataError(
                f"MMD streams hold K={k} codebook; dependence needs two or more: raise n_q or drop the MMD."
                if self.between == "codebooks"
                else f"MMD streams {list(streams.shape)} hold 1 of mmd.between={self.between!r}; give two or more."
            )
        if frames < 1:
            needed = k + 1 if self.delay else 1
            raise DataError(f"MMD streams hold T={t} frames; delaying K={k} codebooks needs {needed} or more.")
        if n < 2:
            raise DataError(f"MMD streams hold {n} sample(s) after the delay; statistics need 2 or more.")
        if self.estimator == "clips" and b < 2:
            raise DataError(f"mmd.estimator='clips' divides by B - 1 with B={b} clip; give 2 clips, or use 'unbiased'.")
        if not torch.isfinite(streams).all():
            raise DataError(f"MMD streams {list(streams.shape)} hold NaN or infinite values.")
        if n < _FEW_SAMPLES * variables and self.estimator != "closed" and not self._warned:
            self._warned = True
            logger.warning(
                "MMD of N=%d samples of K=%d %s: a share K/N of the pairs has one of them in common and the "
                "noise is of the order 1/N; %d samples or more make sense (raise num_batches_mmd, batches or segments)",
                n, variables, self.between, _FEW_SAMPLES * variables,
            )  # fmt: skip


def samples_of(streams: torch.Tensor, between: str, delay: bool) -> torch.Tensor:
    """Samples [N, K', D'] of the K' variables that shall be independent, from streams [B, K, D, T].

    - 'codebooks': the K codebooks of a frame, [N, K, D]; see `joint_samples`;
    - 'dimensions': the K * D numbers of a frame, [B * T, K * D, 1];
    - 'frames': the T frames of a clip, [B, T, K * D].
    """
    if between == "codebooks":
        return joint_samples(streams, delay)
    if between == "dimensions":
        return joint_samples(streams, False).flatten(1)[..., None]
    return streams.permute(0, 3, 1, 2).flatten(2)


def joint_samples(streams: torch.Tensor, delay: bool) -> torch.Tensor:
    """Fold time into the batch: [B, K, D, T] -> [N, K, D] with sample n = b * T' + t.

    With delay, frame t of stream k is frame t - k of the input for t in K..T-1, hence T' = T - K; else T' = T.
    """
    _, k, _, t = streams.shape
    if delay:
        streams = torch.stack([streams[:, i, :, k - i : t - i] for i in range(k)], dim=1)
    return streams.permute(0, 3, 1, 2).flatten(0, 1)


def standardise(x: torch.Tensor) -> torch.Tensor:
    """Centre and scale every dimension over the first axis: unbiased variance, floored by 1e-8.

    A dimension that never varies is exactly 0 in every sample and takes no gradient.
    """
    # Changes nothing but rounding: a large offset costs no digits of the variance.
    x = x - x[:1].detach()
    scale = torch.rsqrt(x.var(dim=0) + _VARIANCE_FLOOR)
    return (x - x.mean(dim=0)) * torch.where((x != 0).any(dim=0), scale, 0.0)


def draw_permutations(
    n_codebooks: int, n_samples: int, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw one uniform shuffle of the samples per codebook, [K, N]."""
    source = device if generator is None else generator.device
    rows = [torch.randperm(n_samples, device=source, generator=generator) for _ in range(n_codebooks)]
    return torch.stack(rows).to(device)


def marginal_samples(x: torch.Tensor, permutations: torch.Tensor) -> torch.Tensor:
    """Shuffle each codebook on its own: y[n, k] = x[permutations[k, n], k], [N, K, D].

    DataError if permutations is not [K, N] with every row a permutation of 0..N-1.
    """
    n, k, _ = x.shape
    if permutations.shape != (k, n) or permutations.is_floating_point() or permutations.dtype == torch.bool:
        found = f"{list(permutations.shape)} of {permutations.dtype}"
        raise DataError(f"MMD permutations {found}; expected integer indices [K, N] = [{k}, {n}].")
    order = permutations.to(x.device, torch.long)
    if not torch.equal(order.sort(dim=1).values, torch.arange(n, device=x.device).expand(k, n)):
        raise DataError(f"MMD permutations: every row must hold each of 0..{n - 1} exactly once.")
    return torch.stack([x[order[i], i] for i in range(k)], dim=1)


def _disjoint_mmd(
    x: torch.Tensor, y: torch.Tensor, sigmas: Sequence[float], permutations: torch.Tensor, row_block: int | None = None
) -> torch.Tensor:
    """The 'unbiased' estimate without the pairs (x_i, y_j) that share a sample of a codebook.

    Value: (Sxx - W N) / (N (N-1)) + (Syy - W N) / (N (N-1)) - 2 (Sxy - C) / (N^2 - M), where M <= K N pairs share one
    and C is the sum of their kernels; x [N, K * D], y [N, K * D], permutations [K, N]. DataError if every pair does.
    """
    k, n = permutations.shape
    order = permutations.to(x.device, torch.long)
    shared, count = x.new_zeros((), dtype=torch.float64), 0
    for i in range(k):
        (new,) = (order[:i] != order[i]).all(dim=0).nonzero(as_tuple=True)  # two codebooks of one sample: one pair
        shared = shared + pair_sum(x, y, order[i, new], new, sigmas)
        count += len(new)
    if count == n * n:
        raise DataError(f"mmd.estimator='disjoint' has no pair left among N={n} samples of K={k} codebooks; give more.")
    rest = n * n - count
    return (kernel_sums(x, y, sigmas, 1 / (n * (n - 1)), -2 / rest, row_block) + 2 * shared / rest).to(x.dtype)


def _checked_sigmas(sigmas: Sequence[float] | str) -> tuple[float, ...] | str:
    if isinstance(sigmas, str):
        if sigmas != MEDIAN:
            raise ConfigError(f"mmd.sigmas={sigmas!r}; give a list of positive widths or the word {MEDIAN!r}.")
        return sigmas
    widths = tuple(float(a) for a in sigmas)
    if not widths or not all(math.isfinite(a) and a > 0 for a in widths):
        raise ConfigError(f"mmd.sigmas={list(sigmas)}; give one or more finite widths > 0, or the word {MEDIAN!r}.")
    return widths
