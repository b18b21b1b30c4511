"""How much of the spread of a metric each parameter explains, in a grid of runs.

Main-effects model: metric = constant + an effect of each value of each parameter + rest. The share of a parameter is
the sum of squares that leaving it out of the model costs, less what a parameter without effect would take (its degrees
of freedom times the mean square of the rest), over the sum of squares of the metric: epsilon squared (Kelley, 1935,
"An unbiased correlation ratio measure"), cut at 0. Its interval inverts the noncentral F
distribution (Steiger, 2004, "Beyond the F test"), which takes the rest for independent and normal.

The rest holds interactions, such as a weight that matters at some codebook counts only, and the noise of seeds. A share
is of this grid: a wider range of values makes a parameter more important. It says neither which value is best nor, in
a grid that is no full factorial, what is due to which of two parameters that change together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy import optimize, stats

from audiotok.errors import ResultsError
from audiotok.results.codecs import CODEC_SEED
from audiotok.results.experiments import Experiments
from audiotok.results.joined import counts_codecs, replicates
from audiotok.results.metrics import metric_values
from audiotok.results.selection import counted
from audiotok.results.statistics import CONFIDENCE
from audiotok.results.tables import require_columns

REST = "rest: interactions and noise"
MAX_LEVELS = 8
"""Numbers of more values, as of a random search, count as four ranges of equally many runs."""
_RANGES = 4
_EXACT = 1e-9  # share of the noise below which there is none, and the distribution of F has no numbers

Floats = np.ndarray[Any, np.dtype[np.float64]]


def importance(
    runs: pd.DataFrame, metric: str, parameters: Sequence[str], *, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Share of the spread of a metric that each parameter explains.

    Args:
        runs: one row per run; those without a finite value of the metric are left out.
        metric: column of numbers.
        parameters: columns that were swept, without the seed; a missing value counts as a value of its own.
        confidence: of the intervals, between 0 and 1.

    Returns:
        One row per parameter, the most important first, then one for the rest: `parameter`, `values` (how many),
        `share` (0 to 1), `low`, `high`, `p` (F test of no effect). Of a parameter that has one value, or whose values
        follow from those of the others, these are NaN.

    Raises:
        ResultsError: if a column does not exist, `confidence` is not between 0 and 1, the metric is the same in all
            runs, or there are too few runs for that many parameters.
    """
    require_columns(runs, [metric, *parameters])
    if not 0 < confidence < 1:
        raise ResultsError(f"confidence={confidence}; give a number between 0 and 1, such as 0.95.")
    numbers = runs[metric].to_numpy(np.float64)
    runs, numbers = runs[np.isfinite(numbers)], numbers[np.isfinite(numbers)]
    designs = {name: _design(runs[name]) for name in parameters}
    total = float(((numbers - numbers.mean()) ** 2).sum()) if len(numbers) else 0.0
    if not total > 0:
        raise ResultsError(f"{metric} is the same in all {len(numbers)} runs that count: nothing to explain.")
    rest, rank = _rest(numbers, list(designs.values()))
    free = len(numbers) - rank
    if free < 1:
        raise ResultsError(
            f"{len(numbers)} runs with {metric} are too few for {rank - 1} effects of {len(parameters)} parameters; "
            "name fewer with --by, or run more seeds."
        )
    rows = []
    for name in parameters:
        without, smaller = _rest(numbers, [design for other, design in designs.items() if other != name])
        shares = _share(without - rest, rank - smaller, rest, free, total, confidence)
        rows.append((name, designs[name].shape[1], *shares))
    columns = ["parameter", "values", "share", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns).sort_values("share", ascending=False, kind="stable", na_position="last")
    noise = min(1.0, rest / free * (len(numbers) - 1) / total)
    last = pd.DataFrame([(REST, np.nan, noise, np.nan, np.nan, np.nan)], columns=columns)
    return pd.concat([table, last], ignore_index=True)


