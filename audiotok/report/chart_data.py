"""What the charts of the page draw: values of the runs that count, means of conditions, curves, importance.

The page draws with Apache ECharts, which stands in its only script; nothing is drawn here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.report.charts import curve
from audiotok.report.table import metric_of
from audiotok.results.experiments import Experiments
from audiotok.results.importance import grid_importance
from audiotok.results.joined import counts_codecs, replicates
from audiotok.results.plots import metric_label
from audiotok.results.selection import counted
from audiotok.results.statistics import CONFIDENCE
from audiotok.results.tables import condition_text, format_value, short_names
from audiotok.text import clean_text

_DEPENDENCE = ("evaluate.gap", "evaluate.mi_groups", "evaluate.mi", "evaluate.mmd", "valid.mmd", "train.mmd")
_QUALITY = (
    "codec.evaluate.visqol", "codec.evaluate.sisdr",
    "evaluate.visqol", "evaluate.sisdr", "evaluate.mel_distance", "evaluate.sisnr", "evaluate.mel", "valid.sisnr",
    "valid.msspec", "train.msspec",
)  # fmt: skip
_LIKELIHOODS = ("evaluate.bits_parallel", "evaluate.bits_chain")
_USAGE = "evaluate.usage_q"
_MAX_CURVES = 8
_POINTS = 60  # of a curve: what a chart can show, and a page can hold for thousands of runs
_DIGITS = 5

Floats = np.ndarray[Any, np.dtype[np.float64]]


def chart_data(
    experiments: Experiments, by: Sequence[str], metrics: Sequence[str], seeds: Sequence[str], *, unfinished: bool
) -> dict[str, Any] | None:
    """Content of the charts, to be written as JSON; None if no run that counts has measured anything.

    Args:
        experiments: the grid.
        by: parameters that make a condition.
        metrics: `stage.metric` names that the report judges by.
        seeds: parameters that are averaged over.
        unfinished: whether runs that have not completed count.
    """
    runs = counted(experiments.runs, unfinished=unfinished)
    pair = [next((name for name in _first(metrics, names) if name in experiments.metrics), "") for names in _AXES]
    shown = [name for name in dict.fromkeys([*metrics, *pair, *_LIKELIHOODS]) if name in experiments.metrics]
    shown = [name for name in shown if np.isfinite(runs[name].to_numpy(np.float64)).any()]
    if not shown:
        return None
    several = len(runs) > 1
    parameters = list(dict.fromkeys([*by, *(name for name in experiments.swept if several and name not in seeds)]))
    codecs = counts_codecs(runs, by)
    points = replicates(runs, list(dict.fromkeys([*by, *parameters])), shown, codecs=codecs)
    places = {sig: place for place, sig in enumerate(runs["sig"])}
    conditions = _numbers_of_groups(points, by)
    units = replicates(runs, by, shown, codecs=True) if codecs else points  # what a condition has the mean of
    of_runs = _numbers_of_groups(runs, by)
    return {
        "by": [clean_text(name) for name in by],
        "seeds": clean_text(", ".join(name for name in seeds if name in experiments.parameters) or "runs"),
        "things": "codecs" if codecs else "runs",
        "runs": runs["sig"].tolist(),
        "run_condition": of_runs.tolist(),
        "points": _members(points, runs, places, parameters) if codecs else [[place] for place in range(len(runs))],
        "condition": conditions.tolist(),
        "conditions": _labels(points, by, conditions),
        "parameters": [_parameter(points[name], name) for name in parameters],
        "metrics": [_metric(experiments, name, points, units, _numbers_of_groups(units, by)) for name in shown],
        "axes": [shown.index(name) if name in shown else -1 for name in pair],
        "curves": _curves(experiments, runs, metrics),
        "importance": [
            found for name in shown if (found := _importance(experiments, name, parameters, seeds, unfinished))
        ],
    }


_AXES = (_DEPENDENCE, _QUALITY)


def curve_metrics(experiments: Experiments, metrics: Sequence[str]) -> list[str]:
    """Metrics of which some run has finite values of more than one epoch."""
    return [name for name in metrics if curve(experiments, name)["sig"].duplicated().any()]


def _numbers_of_groups(rows: pd.DataFrame, by: Sequence[str]) -> "pd.Series[int]":
    """Number of the condition of each row, in the order in which conditions appear."""
    if not by:
        return pd.Series(0, index=rows.index)
    return rows.groupby(list(by), sort=False, dropna=False).ngroup()


def _labels(points: pd.DataFrame, by: Sequence[str], conditions: "pd.Series[int]") -> list[str]:
    names = list(short_names(by).values())
    firsts = points[~conditions.duplicated().to_numpy()]
    rows: Any = zip(*(firsts[name] for name in by), strict=True) if by else [()]
    return [clean_text(condition_text(names, row)) or "all runs" for row in rows]


def _members(
    points: pd.DataFrame, runs: pd.DataFrame, places: dict[str, int], parameters: Sequence[str]
) -> list[list[int]]:
    """Of points that are codecs the runs that each is the mean of."""

    def key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
        return (row["codec.sig"], *(format_value(row[name]) for name in parameters))

    units = runs.assign(**{"codec.sig": runs["codec.sig"].where(runs["codec.sig"].notna(), runs["sig"])})
    members: dict[Any, list[int]] = {}
    for row in units.to_dict("records"):
        members.setdefault(key(row), []).append(places[row["sig"]])
    return [members.get(key(row), []) for row in points.to_dict("records")]


def _parameter(values: "pd.Series[Any]", name: str) -> dict[str, Any]:
    """Name, values in order, and which of them each point has."""
    texts = [clean_text(format_value(value)) for value in values]
    first = dict(zip(texts, values, strict=True))
    numbers = {text: _as_number(value) for text, value in first.items()}
    levels = sorted(first, key=lambda text: (numbers[text] is not None, numbers[text] or 0.0))  # texts before numbers
    ranks = {text: rank for rank, text in enumerate(levels)}
    return {"name": clean_text(name), "levels": levels, "of": [ranks[text] for text in texts]}


def _as_number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if number else None


def _metric(
    experiments: Experiments, name: str, points: pd.DataFrame, units: pd.DataFrame, conditions: "pd.Series[int]"
) -> dict[str, Any]:
    """One metric: its value of each point, and n, mean and Student's 95 % interval of each condition."""
    values, counts = (_finite(rows[name]) for rows in (points, units))
    table = pd.Series(counts).groupby(conditions.to_numpy()).agg(["count", "mean", "std"])
    n, mean, std = (table[column].to_numpy(np.float64) for column in ("count", "mean", "std"))
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * std / np.sqrt(n)
    metric = metric_of(experiments, name)
    return {
        "name": clean_text(name),
        "label": clean_text(metric_label(name, experiments.runs)),
        "unit": metric.unit,
        "direction": metric.direction,
        "values": _json(values),
        "n": n.astype(int).tolist(),
        "mean": _json(mean),
        "low": _json(mean - half),
        "high": _json(mean + half),
    }


