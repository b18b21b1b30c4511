"""Random Fourier features against the exact estimate."""

import math

import numpy as np
import pytest
import torch

from audiotok.losses import kernels
from audiotok.losses.kernels import _frequencies, squared_mmd, squared_mmd_rff
from audiotok.losses.mmd import MMDLoss, draw_permutations


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("widths", [(6.0,), (1.0, 5.0, 20.0)])
def test_mean_over_seeds_is_the_exact_unbiased_estimate(widths: tuple[float, ...]) -> None:
    x, y = normal(40, 4), 1.3 * normal(40, 4, seed=1)
    exact = squared_mmd(x, y, widths).item()
    values = np.array([squared_mmd_rff(x, y, widths, 60, seed).item() for seed in range(300)])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - exact) < 3 * error
    assert 8 * error < exact  # so that a wrong factor would show


def test_error_falls_with_the_root_of_the_number_of_features() -> None:
    x, y = normal(30, 4), 1.3 * normal(30, 4, seed=1)
    few, many = (
        np.std([squared_mmd_rff(x, y, (6.0,), count, seed).item() for seed in range(200)]) for count in (16, 256)
    )
    assert few / many == pytest.approx(4, rel=0.25)


def test_value_is_that_of_cosines_over_all_pairs() -> None:
    x, y, widths, n = normal(9, 3), normal(9, 3, seed=1), (1.0, 4.0), 9
    w = _frequencies(3, widths, 5, seed=2).numpy()

    def total(u: torch.Tensor, v: torch.Tensor, own: bool) -> float:
        return float(
            sum(
                np.cos((u[i].numpy() - v[j].numpy()) @ w).sum() / 5
                for i in range(n)
                for j in range(n)
                if not (own and i == j)
            )
        )

    wanted = (total(x, x, True) + total(y, y, True)) / (n * (n - 1)) - 2 * total(x, y, False) / n**2
    assert squared_mmd_rff(x, y, widths, 10, seed=2).item() == pytest.approx(wanted, rel=1e-10)


def test_frequencies_have_the_variance_of_their_width_and_their_seed() -> None:
    first = _frequencies(200, (0.25, 16.0), 400, seed=3)
    assert first.shape == (200, 800)
    spread = first.view(200, 2, 400).std(dim=(0, 2))
    torch.testing.assert_close(spread, torch.tensor([2.0, 0.25], dtype=torch.float64), rtol=0.02, atol=0)
    assert torch.equal(first, _frequencies(200, (0.25, 16.0), 400, seed=3))
    assert not torch.equal(first, _frequencies(200, (0.25, 16.0), 400, seed=4))


@pytest.mark.parametrize("sigmas", [(1.0, 5.0), "median"])
def test_loss_has_the_gradient_of_finite_differences(sigmas: tuple[float, ...] | str) -> None:
    streams = normal(2, 2, 2, 6).requires_grad_()
    permutations = draw_permutations(2, 8, torch.device("cpu"), torch.Generator().manual_seed(1))
    loss = MMDLoss((1.0, 5.0), "rff", num_features=20, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, permutations), streams)
    value = MMDLoss(sigmas, "rff", num_features=20_000)(streams, permutations).item()
    exact = MMDLoss(sigmas, "unbiased")(streams, permutations).item()
    assert value == pytest.approx(exact, abs=0.01)


def test_blocks_of_rows_change_neither_value_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1024, 7):
        monkeypatch.setattr(kernels, "RFF_ROWS", rows)
        x, y = normal(30, 3).requires_grad_(), normal(30, 3, seed=1).requires_grad_()
        value = squared_mmd_rff(x, y, (1.0, 5.0), 32, seed=0)
        results.append((value.detach(), *torch.autograd.grad(value, (x, y))))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_streams_work_and_give_float32() -> None:
    streams = normal(4, 2, 3, 12).bfloat16().requires_grad_()
    value = MMDLoss((4.0,), "rff")(streams)
    value.backward()
    assert value.dtype == torch.float32
    assert streams.grad is not None and torch.isfinite(streams.grad).all() and streams.grad.abs().max() > 0
