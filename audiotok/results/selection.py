"""Which number stands for a run: the last value of a metric or that of its best epoch; and which runs nobody beats.

Directions come from `audiotok.results.metrics.METRICS` alone.
"""

import numpy as np
import pandas as pd

from audiotok.results.frame import Experiments, require_metric
from audiotok.results.metrics import metric_direction


def metric_values(experiments: Experiments, name: str, *, best_by: str | None = None) -> pd.Series:
    """One value of a metric for each run.

    Args:
        experiments: the runs.
        name: `stage.metric`.
        best_by: `stage.metric` whose best epoch counts, the first among equals and among the epochs that have
            measured both; None: the last epoch that has measured `name`.

    Returns:
        float64 Series over signatures, in the order of `runs`; NaN where nothing was measured, or not a number.

    Raises:
        ResultsError: if no run has a metric of that name, or `best_by` has no better direction.
    """
    require_metric(experiments, name)
    if best_by is None:
        return experiments.runs.set_index("sig")[name].astype(np.float64)
    sign = _sign(best_by)
    require_metric(experiments, best_by)
    epochs = _measured(experiments, name).to_frame().join(_measured(experiments, best_by).rename("score") * -sign)
    epochs = epochs.dropna().sort_values("score", kind="stable").groupby(level="sig", observed=True).head(1)
    best: pd.Series = epochs[name].groupby(level="sig", observed=True).first()
    return best.reindex(experiments.runs["sig"]).astype(np.float64)


def pareto_front(runs: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Which rows no other row beats, that is: is at least as good in both metrics and better in one.

    Args:
        runs: rows with the columns `x` and `y`.
        x: `stage.metric`.
        y: `stage.metric`.

    Returns:
        Boolean Series with the index of `runs`; False where a value is missing. Equal points are on it together.

    Raises:
        ResultsError: if a metric has no better direction.
    """
    scores = runs[[x, y]].to_numpy(np.float64) * [_sign(x), _sign(y)]  # higher is better in both
    front = np.isfinite(scores).all(axis=1)
    for row in np.flatnonzero(front):
        beaten_by = (scores >= scores[row]).all(axis=1) & (scores > scores[row]).any(axis=1)
        front[row] = not beaten_by.any()
    return pd.Series(front, index=runs.index)


def _measured(experiments: Experiments, name: str) -> pd.Series:
    """Finite values of a metric, indexed by sig and epoch, in the order of epochs."""
    stage, _, metric = name.partition(".")
    rows: pd.Series = experiments.read_history([stage], [metric]).set_index(["sig", "epoch"])[metric]
    measured: pd.Series = rows[np.isfinite(rows)].rename(name).sort_index(level="epoch", kind="stable")
    return measured


def _sign(name: str) -> float:
    return 1.0 if metric_direction(name) == "higher" else -1.0
