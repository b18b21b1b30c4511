"""The closed form against a plain loop, autograd of dense matrices and its own expectation; what `between` compares."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.losses.closed import closed_mmd
from audiotok.losses.mmd import RELEASED_SIGMAS, MMDLoss, draw_permutations, joint_samples, samples_of, standardise
from audiotok.metrics.mmd_permutation import _independence_statistic
from tests.losses.test_mmd import LargestTensor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dependent(*shape: int, seed: int = 0) -> torch.Tensor:
    """Streams or samples whose variables, along axis 1, hold the first one as well."""
    noise = normal(*shape, seed=seed)
    return noise + noise[:, :1]


def looped(x: Sequence[Any], sigmas: Sequence[float]) -> float:
    """The closed form of x [N][K][D], every kernel computed where it is needed."""
    n, k = len(x), len(x[0])

    def kernel(a: float, q: int, i: int, j: int) -> float:
        return math.exp(-sum((u - v) ** 2 for u, v in zip(x[i][q], x[j][q], strict=True)) / (2 * a))

    total = 0.0
    for a in sigmas:
        pairs = list(itertools.permutations(range(n), 2))
        joint = sum(math.prod(kernel(a, q, i, j) for q in range(k)) for i, j in pairs) / len(pairs)
        rows = [[sum(kernel(a, q, i, j) for j in range(n) if j != i) / (n - 1) for i in range(n)] for q in range(k)]
        marginal = math.prod(sum(row) / n for row in rows)
        total += joint + marginal - 2 * sum(math.prod(row[i] for row in rows) for i in range(n)) / n
    return total


def dense(x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """The same by whole matrices, for autograd."""
    apart = 1 - torch.eye(len(x), dtype=x.dtype)
    squared = (x[:, None] - x).square().sum(-1)
    total = x.new_zeros(())
    for a in sigmas:
        kernels = (squared / (-2 * a)).exp() * apart[..., None]
        rows = kernels.sum(1) / (len(x) - 1)
        joint = kernels.prod(-1).sum() / (len(x) * (len(x) - 1))
        total = total + joint + rows.mean(0).prod() - 2 * rows.prod(1).mean()
    return total


@pytest.mark.parametrize("row_block", [1, 4, 100])
@pytest.mark.parametrize("sigmas", [(3.0,), RELEASED_SIGMAS])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_value_is_that_of_a_loop(k: int, sigmas: tuple[float, ...], row_block: int) -> None:
    x = dependent(9, k, 2)
    wanted = looped(x.tolist(), sigmas)
    assert wanted != 0
    assert closed_mmd(x, sigmas, row_block).item() == pytest.approx(wanted, rel=1e-12)
    assert closed_mmd(x.float(), sigmas, row_block).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("between", ["codebooks", "dimensions", "frames"])
@pytest.mark.parametrize("sigmas", ["median", (0.5, 4.0)])
def test_loss_is_that_of_standardised_samples(sigmas: Any, between: str) -> None:
    streams = dependent(4, 2, 2, 5)
    x = standardise(samples_of(streams, between, False))
    flat = x.flatten(1).numpy()
    pairs = [float(((u - v) ** 2).sum()) for u, v in itertools.combinations(flat, 2)]
    widths = [float(np.median(pairs))] if sigmas == "median" else sigmas
    found = MMDLoss(sigmas, "closed", False, between=between)(streams)
    assert found.item() == pytest.approx(looped(x.tolist(), widths), rel=1e-9)


def test_loss_delays_codebooks() -> None:
    streams = dependent(3, 3, 2, 6)
    delayed = torch.stack(
        [torch.stack([streams[b, q, :, t - q] for q in range(3)]) for b in range(3) for t in (3, 4, 5)]
    )
    found = MMDLoss((2.0,), "closed", delay=True)(streams)
    assert found.item() == pytest.approx(looped(standardise(delayed).tolist(), (2.0,)), rel=1e-9)


def test_value_is_that_of_the_permutation_test() -> None:
    x = dependent(30, 3, 2)
    squared = (x[:, None] - x).square().sum(-1).permute(2, 0, 1)
    (statistic,) = _independence_statistic(squared, (0.5, 4.0), [torch.arange(30).expand(3, 30)])
    assert closed_mmd(x, (0.5, 4.0), 7).item() == pytest.approx(statistic, rel=1e-10)


@pytest.mark.parametrize("row_block", [1, 5, 100])
@pytest.mark.parametrize("k", [2, 4])
def test_gradient_is_that_of_dense_matrices(k: int, row_block: int) -> None:
    x, sigmas = dependent(14, k, 3).requires_grad_(), (0.1, 2.0, 30.0)
    (found,) = torch.autograd.grad(3 * closed_mmd(x, sigmas, row_block), x)
    (wanted,) = torch.autograd.grad(3 * dense(x, sigmas), x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    with torch.no_grad():
        assert not closed_mmd(x, sigmas).requires_grad


@pytest.mark.parametrize(("between", "delay"), [("codebooks", True), ("dimensions", False), ("frames", False)])
def test_gradient_of_the_loss_is_that_of_finite_differences(between: str, delay: bool) -> None:
    loss = MMDLoss((0.7, 3.0), "closed", delay, row_block=3, between=between)
    assert torch.autograd.gradcheck(loss, dependent(2, 2, 1, 4).requires_grad_())


@pytest.mark.parametrize("sigmas", [(128.0,), RELEASED_SIGMAS])
def test_single_precision_keeps_value_and_gradient(sigmas: tuple[float, ...]) -> None:
    x = standardise(dependent(150, 4, 16))
    exact, found = x.requires_grad_(), x.detach().float().requires_grad_()
    value, wanted = closed_mmd(found, sigmas, 64), dense(exact, sigmas)
    assert value.item() == pytest.approx(wanted.item(), abs=1e-6)
    (gradient,), (wanted_gradient,) = torch.autograd.grad(value, found), torch.autograd.grad(wanted, exact)
    assert (gradient - wanted_gradient).abs().max() < 1e-4 * wanted_gradient.abs().max()


@pytest.mark.parametrize("sigmas", [(64.0,), "median"])
def test_independent_variables_give_zero_on_average(sigmas: Any) -> None:
    loss = MMDLoss(sigmas, "closed", delay=False)
    values = np.array([loss(normal(24, 4, 3, 1, seed=seed).exp()).item() for seed in range(300)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(len(values))
    weak = normal(24, 4, 3, 1)
    assert loss(weak + 2 * weak[:, :1]).item() > 10 * values.std(ddof=1)


def test_mean_over_all_permutations_is_zero_however_dependent_the_samples_are() -> None:
    x = normal(4, 1, 2).repeat(1, 2, 1)
    orders = itertools.permutations(range(4))
    values = [closed_mmd(torch.stack([x[:, 0], x[list(order), 1]], 1), (0.3, 2.0)).item() for order in orders]
    assert values[0] == max(values) > 0.01
    assert abs(np.mean(values)) < 1e-15


def test_no_permutation_is_drawn_or_looked_at() -> None:
    streams, loss = dependent(6, 3, 2, 5), MMDLoss("median", "closed", delay=False)
    state = torch.get_rng_state()
    values = {loss(streams).item(), loss(streams, draw_permutations(3, 30, torch.device("cpu"))[:, :4]).item()}
    torch.set_rng_state(state)
    assert len(values) == 1
    generator = torch.Generator().manual_seed(3)
    loss(streams, generator=generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


def test_samples_and_variables_have_no_order() -> None:
    x = dependent(20, 4, 2)
    value = closed_mmd(x, (1.0, 6.0), 8)
    torch.testing.assert_close(closed_mmd(x.flip(0), (1.0, 6.0), 8), value)
    torch.testing.assert_close(closed_mmd(x[:, [2, 0, 3, 1]], (1.0, 6.0), 8), value)


def test_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    streams, loss = dependent(4, 2, 4, 8).bfloat16(), MMDLoss((1.0, 5.0), "closed")
    exact, low = streams.float().requires_grad_(), streams.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low)
    value.backward()
    wanted = loss(exact)
    wanted.backward()
    assert value.dtype == torch.float32 and loss(streams.double()).dtype == torch.float64
    torch.testing.assert_close(value, wanted)
    assert low.grad is not None and exact.grad is not None
    torch.testing.assert_close(low.grad, exact.grad.bfloat16())


def test_kernels_that_vanish_leave_no_trace() -> None:
    x = (40 * dependent(30, 3, 4)).float().requires_grad_()
    value = closed_mmd(x, (0.1, 0.5), 8)
    value.backward()
    assert value.item() == 0 and x.grad is not None and x.grad.abs().max() == 0


def test_no_more_than_tiles_and_samples_is_kept() -> None:
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    x = dependent(120, 3, 2).requires_grad_()
    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        closed_mmd(x, (2.0,), 12).backward()
    assert kept <= x.numel() and largest.numel <= x.numel()


def test_variables_are_those_of_frame_or_clip() -> None:
    b, k, d, t = 3, 2, 4, 5
    streams = torch.arange(b * k * d * t, dtype=torch.float64).view(b, k, d, t)
    dimensions, frames = (samples_of(streams, between, False) for between in ("dimensions", "frames"))
    assert dimensions.shape == (b * t, k * d, 1) and frames.shape == (b, t, k * d)
    for clip, codebook, value, frame in itertools.product(range(b), range(k), range(d), range(t)):
        wanted = streams[clip, codebook, value, frame]
        assert dimensions[clip * t + frame, codebook * d + value, 0] == wanted
        assert frames[clip, frame, codebook * d + value] == wanted
    assert torch.equal(samples_of(streams, "codebooks", True), joint_samples(streams, True))


@pytest.mark.parametrize("estimator", ["unbiased", "samples", "clips", "disjoint", "rff", "closed"])
@pytest.mark.parametrize("between", ["codebooks", "dimensions", "frames"])
def test_dependence_is_seen_where_it_is_looked_for(between: str, estimator: str) -> None:
    streams = {name: normal(300, 2, 2, 2) for name in ("none", "codebooks", "dimensions", "frames")}
    streams["codebooks"][:, 1] = streams["codebooks"][:, 0]
    streams["dimensions"][:, :, 1] = streams["dimensions"][:, :, 0]  # of one codebook
    streams["frames"][..., 1] = streams["frames"][..., 0]
    loss = MMDLoss("median", estimator, False, between=between)
    values = {name: loss(s, generator=torch.Generator().manual_seed(0)).item() for name, s in streams.items()}
    seen = {between, "codebooks"} if between == "dimensions" else {between}
    assert min(values[name] for name in seen) > 2 * max(values[name] for name in streams.keys() - seen)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mmd\.between='clips'; choose one of: codebooks, dimensions, frames"):
        MMDLoss(between="clips")
    with pytest.raises(ConfigError, match=r"mmd\.between='frames' with mmd\.delay=true"):
        MMDLoss(between="frames")
    with pytest.raises(DataError, match=r"\[4, 2, 3, 1\] hold 1 of mmd\.between='frames'"):
        MMDLoss(delay=False, between="frames")(normal(4, 2, 3, 1))
    with pytest.raises(DataError, match=r"1 sample"):
        MMDLoss(delay=False, between="frames")(normal(1, 2, 3, 9))
