"""Statistics of runs: groups over seeds, and conditions against a baseline.

The computations are SciPy's: bootstrap (Efron and Tibshirani, 1993, chapter 13), paired t-test, sign-flip permutation
test. Holm's correction (Holm, 1979) is for all comparisons of one table. With few seeds, look at `n` first. How often
each is wrong without an effect, and finds one: docs/results.md; over a whole factorial design: `pooled.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.results.baseline import match
from audiotok.results.metrics import Floats, differing_settings
from audiotok.results.tables import require_columns

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0  # of the bootstrap: the same data gives the same interval

Interval = Literal["bootstrap", "t"]
Test = Literal["t", "permutation"]
COMPARED = ("n", "baseline", "mean", "difference", "low", "high", "effect", "p", "p_holm")  # columns of `compare`
_EQUAL = 1e-6  # relative to the values: differences no further apart are equal but for rounding


def summarize(
    runs: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[str],
    *,
    confidence: float = CONFIDENCE,
    interval: Interval = "t",
) -> pd.DataFrame:
    """Mean and spread of each metric in each group of runs.

    Args:
        runs: one row per run.
        by: columns that make a group; over the others (the seed) it is averaged.
        metrics: columns to summarise; missing values are left out.
        confidence: of the interval, between 0 and 1.
        interval: `t` (Student's, for normal values) or `bootstrap` (percentiles of resampled means; too narrow below
            about 8 runs: docs/results.md has how often each holds the mean).

    Returns:
        One row per group and metric: the columns of `by`, `metric`, `n`, `mean`, `std` (n - 1), `low`, `high`. A number
        that `n` does not allow is NaN, as is the interval of equal values, which have no spread to estimate it from.

    Raises:
        ResultsError: if a column does not exist, or `confidence` is not between 0 and 1.
    """
    _check(runs, [*by, *metrics], confidence)
    rows = []
    for group, members in _groups(runs, by):
        for metric in metrics:
            values = _finite(members[metric])
            low, high = _confidence_interval(values, confidence, interval)
            mean = float(values.mean()) if len(values) else np.nan
            std = float(values.std(ddof=1)) if len(values) > 1 else np.nan
            rows.append((*group, metric, len(values), mean, std, low, high))
    return pd.DataFrame(rows, columns=[*by, "metric", "n", "mean", "std", "low", "high"])


def compare(
    runs: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[str],
    baseline: Mapping[str, Any],
    *,
    pair: str = "seed",
    confidence: float = CONFIDENCE,
    interval: Interval = "t",
    test: Test = "t",
) -> pd.DataFrame:
    """Each condition against the baseline, paired by seed.

    Args:
        runs: one row per run.
        by: columns that make a condition.
        metrics: columns to compare.
        baseline: values of some or all of `by`. A condition is compared with the one that has these values and
            otherwise its own, so `{"losses.mmd": 0}` gives one baseline for each codebook count; see `baseline.match`.
        pair: column that pairs the runs of two conditions.
        confidence: of the interval of the difference.
        interval: as in `summarize`.
        test: `t` (paired t-test) or `permutation` (signs of the differences flipped; exact; with n pairs its smallest
            p-value is 2 / 2^n). Where all differences are equal, as those of whole numbers may be, it is always the
            latter, as they have no spread to estimate an error from.

    Returns:
        One row per condition and metric: the columns of `by`, `metric`, `n` (pairs), `baseline` and `mean` (over the
        pairs), `difference` (condition minus baseline), `low`, `high`, `effect` (Cohen's d of the differences), `p`,
        and `p_holm`, corrected for all rows of the table. A condition that has no baseline has n = 0 and no numbers, as
        have values that were measured under other settings than the baseline's (`Metric.depends_on`).

    Raises:
        ResultsError: if a column or the baseline does not exist, or two runs of a condition have the same seed.
    """
    _check(runs, [*by, *metrics, pair], confidence)
    conditions = [(group, _by_pair(members, pair, by, group)) for group, members in _groups(runs, by)]
    found = match([group for group, _ in conditions], by, baseline)
    settings = {metric: differing_settings(runs, metric) for metric in metrics}
    rows = []
    for place, (group, members) in enumerate(conditions):
        if place in found.baselines:
            continue
        reference = conditions[found.of[place]][1] if place in found.of else members.iloc[:0]
        for metric in metrics:
            both = pd.concat([reference[metric], members[metric]], axis=1, join="inner").to_numpy(float)
            if settings[metric] and differing_settings(pd.concat([reference, members])[settings[metric]], metric):
                both = both[:0]
            row = _compare_pairs(both[np.isfinite(both).all(axis=1)], confidence, interval, test)
            rows.append((*group, metric, *row))
    table = pd.DataFrame(rows, columns=[*by, "metric", *COMPARED[:-1]])
    table["p_holm"] = holm(table["p"].to_numpy(float))
    return table


def _confidence_interval(values: Floats, confidence: float, interval: Interval) -> tuple[float, float]:
    """Interval of the mean; NaN for fewer than two values, or equal ones."""
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    if interval == "t":
        low, high = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    else:
        options: dict[str, Any] = {"n_resamples": RESAMPLES, "method": "percentile", "rng": SEED}
        low, high = stats.bootstrap((values,), np.mean, confidence_level=confidence, **options).confidence_interval
    return float(low), float(high)


def holm(p_values: Floats) -> Floats:
    """P-values corrected so that the chance of any false finding among them stays bounded; NaN stays NaN."""
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return corrected


def _compare_pairs(both: Floats, confidence: float, interval: Interval, test: Test) -> tuple[float, ...]:
    """Numbers of one comparison, from pairs [n, 2] of baseline and condition."""
    n = len(both)
    if n == 0:
        return (0, *[np.nan] * 7)
    differences = both[:, 1] - both[:, 0]
    if np.ptp(differences) <= _EQUAL * np.abs(both).max():
        differences = np.full(n, differences.mean())
    low, high = _confidence_interval(differences, confidence, interval)
    spread = differences.std(ddof=1) if n > 1 else np.nan
    effect = differences.mean() / spread if spread > 0 else np.nan
    p = _p_value(differences, test) if n > 1 else np.nan
    return n, both[:, 0].mean(), both[:, 1].mean(), differences.mean(), low, high, effect, p


def _p_value(differences: Floats, test: Test) -> float:
    if not differences.any():
        return 1.0
    if test == "t" and np.ptp(differences) == 0:
        return float(2.0 ** (1 - len(differences)))  # of flipped signs: a t-test would have an error of 0, and p = 0
    if test == "permutation":
        options: dict[str, Any] = {"permutation_type": "samples", "n_resamples": RESAMPLES, "rng": SEED}
        return float(stats.permutation_test((differences,), np.mean, **options).pvalue)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def effect_needed(pairs: int, tests: int = 1, alpha: float = 0.05) -> float:
    """Smallest effect (mean of the differences over their spread) with which a paired t-test has p < alpha / tests."""
    if pairs < 2:
        return np.inf
    return float(stats.t.isf(alpha / tests / 2, pairs - 1) / np.sqrt(pairs))


def reach_line(table: pd.DataFrame) -> str:
    """What p-values a table of `compare` could have with so few pairs; empty for one without rows."""
    if table.empty:
        return ""
    most, tests = int(table["n"].max()), int(table["p"].notna().sum())
    if most == 0:
        return "no p below .05 is possible: no condition has a pair with its baseline"
    if most < 2:
        return "no p below .05 is possible: there is no condition with two pairs, so no error is known; add seeds"
    alone, corrected = effect_needed(most), effect_needed(most, tests)
    return (
        f"with {most} pairs p < .05 needs an effect (difference over the spread of differences) above {alone:.3g}, and "
        f"p_holm < .05 one above {corrected:.3g} in the first of {tests} tests"
    )


def _groups(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups in the order in which they first appear in `runs`, which is sorted by its parameters."""
    return list(runs.groupby(list(by), sort=False, dropna=False)) if by else [((), runs)]


def _by_pair(members: pd.DataFrame, pair: str, by: Sequence[str], group: tuple[Any, ...]) -> pd.DataFrame:
    repeated = members[pair][members[pair].duplicated()]
    if not repeated.empty:
        twice = members[members[pair] == repeated.iloc[0]]
        sigs = ", ".join(map(str, twice["sig"])) if "sig" in twice else f"{len(twice)} rows"
        raise ResultsError(
            f"{_describe(by, group)} has several runs with {pair}={twice[pair].iloc[0]} ({sigs}), so they cannot be "
            "paired; add the parameter in which they differ to the conditions, or leave some out."
        )
    return members.set_index(pair)


def _check(runs: pd.DataFrame, names: Sequence[str], confidence: float) -> None:
    require_columns(runs, names)
    if not 0 < confidence < 1:
        raise ResultsError(f"confidence={confidence}; give a number between 0 and 1, such as 0.95.")


def _describe(by: Sequence[str], group: Sequence[Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(by, group, strict=True)) or "all runs"


def _finite(values: pd.Series) -> Floats:
    numbers: Floats = values.to_numpy(np.float64)
    return numbers[np.isfinite(numbers)]
