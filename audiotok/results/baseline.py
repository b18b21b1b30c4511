"""Which condition is the baseline of which, and which runs are paired with which, in factorial sweeps as they are run.

A baseline without a loss has no settings of it: with `losses.mmd=0` nothing of the section `mmd` counts, whether its
runs lack those parameters or have them from a default.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.metrics import CODEC
from audiotok.results.tables import format_value

BLOCK = "block"
_MAX_LISTED = 10
_ABSENT = object()  # equal to no value
Condition = tuple[Any, ...]  # values of the parameters that make a condition


class Match(NamedTuple):
    """Conditions by their place in the sequence that was matched."""

    baselines: tuple[int, ...]  # conditions that have the values of the baseline
    of: dict[int, int]  # place of the baseline of every other condition that has one
    without: dict[int, str]  # why another one has none


def match(conditions: Sequence[Condition], by: Sequence[str], baseline: Mapping[str, Any]) -> Match:
    """Find the baseline of each condition.

    It has the values of `baseline`, and the condition's own value of every other parameter, but for those that a
    baseline does not have: missing in all of them, or settings of a loss whose weight in the baseline is 0. Of several,
    the one that has most values of the condition counts.

    Args:
        conditions: values of the parameters `by`, a tuple each; a missing one is None or NaN.
        by: names of the parameters.
        baseline: values of some or all of `by`; None for a missing one.

    Raises:
        ResultsError: if `baseline` is empty or names what is not in `by`, or no condition has its values.
    """
    unknown = [name for name in baseline if name not in by]
    if unknown or not baseline:
        raise ResultsError(f"baseline names {unknown or 'nothing'}; give values of: {', '.join(by)}.")
    plain = [tuple(map(_plain, condition)) for condition in conditions]
    given = {by.index(name): _plain(value) for name, value in baseline.items()}
    baselines = [n for n, own in enumerate(plain) if all(own[at] == value for at, value in given.items())]
    if not baselines and plain:
        values = ", ".join(f"{name}={shown(value)}" for name, value in baseline.items())
        raise ResultsError(f"no runs with {values} to compare with; there are: {_listed(plain, by)}.")
    lacks = [all(plain[n][at] is None for n in baselines) or _idle(name, baseline) for at, name in enumerate(by)]
    of, without = dict[int, int](), dict[int, str]()
    for place, own in enumerate(plain):
        if place in baselines:
            continue
        ranks: dict[int, int] = {}
        for n in baselines:
            same = [at in given or own[at] == plain[n][at] for at in range(len(by))]
            if all(one or lacked for one, lacked in zip(same, lacks, strict=True)):
                ranks[n] = sum(same)
        best = [n for n, rank in ranks.items() if rank == max(ranks.values())]
        if len(best) == 1:
            of[place] = best[0]
        elif best:
            without[place] = f"several baselines fit: {_listed([plain[n] for n in best], by)}"
        else:
            without[place] = f"the baselines are: {_listed([plain[n] for n in baselines], by)}"
    return Match(tuple(baselines), of, without)


def unmatched_lines(runs: pd.DataFrame, by: Sequence[str], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each condition that has no baseline, and why."""
    conditions = _conditions(runs, by)
    found = match(conditions, by, baseline).without
    lines = [f"no baseline of {describe(by, conditions[place])}; {why}" for place, why in found.items()]
    more = len(lines) - _MAX_LISTED
    return lines[:_MAX_LISTED] + [f"and {more} more conditions without a baseline"] * (more > 0)


def unpaired_lines(runs: pd.DataFrame, by: Sequence[str], baseline: Mapping[str, Any], unit: str) -> list[str]:
    """A line for each condition that has a baseline, but no run to pair with one of its.

    Args:
        runs: what is paired, as `in_blocks` returns it.
        by: parameters that make a condition.
        baseline: values of some or all of `by`.
        unit: column that pairs.
    """
    conditions = _conditions(runs, by)
    units = [dict[str, None]() for _ in conditions]
    for row, value in zip(runs[list(by)].itertuples(index=False), runs[unit], strict=True):
        units[conditions.index(tuple(map(_plain, row)))][str(_plain(value))] = None
    lines = [
        f"no pair of {describe(by, conditions[place])}: its runs are of {unit} {_first(units[place])}, those of its "
        f"baseline of {_first(units[other])}"
        for place, other in match(conditions, by, baseline).of.items()
        if not units[place].keys() & units[other].keys()
    ]
    more = len(lines) - _MAX_LISTED
    return lines[:_MAX_LISTED] + [f"and {more} more conditions without a pair"] * (more > 0)