def _curves(experiments: Experiments, runs: pd.DataFrame, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Courses of the metrics over epochs, and usage over the codebooks, of each run that counts."""
    found = []
    for name in curve_metrics(experiments, metrics)[:_MAX_CURVES]:
        rows = curve(experiments, name)
        epochs = np.unique(rows["epoch"].to_numpy())
        ends = epochs[np.unique(np.linspace(0, len(epochs) - 1, _POINTS).round().astype(int))]
        bins = ends[np.searchsorted(ends, rows["epoch"].to_numpy())]  # of each bin its last value, at its end
        table = rows.assign(epoch=bins).groupby(["sig", "epoch"], observed=True)["value"].last().unstack()
        found.append(_curve(experiments, name, "epoch", table.reindex(runs["sig"])))
    numbers = (name.removeprefix(_USAGE) for name in experiments.metrics if name.startswith(_USAGE))
    books = sorted(int(number) for number in numbers if number.isdecimal() and len(number) < 3)
    if books:
        table = runs[[f"{_USAGE}{book}" for book in books]].set_axis(books, axis=1)
        found.append(_curve(experiments, "evaluate.usage", "codebook", table))
    return found


def _curve(experiments: Experiments, name: str, axis: str, table: pd.DataFrame) -> dict[str, Any]:
    metric = metric_of(experiments, name)
    values = table.to_numpy(np.float64)
    return {
        "name": clean_text(name),
        "label": clean_text(metric_label(name, experiments.runs)),
        "direction": metric.direction,
        "axis": axis,
        "x": [int(x) for x in table.columns],
        "values": [_json(row) for row in np.where(np.isfinite(values), values, np.nan)],
    }


def _importance(
    experiments: Experiments, name: str, parameters: Sequence[str], seeds: Sequence[str], unfinished: bool
) -> dict[str, Any] | None:
    """Importance of the parameters for a metric, or why it has none; None where nothing was swept."""
    if not parameters:
        return None
    try:
        table, runs = grid_importance(experiments, name, parameters, seeds=seeds, unfinished=unfinished)
    except ResultsError as error:
        return {"metric": clean_text(name), "note": clean_text(str(error)), "rows": [], "runs": 0}
    rows = [
        [clean_text(row["parameter"]), *_json(np.array([row[key] for key in ("share", "low", "high", "p")], float))]
        for row in table.to_dict("records")
    ]
    return {"metric": clean_text(name), "note": "", "rows": rows, "runs": runs}


def _finite(values: "pd.Series[Any]") -> Floats:
    numbers: Floats = values.to_numpy(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _json(values: Floats) -> list[float | None]:
    """Numbers with the digits that a chart shows; null for what is missing."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def _first(chosen: Sequence[str], names: Sequence[str]) -> list[str]:
    return [*(name for name in names if name in chosen), *names]
