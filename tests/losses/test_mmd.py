"""The MMD criterion against plain Python loops in float64, and its properties."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from torch.utils._python_dispatch import TorchDispatchMode

from audiotok.errors import ConfigError, DataError
from audiotok.losses.kernels import median_sigma, squared_mmd
from audiotok.losses.mmd import MMDLoss, draw_permutations

ESTIMATORS = ("clips", "samples", "unbiased", "disjoint")

Array = NDArray[np.float64]


def slow_samples(streams: Array, delay: bool) -> Array:
    """Sample n = b * T' + t of codebook k is frame t - k of stream k, counted from t = K if delayed."""
    b, k, _, t = streams.shape
    first = k if delay else 0
    samples = []
    for clip in range(b):
        for frame in range(first, t):
            samples.append([streams[clip, i, :, frame - i if delay else frame] for i in range(k)])
    x = np.array(samples)
    standard: Array = (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + 1e-8)
    return standard


def slow_sum(x: Array, y: Array, widths: Sequence[float]) -> float:
    total = 0.0
    for u in x:
        for v in y:
            squared = sum((p - q) ** 2 for p, q in zip(u.ravel(), v.ravel(), strict=True))
            total += sum(math.exp(-squared / (2 * a)) for a in widths)
    return total


def slow_mmd(
    streams: Array,
    permutations: NDArray[np.int64],
    widths: Sequence[float] | str,
    estimator: str,
    delay: bool,
) -> float:
    x = slow_samples(streams, delay)
    n, k = int(x.shape[0]), int(x.shape[1])
    y = np.array([[x[permutations[i, s], i] for i in range(k)] for s in range(n)])
    if isinstance(widths, str):
        pairs = [((x[i] - x[j]) ** 2).sum() for i in range(n) for j in range(i)]
        widths = [float(np.median(pairs))]
    xx, yy, xy = slow_sum(x, x, widths), slow_sum(y, y, widths), slow_sum(x, y, widths)
    w, b = len(widths), len(streams)
    if estimator == "clips":
        pairs_of_clips = b * (b - 1)
        return max(0.0, (xx - w * b) / pairs_of_clips + (yy - w * b) / pairs_of_clips - 2 * xy / b**2)
    if estimator == "samples":
        return (xx + yy - 2 * xy) / n**2
    within = (xx - w * n) / (n * (n - 1)) + (yy - w * n) / (n * (n - 1))
    if estimator == "unbiased":
        return within - 2 * xy / n**2
    apart = [(i, j) for i in range(n) for j in range(n) if i not in permutations[:, j]]
    return within - 2 * sum(slow_sum(x[[i]], y[[j]], widths) for i, j in apart) / len(apart)


def make(b: int, k: int, d: int, t: int, seed: int = 0, shared: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(b, k, d, t, generator=generator, dtype=torch.float64)
    return noise + shared * noise[:, :1]


def shuffles(k: int, n: int, seed: int = 1) -> torch.Tensor:
    return draw_permutations(k, n, torch.device("cpu"), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sigmas", [(0.1, 1.0, 5.0, 10.0, 20.0, 50.0), (3.0,), "median"])
def test_value_is_that_of_a_double_loop(delay: bool, estimator: str, sigmas: Any) -> None:
    streams = make(3, 3, 2, 7, shared=0.5)
    permutations = shuffles(3, 12 if delay else 21)
    found = MMDLoss(sigmas, estimator, delay)(streams, permutations).item()
    wanted = slow_mmd(streams.numpy(), permutations.numpy(), sigmas, estimator, delay)
    assert wanted != 0
    assert found == pytest.approx(wanted, rel=1e-9)


def test_clips_of_one_frame_is_the_unbiased_estimate_clamped() -> None:
    loose = MMDLoss((2.0,), "unbiased", delay=False)
    clamped = MMDLoss((2.0,), "clips", delay=False)
    for shared, sign in ((0.0, -1), (9.0, 1)):
        streams, permutations = make(40, 2, 1, 1, shared=shared), shuffles(2, 40)
        value = loose(streams, permutations).item()
        assert value * sign > 0
        assert clamped(streams, permutations).item() == pytest.approx(max(0.0, value), abs=1e-12)


def test_clips_adds_its_known_constant_to_independent_noise() -> None:
    # Widths so small beside the distance (2 K D = 512) that only the diagonals of the kernel count.
    b, kept, widths = 8, 6, (0.1, 1.0, 5.0)
    value = MMDLoss(widths, "clips", delay=True)(make(b, 4, 64, kept + 4)).item()
    assert value == pytest.approx(2 * len(widths) * (kept - 1) / (b - 1), rel=1e-6)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "closed"])
