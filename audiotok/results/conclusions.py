"""Conclusions about the parameters of a grid, and the limits of each as lines: for command, page and notebook."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.baseline import has_values, in_blocks, shown, unmatched_lines, unpaired_lines
from audiotok.results.joined import counts_codecs, pairing, replicates
from audiotok.results.metrics import differing_settings
from audiotok.results.pooled import pooled, pooled_lines
from audiotok.results.selection import counted
from audiotok.results.statistics import COMPARED, Interval, compare, reach_line
from audiotok.results.tables import require_columns


class Conclusion(NamedTuple):
    """A table, and sentences about it."""

    table: pd.DataFrame
    warnings: list[str]  # what could not be compared, and why
    remarks: list[str]  # what was compared with what, and what it can show


def against_baseline(
    runs: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[str],
    baseline: Mapping[str, Any],
    *,
    parameters: Sequence[str],
    seeds: str | None = None,
    interval: Interval = "t",
    unfinished: bool = False,
) -> Conclusion:
    """Each condition against its baseline, as `statistics.compare` has it, in blocks as in `baseline.in_blocks`.

    Args:
        runs: one row per run, those that do not count among them.
        by: parameters that make a condition.
        metrics: columns to compare; those measured under settings that differ and are not in `by` are left out.
        baseline: values of some or all of `by`. Where no run with these counts yet, each condition has n = 0.
        parameters: those that differ between the runs.
        seeds: column that pairs runs; None: as `joined.pairing` has it.
        interval: as in `statistics.summarize`.
        unfinished: whether runs that have not completed count.

    Raises:
        ResultsError: as `compare`, and if all metrics are measured under settings that differ.
    """
    require_columns(runs, [*by, *metrics])
    codecs = counts_codecs(runs, by)
    chosen = [name for name in metrics if set(differing_settings(runs, name)) <= set(by)]
    if metrics and not chosen:
        raise ResultsError("--baseline: all metrics are measured under settings that differ; add these to --by.")
    pair = seeds or pairing(baseline, codecs=codecs)
    require_columns(runs, [pair])
    if pair in baseline:
        raise ResultsError(f"{pair} pairs the runs, so it cannot be of the baseline; name another one with --seeds.")
    own = replicates(counted(runs, unfinished=unfinished), by, chosen, codecs=codecs)
    values = ", ".join(f"{name}={shown(value)}" for name, value in baseline.items())
    if not has_values(own, baseline).any() and has_values(runs, baseline).any():
        conditions = own[list(by)].drop_duplicates().merge(pd.DataFrame({"metric": chosen}), how="cross")
        numbers = {"n": 0, **dict.fromkeys(COMPARED[1:], np.nan)}
        return Conclusion(conditions.assign(**numbers), [f"no run with {values} counts yet: nothing is compared"], [])
    own, unit = in_blocks(own, by, chosen, baseline, parameters=parameters, pair=pair)
    remarks = []
    if unit != pair and len(own):
        remarks.append(f"n counts blocks, such as {str(own[unit].iloc[0])!r}, in which runs are paired")
    table = compare(own, by, chosen, baseline, pair=unit, interval=interval)
    remarks += filter(None, [reach_line(table)])
    lines = [*unmatched_lines(own, by, baseline), *unpaired_lines(own, by, baseline, unit)]
    missing = own.loc[has_values(own, baseline), chosen].isna().all()
    lines += [f"no pair of {name}: no run with {values} has measured it" for name in chosen if missing[name]]
    return Conclusion(table, lines, remarks)


def over_design(
    runs: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[str],
    *,
    parameters: Sequence[str],
    seeds: Sequence[str],
    unfinished: bool = False,
) -> Conclusion:
    """Whether each parameter changes each metric over the whole grid: `pooled.pooled`.

    Args:
        runs: one row per run, those that do not count among them.
        by: parameters to test.
        metrics: columns to test.
        parameters: those that differ between the runs; runs that are compared are equal in all but one.
        seeds: parameters of the seed.
        unfinished: whether runs that have not completed count.

    Raises:
        ResultsError: if a column does not exist.
    """
    codecs = counts_codecs(runs, by)
    mixed = [name for name in parameters if name not in (*by, *seeds)]
    alike = [name for name in (*mixed, *seeds) if name in runs and not (codecs and name == "seed")]
    own = replicates(counted(runs, unfinished=unfinished), [*by, *mixed], metrics, codecs=codecs)
    table = pooled(own, by, metrics, alike)
    return Conclusion(table, [], pooled_lines(table, [name for name in alike if name not in by]))
