"""k-means against Lloyd's algorithm written out in double precision."""

import importlib

import numpy as np
import pytest
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.quantization import kmeans
from audiotok.quantization.kmeans import STARTS, draw, draw_apart, nearest

module = importlib.import_module("audiotok.quantization.kmeans")  # the package gives the function under that name


def lloyd(samples: np.ndarray, means: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    means = means.copy()
    for _ in range(rounds):
        owner = ((samples[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
        for k in range(len(means)):
            if (owner == k).any():
                means[k] = samples[owner == k].mean(axis=0)
    return means, np.bincount(owner, minlength=len(means))


def objective(samples: np.ndarray, means: np.ndarray) -> float:
    return float(((samples[:, None] - means[None]) ** 2).sum(axis=2).min(axis=1).sum())


@pytest.mark.parametrize("num_clusters", [1, 7, 40])
def test_same_means_as_naive_lloyd_from_the_same_start(num_clusters: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(300, 5))
    start = samples[:num_clusters]
    expected, counts = lloyd(samples, start, rounds=8)
    means, found = kmeans(torch.from_numpy(samples), num_clusters, 8, init=torch.from_numpy(start))
    np.testing.assert_allclose(means.numpy(), expected, atol=1e-10)
    assert found.tolist() == counts.tolist()


def test_single_precision_is_no_worse_than_naive_lloyd() -> None:
    rng = np.random.default_rng(1)
    samples = 100 + rng.normal(size=(500, 8))  # far from the origin, where |x|^2 - 2xm + |m|^2 cancels
    expected, _ = lloyd(samples, samples[:20], rounds=15)
    single = torch.from_numpy(samples).float()
    means, _ = kmeans(single, 20, 15, init=single[:20])
    assert objective(samples, means.double().numpy()) <= 1.01 * objective(samples, expected)


def test_more_rounds_never_raise_the_objective() -> None:
    samples = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [objective(samples.numpy(), kmeans(samples, 12, n, init=samples[:12])[0].numpy()) for n in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("num_clusters", [2, 12, 80])
def test_stopping_early_changes_nothing(num_clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(2).normal(size=(60, 2))
    twin = np.arange(num_clusters) % 60  # 80 means hold duplicates …
    start = samples[twin]
    rounds = []

    def watched(samples: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        rounds.append(means)
        return nearest(samples, means)

    monkeypatch.setattr(module, "nearest", watched)
    means, counts = kmeans(torch.from_numpy(samples), num_clusters, 200, init=torch.from_numpy(start))
    expected, found = lloyd(samples, start, rounds=200)
    np.testing.assert_allclose(means.numpy(), expected, atol=1e-12)
    # … and rounding, which differs by processor, decides which of two equal means owns a sample: count them together.
    np.testing.assert_array_equal(np.bincount(twin, weights=counts.numpy()), np.bincount(twin, weights=found))
    assert len(rounds) < 40


def test_plusplus_draws_by_squared_distance() -> None:
    # From 0, 1 and 3 the squared distances are 1, 4 and 9, and the first point is any with the same chance.
    samples, generator = torch.tensor([[0.0], [1.0], [3.0]]), torch.Generator().manual_seed(0)
    squared = {(0, 1): 1, (0, 3): 9, (1, 0): 1, (1, 3): 4, (3, 0): 9, (3, 1): 4}
    rounds = 6000
    pairs = [tuple(int(x) for x in draw_apart(samples, 2, generator).flatten()) for _ in range(rounds)]
    for (first, second), distance in squared.items():
        chance = distance / sum(d for pair, d in squared.items() if pair[0] == first) / 3
        spread = (rounds * chance * (1 - chance)) ** 0.5
        assert abs(pairs.count((first, second)) - rounds * chance) < 4 * spread


def test_plusplus_takes_no_sample_twice_while_another_is_left() -> None:
    samples = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [0.0, 5.0], [1e3, 1e3]]).repeat(6, 1)
    for seed in range(20):
        chosen = draw_apart(samples, 9, torch.Generator().manual_seed(seed)).tolist()
        assert len({tuple(x) for x in chosen[:4]}) == len({tuple(x) for x in chosen}) == 4


def test_plusplus_finds_clusters_that_a_random_start_misses() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 100 * torch.randn(20, 8, generator=generator)
    samples = centers.repeat(10, 1) + torch.randn(200, 8, generator=generator)
    errors: dict[str, list[float]] = {start: [] for start in STARTS}
    for start, found in errors.items():
        for seed in range(10):
            means, _ = kmeans(samples, 20, 50, torch.Generator().manual_seed(seed), start=start)
            found.append(objective(samples.numpy(), means.numpy()))
    assert np.median(errors["plusplus"]) < 0.5 * np.median(errors["sample"])
    assert min(errors["plusplus"]) == pytest.approx(200 * 8 * 0.9, rel=0.1)  # noise alone, less 20 means


def test_empty_clusters_keep_their_start() -> None:
    samples = torch.tensor([[0.0], [1.0], [2.0]])
    means, counts = kmeans(samples, 2, 3, init=torch.tensor([[1.0], [50.0]]))
    assert means.flatten().tolist() == [1.0, 50.0]
    assert counts.tolist() == [3.0, 0.0]


def test_fewer_samples_than_clusters() -> None:
    samples = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    means, counts = kmeans(samples, 16, 4, generator=torch.Generator().manual_seed(0))
    assert {tuple(mean) for mean in means.tolist()} == {(0.0, 0.0), (9.0, 9.0)}
    assert counts.sum() == 2


def test_the_generator_decides_the_start() -> None:
    samples = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    runs = [kmeans(samples, 5, 1, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_drawn_samples_differ_while_there_are_enough() -> None:
    samples = torch.arange(20.0)[:, None]
    assert draw(samples, 20).flatten().sort().values.tolist() == list(range(20))
    assert draw(samples, 33).shape == (33, 1)


def test_blocks_do_not_change_the_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, means = torch.randn(101, 4, generator=generator), torch.randn(9, 4, generator=generator)
    distances = np.linalg.norm(samples.double().numpy()[:, None] - means.double().numpy(), axis=2)
    for chunk in (1, 10, 101, 1000):
        assert nearest(samples, means, chunk).tolist() == distances.argmin(axis=1).tolist()


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_clusters=0"):
        kmeans(torch.zeros(3, 1), 0, 1)
    with pytest.raises(ConfigError, match=r"init is \[2, 1\]; give \[3, 1\]"):
        kmeans(torch.zeros(5, 1), 3, 1, init=torch.zeros(2, 1))
    with pytest.raises(ConfigError, match="start='best'; choose one of: sample, plusplus"):
        kmeans(torch.zeros(5, 1), 2, 1, start="best")
    with pytest.raises(DataError, match="N >= 1"):
        kmeans(torch.zeros(0, 4), 3, 1)