def grid_importance(
    experiments: Experiments,
    metric: str,
    parameters: Sequence[str] | None = None,
    *,
    seeds: Sequence[str] = ("seed", CODEC_SEED),
    best_by: str | None = None,
    unfinished: bool = False,
) -> tuple[pd.DataFrame, int]:
    """Importance of the parameters of a grid for a metric, and the number of runs (or codecs) that it is of.

    Args:
        experiments: the grid.
        metric: `stage.metric`.
        parameters: to share the spread out to; None: those that differ.
        seeds: parameters that are noise, and left out of those that differ.
        best_by: as in `metric_values`.
        unfinished: whether runs that have not completed count.

    Raises:
        ResultsError: as `importance`, and if no run has the metric.
    """
    names = [name for name in experiments.swept if name not in seeds] if parameters is None else list(parameters)
    runs = experiments.runs.assign(**{metric: metric_values(experiments, metric, best_by=best_by).to_numpy()})
    runs = counted(runs, unfinished=unfinished)
    runs = replicates(runs, names, [metric], codecs=counts_codecs(runs, names))
    return importance(runs, metric, names), int(np.isfinite(runs[metric].to_numpy(np.float64)).sum())


def importance_lines(metric: str, runs: int) -> list[str]:
    """What the numbers of `importance` mean, and what they do not."""
    return [
        f"share of the spread of {metric} over {runs} runs that each parameter explains by itself (main effects, "
        "epsilon squared), with its 95 % interval and the p-value of an F test",
        "the rest is interactions of parameters and noise; shares are of the values in this grid, and of parameters "
        "that change together each counts what the others cannot explain",
    ]


def _design(values: "pd.Series[Any]") -> Floats:
    """Indicators [runs, values] of the values of a parameter."""
    numeric = is_numeric_dtype(values) and not is_bool_dtype(values)
    if numeric and values.nunique() > MAX_LEVELS:
        values = pd.qcut(values.astype(np.float64), _RANGES, labels=False, duplicates="drop")
    codes, names = pd.factorize(np.array([repr(value) for value in values.tolist()], dtype=object))
    return np.eye(max(1, len(names)))[codes]


def _rest(numbers: Floats, designs: Sequence[Floats]) -> tuple[float, int]:
    """Sum of squares that a model leaves, and its rank."""
    model = np.concatenate([np.ones((len(numbers), 1)), *designs], axis=1)
    found, _, rank, _ = np.linalg.lstsq(model, numbers - numbers.mean(), rcond=None)
    return float(((numbers - numbers.mean() - model @ found) ** 2).sum()), int(rank)


def _share(
    squares: float, effects: int, rest: float, free: int, total: float, confidence: float
) -> tuple[float, float, float, float]:
    """Share, its interval and p, from the sum of squares of a parameter and its degrees of freedom."""
    if effects < 1:
        return np.nan, np.nan, np.nan, np.nan
    noise = rest / free
    if noise < _EXACT * total:
        return (squares / total,) * 3 + (float(squares < _EXACT * total),)
    ratio = max(squares, 0.0) / effects / noise
    share = max(0.0, (squares - effects * noise) / total)
    ends = []
    for quantile in ((1 + confidence) / 2, (1 - confidence) / 2):
        size = _noncentrality(ratio, effects, free, quantile) * noise
        ends.append(size / (size + total - squares) if size > 0 else 0.0)
    return share, min(ends[0], share), max(ends[1], share), float(stats.f.sf(ratio, effects, free))


def _noncentrality(ratio: float, effects: int, free: int, quantile: float) -> float:
    """Noncentrality for which an F ratio as small as this one has probability `quantile`; 0 if none has."""

    def excess(size: float) -> float:
        return float(stats.ncf.cdf(ratio, effects, free, size)) - quantile

    if stats.f.cdf(ratio, effects, free) <= quantile:
        return 0.0
    high = max(1.0, ratio * effects)
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high))