def _first(texts: Mapping[str, None]) -> str:
    """The first of some texts, and how many more there are."""
    return f"{next(iter(texts), '-')!r}" + f" and {len(texts) - 1} more" * (len(texts) > 1)


def in_blocks(
    runs: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[str],
    baseline: Mapping[str, Any],
    *,
    parameters: Sequence[str],
    pair: str,
) -> tuple[pd.DataFrame, str]:
    """Runs to pair with those of the baseline, where conditions are of fewer parameters than were swept.

    Runs of a condition are paired with the baseline's in blocks: runs of one seed that agree in what the baseline was
    run with several values of, such as the number of codebooks. Over what else differs, the runs of a condition and
    block are averaged, so that a block counts once.

    Args:
        runs: one row per run.
        by: parameters that make a condition.
        metrics: columns to compare.
        baseline: values of some or all of `by`.
        parameters: those that differ between the runs.
        pair: the parameter of the seed.

    Returns:
        Runs, or rows for the means of runs, and the name of the column that pairs them: `pair` itself if nothing
        but it differs within a condition, else `block`.
    """
    reference = runs[has_values(runs, baseline)]
    more = [name for name in parameters if name not in (*by, pair) and name in runs.columns]
    more = [name for name in more if reference[name].map(repr).nunique() > 1]
    repeated = runs.groupby([*by, pair], dropna=False, sort=False).size().gt(1).any()
    if not more and not repeated:
        return runs, pair
    rows = runs[[pair, *more]].to_dict("records")
    block = [", ".join(f"{name}={shown(value)}" for name, value in row.items()) for row in rows]
    keys = [*by, BLOCK]
    numbers = {name: runs[name].astype(np.float64).replace([np.inf, -np.inf], np.nan) for name in metrics}
    columns: dict[str, Any] = {BLOCK: block, **numbers}
    groups = runs.assign(**columns).groupby(keys, dropna=False, sort=False)
    return groups[list(metrics)].mean().reset_index().assign(sig=groups["sig"].first().to_numpy()), BLOCK


def describe(by: Sequence[str], condition: Condition) -> str:
    """Text of a condition, such as `losses.mmd=0.5, mmd.stream=code`."""
    return ", ".join(f"{name}={shown(value)}" for name, value in zip(by, condition, strict=True)) or "all runs"


def _conditions(runs: pd.DataFrame, by: Sequence[str]) -> list[Condition]:
    return list(dict.fromkeys(tuple(map(_plain, row)) for row in runs[list(by)].itertuples(index=False)))


def has_values(runs: pd.DataFrame, baseline: Mapping[str, Any]) -> "pd.Series[bool]":
    """Which runs have the values of a baseline."""
    found = pd.Series(True, index=runs.index)
    for name, value in baseline.items():
        own = runs[name].tolist() if name in runs.columns else [_ABSENT] * len(runs)
        found &= np.array([_plain(one) == _plain(value) for one in own], np.bool_)
    return found


def _idle(name: str, baseline: Mapping[str, Any]) -> bool:
    """Whether a parameter is a setting of a loss whose weight in the baseline is 0."""
    prefix = CODEC if name.startswith(CODEC) else ""
    weight = baseline.get(f"{prefix}losses.{name.removeprefix(prefix).partition('.')[0]}")
    return isinstance(weight, int | float) and weight == 0


def _plain(value: Any) -> Any:
    """A value that equals itself: None for all that is missing."""
    return None if value is None or value is pd.NA or value != value else value


def shown(value: Any) -> str:
    """Text of a value of a parameter; `null` if it is missing."""
    return "null" if _plain(value) is None else format_value(value)


def _listed(conditions: Sequence[Condition], by: Sequence[str]) -> str:
    more = f"; ... ({len(conditions) - _MAX_LISTED} more)" * (len(conditions) > _MAX_LISTED)
    return "; ".join(describe(by, condition) for condition in conditions[:_MAX_LISTED]) + more
