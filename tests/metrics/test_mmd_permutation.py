"""The MMD test: its statistic against loops, its mean over all permutations, its p-values and its power."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.metrics import mmd_permutation_test
from audiotok.metrics.mmd_permutation import _independence_statistic


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(b: int, k: int, d: int, t: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, k, d, t, generator=seeded(seed), dtype=torch.float64)


def squared(x: torch.Tensor) -> torch.Tensor:
    """Squared distances [K, N, N] of x [N, K, D], by subtraction."""
    return (x[:, None] - x).square().sum(-1).permute(2, 0, 1)


def looped(x: torch.Tensor, sigmas: Sequence[float]) -> float:
    """The statistic of x [N, K, D] from its definition, every tuple of other samples visited."""
    n, k, _ = x.shape
    d = squared(x).numpy()
    total = 0.0
    for a in sigmas:
        joint = np.mean([math.exp(-d[:, i, j].sum() / (2 * a)) for i, j in itertools.permutations(range(n), 2)])
        product = math.prod(
            float(np.mean([math.exp(-d[q, i, j] / (2 * a)) for i, j in itertools.permutations(range(n), 2)]))
            for q in range(k)
        )
        cross = [
            math.exp(-sum(d[q, i, j] for q, j in enumerate(others)) / (2 * a))
            for i in range(n)
            for others in itertools.product([j for j in range(n) if j != i], repeat=k)
        ]
        total += float(joint + product - 2 * np.mean(cross))
    return total


def test_statistic_is_that_of_its_definition() -> None:
    x = noise(7, 3, 2, 1)[..., 0]
    sigmas = (0.5, 4.0)
    order = torch.stack([torch.randperm(7, generator=seeded(q)) for q in range(3)])
    shuffled = torch.stack([x[order[q], q] for q in range(3)], 1)
    identity = torch.arange(7).expand(3, 7)
    found = _independence_statistic(squared(x), sigmas, [identity, order])
    assert found == pytest.approx([looped(x, sigmas), looped(shuffled, sigmas)], rel=1e-9)


def test_mean_over_all_permutations_is_zero_however_dependent_the_samples_are() -> None:
    x = noise(4, 1, 3, 1)[..., 0].repeat(1, 2, 1)
    orders = [torch.tensor([range(4), order]) for order in itertools.permutations(range(4))]
    values = _independence_statistic(squared(x), (0.3, 2.0), orders)
    assert values[0] == max(values) > 0.01
    assert abs(np.mean(values)) < 1e-15


def test_reported_statistic_is_that_of_standardised_delayed_samples() -> None:
    streams = noise(3, 2, 2, 5)
    delayed = torch.stack([streams[b, [0, 1], :, [t, t - 1]] for b in range(3) for t in range(2, 5)])
    x = (delayed - delayed.mean(0)) / (delayed.var(0) + 1e-8).sqrt()
    found = mmd_permutation_test(streams, (3.0,), True, 5, seeded(0), shuffle="frames")
    assert found.samples == 9
    assert found.statistic == pytest.approx(looped(x, (3.0,)), rel=1e-9)
    assert found.metrics() == {"mmd": found.mmd, "mmd_err": found.error, "mmd_p": found.p}


def test_value_is_what_is_left_beside_clips_that_are_turned_away() -> None:
    streams = noise(2, 2, 2, 4)
    swapped = streams.clone()
    swapped[:, 1] = streams[:, 1].flip(0)  # the only shift of two clips that moves them
    found = mmd_permutation_test(streams, (3.0,), False, 4, seeded(0), tracks=[7, 7])
    away = mmd_permutation_test(swapped, (3.0,), False, 4, seeded(0), tracks=[7, 7])
    assert found.mmd == pytest.approx(found.statistic - away.statistic, rel=1e-9)
    assert math.isnan(found.error) and found.missing is None  # one shift has no spread


@pytest.mark.parametrize(("shuffle", "sigmas"), [("recordings", "median"), ("frames", (2.0, 8.0))])
def test_independent_codebooks_give_even_p_values(shuffle: str, sigmas: str | tuple[float, ...]) -> None:
    ps = []
    for seed in range(100):
        walk = noise(20, 3, 2, 3, seed)
        streams = walk.cumsum(-1) if shuffle == "recordings" else walk  # frames resemble each other, clips do not
        ps.append(mmd_permutation_test(streams, sigmas, False, 19, seeded(seed), shuffle=shuffle).p)
    ranks = np.round(np.array(ps) * 20)
    assert set(ranks) <= set(range(1, 21))
    for limit in (2, 5, 10, 15):  # of 20, each within 3.5 standard deviations
        assert abs((ranks <= limit).mean() - limit / 20) < 3.5 * math.sqrt(limit / 20 * (1 - limit / 20) / 100)


def test_value_is_zero_on_average_for_independent_codebooks() -> None:
    scores = []
    for seed in range(60):
        found = mmd_permutation_test(noise(20, 4, 3, 2, seed), "median", False, 20, seeded(seed), shuffle="frames")
        scores.append([found.statistic / found.error, found.mmd / found.error])
    assert np.abs(np.mean(scores, 0)).max() < 4 * 1.1 / math.sqrt(60)
    assert np.abs(scores).max() < 6


@pytest.mark.parametrize("shuffle", ["shifts", "recordings", "frames"])
def test_dependent_codebooks_get_the_smallest_p(shuffle: str) -> None:
    streams = noise(60, 3, 2, 6)
    streams[:, 2] = streams[:, 0].square() + 0.3 * streams[:, 2]  # uncorrelated
    tracks = range(60) if shuffle == "recordings" else [i // 20 for i in range(60)]
    found = mmd_permutation_test(streams.float(), "median", False, 99, seeded(1), tracks=tracks, shuffle=shuffle)
    assert found.p == 1 / 100
    assert found.mmd > 4 * found.error


def test_delay_decides_which_frames_are_compared() -> None:
    streams = noise(30, 2, 2, 12)
    streams[:, 1, :, :-1] = streams[:, 0, :, 1:]
    tracks = [i // 10 for i in range(30)]
    assert mmd_permutation_test(streams, "median", True, 49, seeded(0), tracks=tracks).p == 1 / 50
    assert mmd_permutation_test(streams, "median", False, 49, seeded(0), tracks=tracks).p > 1 / 50


def test_samples_are_capped_and_spread_over_clips() -> None:
    streams = noise(10, 2, 1, 40)
    late = streams.clone()
    late[..., 20:] += 100.0  # only frames from the second half see it
    options: dict[str, Any] = {"tracks": [0] * 10, "max_samples": 45}
    assert mmd_permutation_test(streams, "median", False, 2, seeded(0), **options).samples == 40
    values = [mmd_permutation_test(s, (1.0,), False, 2, seeded(0), **options).statistic for s in (streams, late)]
    assert values[1] > values[0] + 0.1
    assert mmd_permutation_test(streams, "median", False, 2, seeded(0), tracks=[0] * 10, max_samples=7).samples == 7


def test_compared_clips_are_runs_of_several_recordings() -> None:
    streams = noise(100, 2, 1, 1)
    streams[48:56] += 100.0  # in the middle of the recordings
    tracks = [i // 10 for i in range(100)]
    found = mmd_permutation_test(streams, (1.0,), False, 2, seeded(0), tracks=tracks, max_samples=32)
    assert found.samples == 32
    assert found.statistic > mmd_permutation_test(noise(100, 2, 1, 1), (1.0,), False, 2, tracks=tracks).statistic + 0.1


def test_clips_of_few_recordings_are_not_called_dependent() -> None:
    shifted = exchanged = 0
    for run in range(40):
        own = noise(3, 2, 1, 1, run).repeat_interleave(10, 0)  # the mean of a recording
        streams = noise(30, 2, 1, 4, 1000 + run) + 2 * own + noise(30, 2, 1, 1, 2000 + run)
        ps = [
            mmd_permutation_test(streams, "median", False, 19, seeded(run), tracks=tracks, shuffle=shuffle).p
            for tracks, shuffle in (([i // 10 for i in range(30)], "shifts"), (None, "recordings"))
        ]
        shifted += round(20 * ps[0]) <= 2
        exchanged += round(20 * ps[1]) <= 2
    assert shifted < 14  # 4 are expected at level 0.1, and 14 come once in 100 000 times
    assert exchanged > 20


def test_without_a_shuffle_that_holds_there_is_no_p_but_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    streams = noise(6, 2, 3, 8)
    few = mmd_permutation_test(streams, "median", False, 9, seeded(0), tracks=[0, 0, 1, 1, 2, 2])
    assert set(few.metrics()) == {"mmd"}
    assert "mmd_err is left out: shifts of the clips take two codebooks apart in 1 way(s)" in caplog.text
    more = mmd_permutation_test(streams, "median", False, 9, seeded(0), tracks=[0] * 6)
    assert set(more.metrics()) == {"mmd"}  # one recording of 6 clips has 6 arrangements
    assert few.missing_p is not None and "8 way(s)" in few.missing_p in caplog.text
    none = mmd_permutation_test(streams, "median", False, 9, seeded(0))
    assert none.metrics() == {}
    assert none.missing is not None and none.missing in caplog.text


def test_one_long_clip_of_each_recording_is_turned_by_its_frames() -> None:
    streams = noise(3, 2, 1, 300)
    found = mmd_permutation_test(streams, "median", False, 99, seeded(0), max_samples=96)
    assert found.samples == 96 and found.p > 0.01
    streams[:, 1] = streams[:, 0]
    assert mmd_permutation_test(streams, "median", False, 99, seeded(0), max_samples=96).p == 1 / 100


def test_constant_codebooks_are_not_found_dependent() -> None:
    streams = noise(8, 2, 3, 4)
    streams[:, 1] = 0.3
    found = mmd_permutation_test(streams, "median", False, 19, seeded(0), shuffle="frames")
    assert found.p == 1
    assert abs(found.mmd) < 1e-12


def test_seed_decides() -> None:
    streams = noise(8, 2, 3, 4)
    first, again, other = (
        mmd_permutation_test(streams, "median", False, 9, seeded(s), shuffle="frames").null for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mistakes_are_told() -> None:
    streams = noise(4, 2, 3, 6)
    with pytest.raises(DataError, match=r"\[B, K, D, T\]"):
        mmd_permutation_test(streams[0])
    with pytest.raises(DataError, match="K=1"):
        mmd_permutation_test(streams[:, :1])
    with pytest.raises(DataError, match="need 3 or more"):
        mmd_permutation_test(streams[..., :2])
    with pytest.raises(DataError, match="NaN"):
        mmd_permutation_test(streams * math.nan)
    with pytest.raises(DataError, match="one integer for each of 4"):
        mmd_permutation_test(streams, tracks=[0, 1])
    with pytest.raises(DataError, match="0 sample"):
        mmd_permutation_test(streams[:0])
    with pytest.raises(ConfigError, match="num_permutations=0"):
        mmd_permutation_test(streams, num_permutations=0)
    with pytest.raises(ConfigError, match="shifts, recordings, frames"):
        mmd_permutation_test(streams, shuffle="time")
    for sigmas in ("mean", (), (1.0, -1.0), (math.nan,)):
        with pytest.raises(ConfigError, match="median"):
            mmd_permutation_test(streams, sigmas)