def test_clips_and_codebooks_have_no_order(estimator: str) -> None:
    b, k, t = 4, 3, 3
    streams, permutations = make(b, k, 2, t, shared=1.0), shuffles(k, b * t)
    loss = MMDLoss((1.0, 4.0), estimator, delay=False)
    value = loss(streams, permutations)
    codebooks = torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(streams[:, codebooks], permutations[codebooks]), value)
    clips = torch.tensor([3, 1, 0, 2])
    order = (clips[:, None] * t + torch.arange(t)).flatten()  # new sample n is old sample order[n]
    moved = order.argsort()[permutations[:, order]]
    torch.testing.assert_close(loss(streams[clips], moved), value)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "closed"])
def test_shift_and_scale_of_a_dimension_do_not_matter(estimator: str) -> None:
    streams, permutations = make(5, 2, 3, 6, shared=1.0), shuffles(2, 20)
    loss = MMDLoss((1.0, 4.0), estimator)
    changed = streams * torch.tensor([5.0, 0.5, 40.0])[:, None] + torch.tensor([1.0, -7.0, 3.0])[:, None]
    torch.testing.assert_close(loss(changed, permutations), loss(streams, permutations), rtol=1e-6, atol=1e-9)


def test_moving_all_codebooks_alike_leaves_nothing_to_see() -> None:
    streams = make(5, 3, 2, 4, shared=1.0)
    alike = shuffles(1, 20).expand(3, 20)
    assert MMDLoss((1.0, 5.0), "samples", delay=False)(streams, alike).abs().item() < 1e-12


@pytest.mark.parametrize("sigmas", ["median", (0.1, 1.0, 5.0, 10.0, 20.0, 50.0)])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "closed"])
def test_identical_codebooks_are_more_dependent_than_independent_ones(sigmas: Any, estimator: str) -> None:
    independent = make(16, 2, 2, 12, seed=3)
    identical = independent[:, :1].expand(-1, 2, -1, -1)
    loss, permutations = MMDLoss(sigmas, estimator, delay=False), shuffles(2, 192)
    low, high = loss(independent, permutations).item(), loss(identical, permutations).item()
    assert high > max(0.0, low) + 0.015


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "closed"])
def test_gradient_is_that_of_finite_differences(delay: bool, estimator: str) -> None:
    streams, permutations = make(2, 2, 2, 5, shared=0.5), shuffles(2, 6 if delay else 10)
    loss = MMDLoss((0.7, 3.0), estimator, delay, row_block=4)
    assert torch.autograd.gradcheck(lambda s: loss(s, permutations), streams.requires_grad_())


@pytest.mark.parametrize("row_block", [1, 7, 24, 1000])
@pytest.mark.parametrize("sigmas", [(1.0, 5.0), "median"])
def test_row_block_changes_neither_value_nor_gradient(row_block: int, sigmas: Any) -> None:
    results = []
    for block in (row_block, 5):
        streams = make(4, 2, 3, 8, shared=0.3).requires_grad_()
        value = MMDLoss(sigmas, "unbiased", row_block=block)(streams, shuffles(2, 24))
        (gradient,) = torch.autograd.grad(value, streams)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[0], results[1])


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_neither_pass_holds_more_than_a_block_of_rows() -> None:
    n, row_block, kept = 256, 32, 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    streams = make(16, 2, 2, n // 16 + 2).requires_grad_()
    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        MMDLoss(estimator="clips", row_block=row_block)(streams).backward()
    assert largest.numel == 2 * n * 4  # all samples of X and Y, K D = 4
    assert kept < n**2 / 2


def test_unbiased_estimate_of_equal_laws_averages_to_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    pairs = [torch.randn(2, 24, 3, generator=generator, dtype=torch.float64) for _ in range(150)]
    values = np.array([squared_mmd(x, y, (1.0, 4.0)).item() for x, y in pairs])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean()) < 3 * error
    biased = np.array([squared_mmd(x, y, (1.0, 4.0), "samples").item() for x, y in pairs])
    assert biased.mean() > 10 * error


