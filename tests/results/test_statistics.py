"""Statistics of runs, held against textbook formulas in plain Python, SciPy called directly, and statsmodels."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from audiotok.errors import ResultsError
from audiotok.results.metrics import differing_settings
from audiotok.results.statistics import (
    _compare_pairs,
    _confidence_interval,
    compare,
    effect_needed,
    holm,
    reach_line,
    summarize,
)


def grid(
    seeds: int = 5, *, weights: tuple[float, ...] = (0.0, 1.0, 10.0), counts: tuple[int, ...] = (2, 4)
) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {
            "sig": f"{i:08x}",
            "losses.mmd": weight,
            "rvq.n_q": n_q,
            "seed": seed,
            "mi": rng.normal(-weight / 10),
            "q": rng.normal(n_q),
        }
        for i, (weight, n_q, seed) in enumerate(itertools.product(weights, counts, range(seeds)))
    ]
    return pd.DataFrame(rows)


def test_summary_beside_statsmodels() -> None:
    runs = grid()
    table = summarize(runs, ["losses.mmd", "rvq.n_q"], ["mi", "q"], interval="t")
    assert len(table) == 3 * 2 * 2
    for row in table.itertuples():
        members = runs[(runs["losses.mmd"] == row[1]) & (runs["rvq.n_q"] == row[2])][row.metric]
        expected = DescrStatsW(members)
        low, high = expected.tconfint_mean(0.05)
        assert row.n == 5
        assert row.mean == pytest.approx(math.fsum(members) / 5)
        assert row.std == pytest.approx(expected.std_mean * math.sqrt(5))
        assert (row.low, row.high) == pytest.approx((low, high))


def test_groups_keep_the_order_of_the_runs() -> None:
    runs = grid().iloc[::-1]
    assert list(summarize(runs, ["losses.mmd"], ["mi"])["losses.mmd"]) == [10.0, 1.0, 0.0]


def test_bootstrap_is_repeatable_and_near_the_plain_loop() -> None:
    values = np.random.default_rng(0).normal(size=30)
    low, high = _confidence_interval(values, 0.9, "bootstrap")
    assert (low, high) == _confidence_interval(values, 0.9, "bootstrap")
    rng = np.random.default_rng(1)
    means = sorted(sum(values[i] for i in rng.integers(0, 30, 30)) / 30 for _ in range(4000))
    assert (low, high) == pytest.approx((means[200], means[3800]), abs=0.03)


def test_bootstrap_covers_the_mean() -> None:
    """A 90 % interval of 40 values holds the true mean about nine times in ten."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(60):
        low, high = _confidence_interval(rng.normal(1.0, size=40), 0.9, "bootstrap")
        hits += low <= 1.0 <= high
    assert 45 <= hits <= 60


def test_few_values_claim_nothing() -> None:
    runs = pd.DataFrame({"a": [1, 2, 2, 3], "m": [1.0, 2.0, 4.0, math.nan]})
    table = summarize(runs, ["a"], ["m"]).set_index("a")
    assert list(table["n"]) == [1, 2, 0]
    assert table["mean"].tolist()[:2] == [1.0, 3.0] and math.isnan(table["mean"][3])
    assert math.isnan(table["std"][1]) and math.isnan(table["low"][1])
    assert table["std"][2] == pytest.approx(math.sqrt(2))


def test_equal_values_say_nothing_of_their_spread() -> None:
    for interval in ("bootstrap", "t"):
        assert np.isnan(_confidence_interval(np.full(4, 2.5), 0.95, interval)).all()


def test_comparison_beside_scipy_and_statsmodels() -> None:
    runs = grid()
    table = compare(runs, ["losses.mmd", "rvq.n_q"], ["mi", "q"], {"losses.mmd": 0})
    assert len(table) == 2 * 2 * 2
    for row in table.itertuples():
        of = runs[runs["rvq.n_q"] == row[2]].set_index("seed")
        one, base = (of[of["losses.mmd"] == weight][row.metric].sort_index() for weight in (row[1], 0.0))
        difference = DescrStatsW((one - base).to_numpy())
        assert row.n == 5
        assert row.difference == pytest.approx((one - base).mean())
        assert row.p == pytest.approx(stats.ttest_rel(one, base).pvalue)
        assert row.p == pytest.approx(difference.ttest_mean(0)[1])
        assert (row.low, row.high) == pytest.approx(difference.tconfint_mean(0.05))
        assert row.effect == pytest.approx(row.difference / np.std(one - base, ddof=1))
    assert table["p_holm"].to_numpy() == pytest.approx(multipletests(table["p"], method="holm")[1])


def test_order_of_seeds_does_not_matter_and_missing_seeds_are_left_out() -> None:
    runs = grid(counts=(2,))
    shuffled = runs.sample(frac=1.0, random_state=0)
    order = ["losses.mmd"]
    one, two = (
        compare(frame, order, ["mi"], {"losses.mmd": 0}).sort_values(order, ignore_index=True)
        for frame in (runs, shuffled)
    )
    pd.testing.assert_frame_equal(one, two)
    fewer = runs[~((runs["losses.mmd"] == 0) & (runs["seed"] == 1))]
    assert set(compare(fewer, order, ["mi"], {"losses.mmd": 0})["n"]) == {4}
    runs.loc[(runs["losses.mmd"] == 1) & (runs["seed"] == 2), "mi"] = math.nan
    assert list(compare(runs, order, ["mi"], {"losses.mmd": 0})["n"]) == [4, 5]


