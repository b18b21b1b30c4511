"""The test over a whole design, held against every arrangement counted in plain loops, and its own error rate."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.results.pooled import block_test, pooled, pooled_lines


def between(values: list[float], levels: list[int], blocks: list[int]) -> float:
    """Sum of squares between the means of the levels, each value less the mean of its block."""
    means = {b: math.fsum(v for v, c in zip(values, blocks, strict=True) if b == c) / blocks.count(b) for b in blocks}
    rest = [value - means[block] for value, block in zip(values, blocks, strict=True)]
    sums = [math.fsum(r for r, k in zip(rest, levels, strict=True) if k == level) for level in set(levels)]
    return math.fsum(s**2 / levels.count(level) for s, level in zip(sums, sorted(set(levels)), strict=True))


@pytest.mark.parametrize("values", [[1.0, 3.5, 0.2, 2.0, 1.5, 0.9, 4.0], [1, 2, 1, 1, 2, 0, 1], [0, 1, 0, 0, 0, 0, 1]])
def test_every_arrangement_counts(values: list[float]) -> None:
    """Unbalanced blocks, one with a level twice; also whole numbers with ties."""
    levels, blocks = [0, 1, 2, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]
    found = between(values, levels, blocks)
    counts = [
        between([*first, *second], levels, blocks)
        for first in itertools.permutations(values[:3])
        for second in itertools.permutations(values[3:])
    ]
    test = block_test(np.array(values, np.float64), levels, blocks)
    assert test.p == pytest.approx(np.mean([count >= found - 1e-9 for count in counts]))
    assert test.smallest_p == pytest.approx(np.mean([count >= max(counts) - 1e-9 for count in counts]))


def test_of_two_levels_it_flips_signs() -> None:
    values = np.random.default_rng(0).normal(size=(2, 6))
    values[1] += 1
    ours = block_test(values.ravel(), [0] * 6 + [1] * 6, [*range(6)] * 2)
    theirs = stats.permutation_test((values[1] - values[0],), np.mean, permutation_type="samples", n_resamples=10_000)
    assert ours.p == pytest.approx(theirs.pvalue) and ours.smallest_p == 2 / 2**6


def test_drawn_arrangements_are_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(3, 5))  # 6^5 arrangements are counted
    flat, levels, blocks = values.ravel(), np.repeat(range(3), 5).tolist(), [*range(5)] * 3
    exact = block_test(flat, levels, blocks)
    monkeypatch.setattr("audiotok.results.pooled._EXACT", 0)
    drawn = block_test(flat, levels, blocks)
    assert drawn.explained == exact.explained
    assert drawn.p == pytest.approx(exact.p, abs=0.02) and drawn.smallest_p < 0.01
    assert drawn == block_test(flat, levels, blocks)


def test_what_cannot_differ_has_no_p() -> None:
    for values, levels, blocks in (
        (np.ones(6), [0, 1] * 3, [0, 0, 1, 1, 2, 2]),
        (np.arange(5.0), [*range(5)], [0] * 5),  # one block: every arrangement has the same statistic
        (np.empty(0), [], []),
    ):
        assert math.isnan(block_test(values, levels, blocks).p)


@pytest.mark.parametrize("whole", [False, True])
def test_without_an_effect_one_in_twenty_is_significant(whole: bool) -> None:
    """400 tables of 3 levels in 4 blocks of very different spread."""
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(400):
        values = rng.normal(size=(3, 4)) * [0.5, 1, 5, 50] + [0, 5, 1, -9]
        p = block_test(
            (np.round(values) if whole else values).ravel(), np.repeat(range(3), 4).tolist(), [*range(4)] * 3
        ).p
        found += p <= 0.05
    assert found <= stats.binom.ppf(0.9999, 400, 0.05)


def factorial() -> pd.DataFrame:
    rows = [
        {"losses.mmd": weight, "rvq.n_q": n_q, "mmd.sigmas": None if weight == 0 else "median", "seed": seed,
         "evaluate.sisdr": n_q + rng_of(weight, n_q, seed), "train.mmd": 1.0 * n_q,
         "evaluate.mi": 0.3 - weight / 10 + rng_of(n_q, weight, seed) / 100}
        for weight, n_q, seed in itertools.product((0.0, 1.0, 2.0), (4, 8), (1, 2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def rng_of(*key: float) -> float:
    return float(np.random.default_rng([int(k) for k in key]).normal())


def test_each_parameter_is_tested_between_runs_that_differ_in_it_alone() -> None:
    runs = factorial()
    table = pooled(runs, ["losses.mmd", "rvq.n_q"], ["evaluate.mi", "evaluate.sisdr"], ["seed"])
    assert table[["parameter", "levels", "blocks", "n"]].to_numpy().tolist() == [
        ["losses.mmd", 3, 4, 12], ["losses.mmd", 3, 4, 12], ["rvq.n_q", 2, 6, 12], ["rvq.n_q", 2, 6, 12]
    ]  # fmt: skip
    p = table.set_index(["parameter", "metric"])["p"]
    assert p["losses.mmd", "evaluate.mi"] == 6 / 6**4 and p["rvq.n_q", "evaluate.sisdr"] == 2 / 2**6
    assert p["losses.mmd", "evaluate.sisdr"] > 0.05 < p["rvq.n_q", "evaluate.mi"]
    by_null = pooled(runs, ["losses.mmd"], ["evaluate.mi"], ["mmd.sigmas", "rvq.n_q", "seed"])
    assert by_null["n"].tolist() == [8]  # runs of weight 0 have other widths, and no partner
    with pytest.raises(ResultsError, match="no column nope"):
        pooled(runs, ["losses.mmd"], ["evaluate.mi"], ["nope"])


def test_a_line_says_where_no_p_is_small_enough() -> None:
    runs = factorial()
    runs = runs[runs["losses.mmd"] < 2]
    table = pooled(runs, ["losses.mmd"], ["evaluate.mi"], ["rvq.n_q", "seed"])
    assert table["smallest_p"].tolist() == [2 / 2**4] and table["p"].tolist() == [2 / 2**4]
    assert "no p below 0.05 is possible with 4 blocks of 2 values" in pooled_lines(table, ["rvq.n_q", "seed"])[1]
    alone = pooled(runs, ["losses.mmd"], ["evaluate.mi"], ["mmd.sigmas", "seed", "rvq.n_q"])
    assert "no two runs differ in it alone" in pooled_lines(alone, ["seed"])[1]


def test_a_metric_is_not_tested_between_its_own_settings() -> None:
    runs = factorial().assign(**{"mmd.sigmas": ["median", "wide"] * 6})
    table = pooled(runs, ["mmd.sigmas"], ["train.mmd"], ["losses.mmd", "rvq.n_q"])
    assert table["n"].tolist() == [12] and table["p"].isna().all()