def test_unbiased_loss_of_independent_codebooks_has_the_stated_bias() -> None:
    k, d, n, a = 4, 8, 256, 64.0

    def mean_kernel(dimensions: int) -> float:
        return float((1 + 2 / a) ** (-dimensions / 2))  # E exp(-|u - v|^2 / (2 a)) of standard normal u, v

    loss = MMDLoss((a,), "unbiased", delay=False)
    values = np.array([loss(make(n, k, d, 1, seed), shuffles(k, n, seed)).item() for seed in range(20)])
    bias = -2 * k / n * (mean_kernel((k - 1) * d) - mean_kernel(k * d))
    assert values.mean() == pytest.approx(bias, rel=0.02)
    assert abs(bias) > 20 * values.std(ddof=1)


@pytest.mark.parametrize("n", [2, 3, 40, 1024, 2100])
def test_median_sigma_is_the_median_over_strided_pairs(n: int) -> None:
    x = make(1, 1, 3, n)[0, 0].T
    strided = x.numpy()[:: math.ceil(n / 1024)]
    assert median_sigma(x) == pytest.approx(float(np.median(pdist(strided, "sqeuclidean"))), rel=1e-9)


def test_constant_streams_have_no_dependence_and_a_finite_gradient() -> None:
    streams = torch.ones(3, 2, 2, 6, requires_grad=True)
    value = MMDLoss("median", "samples")(streams)
    value.backward()
    assert value.item() == 0
    assert streams.grad is not None and torch.isfinite(streams.grad).all()


def test_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    streams, permutations = make(4, 2, 4, 8, shared=1.0).bfloat16(), shuffles(2, 24)
    loss = MMDLoss((1.0, 5.0), "unbiased")
    exact, low = streams.float().requires_grad_(), streams.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low, permutations)
    value.backward()
    wanted = loss(exact, permutations)
    wanted.backward()
    assert value.dtype == torch.float32 and loss(streams.double(), permutations).dtype == torch.float64
    torch.testing.assert_close(value, wanted)
    assert low.grad is not None and exact.grad is not None
    torch.testing.assert_close(low.grad, exact.grad.bfloat16())


def test_generator_makes_the_shuffles_reproducible() -> None:
    streams, loss = make(4, 3, 2, 9, shared=1.0), MMDLoss((1.0, 5.0), "samples")
    first, second, other = (loss(streams, generator=torch.Generator().manual_seed(s)).item() for s in (7, 7, 8))
    assert first == second != other
    rows = shuffles(3, 50)
    assert all(sorted(row) == list(range(50)) for row in rows.tolist())
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("sigmas", [(), (1.0, 0.0), (-1.0,), (math.inf,), (math.nan,), "mean"])
def test_unusable_sigmas_are_refused(sigmas: Any) -> None:
    with pytest.raises(ConfigError, match=r"mmd\.sigmas=.*'median'"):
        MMDLoss(sigmas, "clips")


def test_unknown_estimator_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'unbaised'; choose one of: clips, samples, unbiased, disjoint, rff, closed"
    ):
        MMDLoss(estimator="unbaised")
    with pytest.raises(ConfigError, match="row_block=0"):
        MMDLoss(row_block=0)


@pytest.mark.parametrize(
    ("shape", "delay", "message"),
    [
        ((2, 3, 4), True, r"expected a floating point tensor \[B, K, D, T\]"),
        ((4, 1, 2, 8), True, r"K=1 codebook.*raise n_q"),
        ((4, 3, 2, 3), True, r"T=3 frames.*needs 4 or more"),
        ((4, 3, 2, 0), False, r"T=0 frames.*needs 1 or more"),
        ((1, 3, 2, 1), False, r"1 sample"),
        ((1, 3, 2, 9), True, r"B=1 clip"),
    ],
)
def test_streams_too_small_or_misshapen_are_refused(shape: tuple[int, ...], delay: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MMDLoss(estimator="clips", delay=delay)(torch.zeros(shape))


def test_streams_that_are_not_finite_or_not_floating_are_refused() -> None:
    streams = torch.zeros(2, 2, 2, 6)
    streams[1, 0, 1, 3] = math.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        MMDLoss(estimator="clips")(streams)
    with pytest.raises(DataError, match="floating point"):
        MMDLoss(estimator="clips")(torch.zeros(2, 2, 2, 6, dtype=torch.long))


def test_permutations_of_another_shape_kind_or_range_are_refused() -> None:
    streams, loss = make(2, 2, 2, 6), MMDLoss(estimator="clips")
    good = shuffles(2, 8)
    assert torch.isfinite(loss(streams, good))
    twice = good.clone()
    twice[1, 0] = twice[1, 1]
    for bad in (good[:, :7], good[:1], good.float(), twice, good + 1):
        with pytest.raises(DataError, match="permutations"):
            loss(streams, bad)