def test_permutation_is_exact() -> None:
    differences = [0.3, 0.5, 0.2, -0.1, 0.4]
    runs = pd.DataFrame({"c": [0] * 5 + [1] * 5, "seed": [*range(5)] * 2, "m": [0.0] * 5 + differences})
    found = compare(runs, ["c"], ["m"], {"c": 0}, test="permutation")["p"][0]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert found == pytest.approx(sum(total >= sum(differences) - 1e-12 for total in sums) / 32)


def test_equal_conditions_do_not_differ() -> None:
    runs = pd.DataFrame({"c": [0, 0, 1, 1], "seed": [1, 2, 1, 2], "m": [0.5, 0.7, 0.5, 0.7]})
    row = compare(runs, ["c"], ["m"], {"c": 0}).iloc[0]
    assert row["difference"] == 0 and row["p"] == 1 and math.isnan(row["effect"])


@pytest.mark.parametrize(("seeds", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_equal_differences_are_no_proof(seeds: int, p: float) -> None:
    """Whole numbers, and floats equal but for rounding: the p of flipped signs, and no interval."""
    for step, values in ((1, np.arange(seeds)), (0.1, np.arange(seeds) * 0.3), (1e-3, 5 + np.arange(seeds) / 7)):
        m = np.append(values, values + step)
        runs = pd.DataFrame({"c": np.repeat([0, 1], seeds), "seed": [*range(seeds)] * 2, "m": m})
        row = compare(runs, ["c"], ["m"], {"c": 0}).iloc[0]
        assert row["difference"] == pytest.approx(step) and row["p"] == p == row["p_holm"]
        assert math.isnan(row["low"]) and math.isnan(row["effect"])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_whole_numbers_without_an_effect_are_not_significant(seeds: int) -> None:
    """Of 300 comparisons at most one in twenty has p < 0.05, but for chance."""
    values = np.round(np.random.default_rng(0).normal(3, 1, size=(300, seeds, 2)))
    found = sum(_compare_pairs(both, 0.95, "t", "t")[-1] < 0.05 for both in values)
    assert found <= stats.binom.ppf(0.9999, 300, 0.05)


def test_the_effect_that_a_p_needs() -> None:
    """At the stated effect the paired t-test of SciPy has p = 0.05."""
    for n in (2, 3, 5):
        values = stats.norm.ppf((np.arange(n) + 0.5) / n)
        values = (values - values.mean()) / values.std(ddof=1) + effect_needed(n)
        assert stats.ttest_1samp(values, 0).pvalue == pytest.approx(0.05)
    runs = pd.DataFrame({"c": [0, 1], "seed": [1, 1], "m": [0.5, 0.7]})
    assert reach_line(compare(runs, ["c"], ["m"], {"c": 0})).startswith("no p below .05 is possible")


def test_values_under_other_settings_are_not_compared() -> None:
    runs = pd.DataFrame(
        {"losses.mmd": [0.1, 0.1, 1, 1, 2, 2], "mmd.sigmas": ["median"] * 4 + ["wide"] * 2, "seed": [1, 2] * 3,
         "train.mmd": np.arange(6.0), "evaluate.sisdr": np.arange(6.0) ** 2}
    )  # fmt: skip
    table = compare(runs, ["losses.mmd"], ["train.mmd", "evaluate.sisdr"], {"losses.mmd": 0.1})
    assert table["n"].tolist() == [2, 2, 0, 2] and math.isnan(table["difference"][2])
    lacking = runs.assign(**{"train.mmd": [0.0, 1, 2, 3, math.nan, math.nan]})
    assert (differing_settings(runs, "train.mmd"), differing_settings(lacking, "train.mmd")) == (["mmd.sigmas"], [])


def test_one_seed_gives_a_difference_and_no_verdict() -> None:
    runs = pd.DataFrame({"c": [0, 1], "seed": [1, 1], "m": [0.5, 0.7]})
    row = compare(runs, ["c"], ["m"], {"c": 0}).iloc[0]
    assert row["n"] == 1 and row["difference"] == pytest.approx(0.2)
    assert math.isnan(row["p"]) and math.isnan(row["p_holm"]) and math.isnan(row["low"])


@settings(max_examples=20)  # statsmodels takes its time
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodelsholm(p_values: list[float]) -> None:
    assert holm(np.array(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_leaves_what_was_not_tested() -> None:
    corrected = holm(np.array([0.01, math.nan, 0.04]))
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.04]) and math.isnan(corrected[1])


def test_mistakes_are_named() -> None:
    runs = grid(2)
    with pytest.raises(ResultsError, match=r"no column nope; there are: sig, losses\.mmd"):
        summarize(runs, ["nope"], ["mi"])
    with pytest.raises(ResultsError, match=r"baseline names \['mi'\]; give values of: losses\.mmd"):
        compare(runs, ["losses.mmd", "rvq.n_q"], ["mi"], {"mi": 0})
    with pytest.raises(ResultsError, match=r"no runs with losses\.mmd=3 .*losses\.mmd=10, rvq\.n_q=4"):
        compare(runs, ["losses.mmd", "rvq.n_q"], ["mi"], {"losses.mmd": 3})
    with pytest.raises(ResultsError, match=r"losses\.mmd=0\.0 has several runs with seed=0 \(00000000, 00000002\)"):
        compare(runs, ["losses.mmd"], ["mi"], {"losses.mmd": 0})
    with pytest.raises(ResultsError, match="confidence=95"):
        summarize(runs, ["losses.mmd"], ["mi"], confidence=95)
