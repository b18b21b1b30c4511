"""Runs as a table for the page: each cell with its text and what it is sorted by, the best of each metric marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiotok.results.tables import clean_text, format_column, is_numeric, number_of
from audiotok.results.experiments import Experiments
from audiotok.results.metrics import METRICS, Metric
from audiotok.results.tables import headline_columns

NO_METRIC = Metric("neutral", "", "")
ARROWS = {"higher": "↑", "lower": "↓", "neutral": ""}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is shown.
        key: number that it is sorted by, as text; empty if missing; None in a column of texts.
        best: whether no other cell of the column is better.
    """

    text: str
    key: str | None = None
    best: bool = False


@dataclass(frozen=True)
class Column:
    """One column: its name, what is known of the metric, whether it holds numbers, and its cells."""

    name: str
    metric: Metric
    numeric: bool
    cells: list[Cell]
    values: list[str] | None = None
    """What the reader may filter by, in order; None where that makes no sense."""

    @property
    def stage(self) -> str:
        """What stands before the first dot of the name, for a line of its own; empty without a dot."""
        return self.name.partition(".")[0] if "." in self.name.strip(".") else ""

    @property
    def arrow(self) -> str:
        """Which way is better, as an arrow; empty if neither is."""
        return ARROWS[self.metric.direction]


def metric_of(experiments: Experiments, name: str) -> Metric:
    """What is known of a column; nothing of one that is not measured: `losses.mmd` is a parameter."""
    return METRICS.get(name.partition(".")[2], NO_METRIC) if name in experiments.metrics else NO_METRIC


def run_columns(experiments: Experiments, metrics: Sequence[str]) -> list[Column]:
    """Columns of the table: signature, swept parameters, state, effort, then the metrics, and what went wrong."""
    runs = experiments.runs
    headline = headline_columns(experiments)
    said = [name for name in ("reason", "problems") if name in headline]
    names = [name for name in headline if name not in experiments.metrics and name not in said]
    filtered = {*experiments.swept, "state"}
    return [
        _column(name, runs[name].tolist(), metric_of(experiments, name), filtered=name in filtered)
        for name in [*names, *metrics, *said]
    ]


def duration_text(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock has them."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _column(name: str, items: list[Any], metric: Metric, *, filtered: bool) -> Column:
    numeric = all(map(is_numeric, items))
    texts = [duration_text(value) for value in items] if name == "duration" else format_column(items)
    numbers = np.array([number_of(value) for value in items], np.float64)
    keys = ["" if math.isnan(value) else repr(float(value)) for value in numbers]
    best = best_rows(numbers, metric)
    cells = [Cell(text, keys[row] if numeric else None, row in best) for row, text in enumerate(texts)]
    values = list(dict.fromkeys(texts)) if filtered else None
    return Column(clean_text(name), metric, numeric, cells, values)


def best_rows(numbers: np.ndarray[Any, np.dtype[np.float64]], metric: Metric) -> set[int]:
    """Rows with the best finite value, if the metric has a better direction and there is a choice."""
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    if metric.direction == "neutral" or np.isfinite(finite).sum() < 2:
        return set()
    best = np.nanmax(finite) if metric.direction == "higher" else np.nanmin(finite)
    return set(np.flatnonzero(finite == best).tolist())
