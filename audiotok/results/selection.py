"""Which runs count: those that have completed, in every table, plot and page, unless all are requested."""

import pandas as pd

from audiotok.results.metrics import metric_values, pareto_front  # their earlier place

__all__ = ["counted", "counted_line", "metric_values", "pareto_front"]

_COMPLETED = "COMPLETED"


def counted(runs: pd.DataFrame, *, unfinished: bool = False) -> pd.DataFrame:
    """The runs that count, as statistics, plots and pages take them.

    Args:
        runs: one row per run, with its `state`.
        unfinished: whether runs that have not completed count too.

    Returns:
        Rows of `runs` in their order, with their index.
    """
    return runs if unfinished else runs[runs["state"] == _COMPLETED]


def counted_line(runs: pd.DataFrame, *, unfinished: bool = False) -> str:
    """How many runs count, and what was left out; empty where all have completed."""
    others = runs["state"][runs["state"] != _COMPLETED]
    if others.empty:
        return ""
    states = ", ".join(f"{count} {state}" for state, count in others.value_counts(sort=True).items())
    if unfinished:
        return f"all {len(runs)} runs are counted, {len(others)} of which have not completed: {states}"
    done = len(runs) - len(others)
    return f"{done} of {len(runs)} runs completed and are counted; left out: {states}; --unfinished counts them"
