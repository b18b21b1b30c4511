"""The tiles of the exact MMD: what they leave out, hard input, the disjoint estimate, Triton beside PyTorch."""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from audiotok.errors import ConfigError, DataError
from audiotok.losses.kernels import _tile_terms, squared_mmd
from audiotok.losses.mmd import RELEASED_SIGMAS, MMDLoss, draw_permutations

ROOT = Path(__file__).parents[2]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffles(k: int, n: int, seed: int = 1) -> torch.Tensor:
    return draw_permutations(k, n, torch.device("cpu"), torch.Generator().manual_seed(seed))


def dense_mmd(x: torch.Tensor, y: torch.Tensor, widths: Sequence[float]) -> float:
    def mean(u: torch.Tensor, v: torch.Tensor, own: bool) -> float:
        squared = cdist(u.double().numpy(), v.double().numpy(), "sqeuclidean")
        kernel = np.stack([np.exp(-squared / (2 * a)) for a in widths]).sum(0)
        n = len(u)
        return float((kernel.sum() - own * len(widths) * n) / (n * (n - own)))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize(
    ("low", "high"), [(600.0, 1400.0), (250.0, 4000.0), (0.0, 3.0), (-1e-5, 1500.0), (1e4, 2e4), (5.0, math.inf)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_of_a_tile_lose_nothing_that_its_precision_holds(low: float, high: float, dtype: torch.dtype) -> None:
    spread = torch.linspace(0, 1, 600, dtype=torch.float64).view(20, 30)
    squared = (low + (min(high, 900.0) - low) * spread).to(dtype)
    if high == math.inf:
        squared[3, 5] = math.inf
    widths = sorted(RELEASED_SIGMAS, reverse=True)
    exact = [torch.exp(-squared.double().clamp(min=0) / (2 * a)) for a in widths]
    slope = torch.full_like(squared, math.nan)
    total = _tile_terms(squared.clone(), slope, widths=widths, spare=torch.empty(700, dtype=dtype))
    kernel, wanted = sum(exact, torch.zeros(())), sum(widths[0] / a * e for a, e in zip(widths, exact, strict=True))
    limits = torch.finfo(dtype)
    if total is None:
        assert isinstance(wanted, torch.Tensor) and wanted.max().item() < 4 * limits.tiny
        return
    exponent = float(exact[0][exact[0] > 0].log().abs().max())  # its rounding is what exp enlarges
    tolerance = (exponent + 10) * limits.eps
    torch.testing.assert_close(slope.double(), wanted, rtol=tolerance, atol=1000 * limits.tiny)
    assert total.item() == pytest.approx(kernel.sum().item(), rel=tolerance)
    assert not ((slope != 0) & (slope.abs() < limits.tiny)).any()  # no denormal number is left to slow a product


def test_left_out_widths_are_those_that_addition_would_lose() -> None:
    squared = (400 + 800 * torch.rand(40, 50, generator=torch.Generator().manual_seed(0))).float()
    widths = sorted(RELEASED_SIGMAS, reverse=True)
    slope = torch.empty_like(squared)
    _tile_terms(squared.clone(), slope, widths=widths, spare=torch.empty(2000))
    added = torch.zeros_like(squared)
    for a in widths:
        added += widths[0] / a * (squared * (-0.5 / a)).exp()
    torch.testing.assert_close(slope, added, rtol=2.4e-7, atol=0)


@pytest.mark.parametrize("widths", [RELEASED_SIGMAS, (1024.0,), (0.1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_at_full_width_is_that_of_scipy(widths: Sequence[float], dtype: torch.dtype) -> None:
    x, y = normal(150, 512).to(dtype), normal(150, 512, seed=1).to(dtype) * 1.05
    found = squared_mmd(x, y, widths, row_block=64).item()
    largest = math.exp(-700 / (2 * max(widths)))  # no two of these samples are closer
    assert found == pytest.approx(dense_mmd(x, y, widths), rel=0, abs=largest * 10 * torch.finfo(dtype).eps)


def test_distance_from_the_origin_costs_no_digits() -> None:
    x, y = normal(60, 8).float(), normal(60, 8, seed=1).float()
    far_x, far_y = x + 3000, y + 3000
    assert squared_mmd(far_x, far_y, (4.0,)).item() == pytest.approx(dense_mmd(far_x, far_y, (4.0,)), abs=2e-6)


def test_streams_far_from_zero_are_standardised_without_loss() -> None:
    streams, permutations = (normal(4, 2, 3, 12) + 5000).float(), shuffles(2, 48)
    loss = MMDLoss((1.0, 4.0), "unbiased", delay=False)
    exact, found = streams.double().requires_grad_(), streams.clone().requires_grad_()
    wanted = loss(exact, permutations)
    value = loss(found, permutations)
    assert value.item() == pytest.approx(wanted.item(), abs=2e-6)
    (gradient,), (wanted_gradient,) = torch.autograd.grad(value, found), torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("estimator", ["samples", "unbiased", "clips"])
def test_x_and_y_play_the_same_part(estimator: str) -> None:
    x, y = normal(31, 5).requires_grad_(), (normal(31, 5, seed=1) * 2).requires_grad_()
    value, swapped = (squared_mmd(u, v, (1.0, 9.0), estimator, 4, row_block=8) for u, v in ((x, y), (y, x)))
    assert value.item() == pytest.approx(swapped.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, (x, y)), torch.autograd.grad(swapped, (x, y)))


def test_a_set_beside_itself_gives_zero_and_no_gradient() -> None:
    x = normal(40, 6)
    u, v = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = squared_mmd(u, v, (1.0, 9.0), "samples", row_block=7)
    value.backward()
    assert abs(value.item()) < 1e-15
    assert u.grad is not None and u.grad.abs().max() < 1e-15


def test_one_side_alone_can_ask_for_its_gradient() -> None:
    x, y = normal(8, 3).requires_grad_(), normal(8, 3, seed=1)
    assert torch.autograd.gradcheck(lambda u: squared_mmd(u, y, (2.0,), row_block=3), x)
    with torch.no_grad():
        assert not squared_mmd(x, y, (2.0,)).requires_grad


def test_half_precision_samples_are_compared_in_float32() -> None:
    x, y = normal(50, 6).bfloat16(), normal(50, 6, seed=1).bfloat16()
    found = squared_mmd(x, y, (1.0, 9.0))
    assert found.dtype == torch.bfloat16
    assert found.item() == pytest.approx(dense_mmd(x.float(), y.float(), (1.0, 9.0)), rel=2**-8)


@pytest.mark.parametrize("estimator", ["clips", "samples", "unbiased", "disjoint", "rff", "closed"])
def test_a_dimension_that_never_varies_contributes_nothing(estimator: str) -> None:
    streams, permutations = normal(4, 2, 3, 16).float(), shuffles(2, 64)
    streams[:, :, 1] = 0.1
    leaf = streams.clone().requires_grad_()
    loss = MMDLoss((1.0, 4.0), estimator, delay=False)
    value = loss(leaf, permutations)
    value.backward()
    assert leaf.grad is not None and leaf.grad[:, :, 1].abs().max() == 0 and torch.isfinite(leaf.grad).all()
    if estimator != "rff":  # whose frequencies depend on the number of dimensions
        torch.testing.assert_close(value.detach(), loss(streams[:, :, [0, 2]], permutations))


def test_disjoint_estimate_of_independent_codebooks_averages_to_zero() -> None:
    k, d, n = 4, 8, 48
    disjoint, unbiased = (MMDLoss((64.0,), name, delay=False) for name in ("disjoint", "unbiased"))
    draws = [(normal(n, k, d, 1, seed=seed), shuffles(k, n, seed)) for seed in range(100)]
    values = np.array([[loss(*draw).item() for draw in draws] for loss in (disjoint, unbiased)])
    error = values.std(1, ddof=1) / math.sqrt(len(draws))
    assert abs(values[0].mean()) < 3 * error[0]
    assert values[1].mean() < -20 * error[1]


def test_disjoint_needs_a_pair_that_shares_nothing() -> None:
    with pytest.raises(DataError, match=r"N=2 samples of K=2 codebooks"):
        MMDLoss((1.0,), "disjoint", delay=False)(normal(1, 2, 2, 2), torch.tensor([[0, 1], [1, 0]]))


def test_few_samples_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    loss = MMDLoss((1.0,), "unbiased", delay=False)
    with caplog.at_level(logging.WARNING, logger="audiotok.losses.mmd"):
        loss(normal(1, 3, 2, 48))
        assert caplog.messages == []
        loss(normal(1, 3, 2, 47))
        loss(normal(1, 3, 2, 46))
    assert len(caplog.messages) == 1
    assert "N=47 samples of K=3" in caplog.messages[0] and "48 samples or more" in caplog.messages[0]


def test_fewer_features_than_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mmd\.num_features=5 for 6 width"):
        MMDLoss(estimator="rff", num_features=5)


def test_the_value_keeps_its_digits_where_the_sums_nearly_cancel() -> None:
    x = normal(1500, 32)
    y = x[torch.randperm(1500, generator=torch.Generator().manual_seed(1))] + 0.05 * normal(1500, 32, seed=2)
    widths = [50.0, 200.0, 1000.0]
    exact = squared_mmd(x, y, widths).item()
    assert squared_mmd(x.float(), y.float(), widths).item() == pytest.approx(exact, rel=5e-5)


TRITON_BESIDE_TILES = """
import json, torch
from audiotok.losses.kernels import _tile_terms
from audiotok.losses.triton_kernels import fused_terms
found = []
for dtype in (torch.float32, torch.float64):
    for shape, high in (((1, 1), 9.0), ((37, 113), 60.0), ((70, 90), 900.0)):
        squared = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * high
        if shape != (1, 1):
            squared[3, 4], squared[0, 0] = float("inf"), -1e-6
        widths = [50.0, 20.0, 5.0, 0.1]
        fused, tiles = torch.empty_like(squared), torch.empty_like(squared)
        total = fused_terms(widths, squared)(squared.clone(), fused)
        wanted = _tile_terms(squared.clone(), tiles, widths=widths, spare=torch.empty_like(squared).flatten())
        eps = torch.finfo(dtype).eps
        apart = (fused - tiles).abs() / tiles.abs().clamp(min=1e-30)
        found.append([abs(total - wanted).item() / wanted.item() / eps, apart.max().item() / eps])
print(json.dumps(found))
"""


def test_triton_kernel_gives_what_the_tiles_give() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", TRITON_BESIDE_TILES], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    errors = json.loads(process.stdout)
    assert len(errors) == 6 and max(max(pair) for pair in errors) < 40
