"""Tables of the page: runs, conditions over seeds, conditions against a baseline; with the best of each metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results.baseline import in_blocks
from audiotok.results.experiments import Experiments
from audiotok.results.joined import codec_rows, counts_codecs, pairing, replicates
from audiotok.results.metrics import Metric, goodness, metric_in
from audiotok.results.published import published_table
from audiotok.results.statistics import compare, summarize
from audiotok.results.tables import (
    Estimate,
    best_rows,
    format_column,
    format_value,
    headline_columns,
    is_numeric,
    number_of,
    own_errors,
    summary_table,
)
from audiotok.text import clean_text

_NO_METRIC = Metric("neutral", "", "")
_SIGNIFICANT = 0.05
_ARROWS = {"higher": "↑", "lower": "↓", "near_zero": "→0", "neutral": ""}


@dataclass(frozen=True)
class _Cell:
    """One cell."""

    text: str  # what is shown
    key: str | None = None  # number that it is sorted by, as text; empty if missing; None in a column of texts
    best: bool = False  # whether no other cell of the column is better


@dataclass(frozen=True)
class Column:
    """One column: its name, what is known of the metric, whether it holds numbers, and its cells."""

    name: str
    metric: Metric
    numeric: bool
    cells: list[_Cell]
    values: list[str] | None = None
    """What the reader may filter by, in order; None where that makes no sense."""

    @property
    def stage(self) -> str:
        """What stands before the first dot of the name, for a line of its own; empty without a dot."""
        return self.name.partition(".")[0] if "." in self.name.strip(".") else ""

    @property
    def arrow(self) -> str:
        """Which way is better, as an arrow; empty if neither is."""
        return _ARROWS[self.metric.direction]


def metric_of(experiments: Experiments, name: str) -> Metric:
    """What is known of a column; nothing of one that is not measured: `losses.mmd` is a parameter.

    What does not compare between these runs has no better direction.
    """
    metric = metric_in(experiments.runs, name) if name in experiments.metrics else None
    return metric or _NO_METRIC


def run_columns(experiments: Experiments, metrics: Sequence[str]) -> list[Column]:
    """Columns of the table: signature, swept parameters, state, effort, then the metrics, and what went wrong."""
    runs = experiments.runs
    headline = headline_columns(experiments)
    notes = [name for name in ("reason", "problems") if name in headline]
    names = [name for name in headline if name not in experiments.metrics and name not in notes]
    filtered = {*experiments.swept, "state"}
    return [
        _column(
            name, runs[name].tolist(), metric_of(experiments, name), own_errors(runs, name), filtered=name in filtered
        )
        for name in [*names, *metrics, *notes]
    ]


def codec_columns(experiments: Experiments, metrics: Sequence[str], seeds: str) -> list[Column]:
    """Columns of the table of codecs: each one's parameters and metrics, and those of the runs on it over seeds."""
    table = codec_rows(experiments, seeds=[seeds], unfinished=True)
    names = [*table.columns[: table.columns.get_loc("n")], "n", *metrics]
    columns = {str(name): table[name].tolist() for name in names}
    return [_column(name, items, metric_of(experiments, name), filtered=False) for name, items in columns.items()]


def published_columns(experiments: Experiments) -> list[Column]:
    """Published numbers of the metrics that the runs have; empty without any."""
    table = published_table(experiments.metrics)
    columns = {str(name): table[name].tolist() for name in table.columns if len(table)}
    return [_column(name, items, metric_of(experiments, name), filtered=False) for name, items in columns.items()]


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock has them."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _column(
    name: str, items: list[Any], metric: Metric, errors: list[float] | None = None, *, filtered: bool
) -> Column:
    numeric = all(map(is_numeric, items))
    texts = [clock_text(value) for value in items] if name == "duration" else format_column(items)
    keys = ["" if math.isnan(value) else repr(value) for value in map(number_of, items)]
    best = best_rows(items, metric.direction, errors)
    cells = [_Cell(text, keys[row] if numeric else None, row in best) for row, text in enumerate(texts)]
    values = list(dict.fromkeys(texts)) if filtered else None
    return Column(clean_text(name), metric, numeric, cells, values)


@dataclass(frozen=True)
class _Comparison:
    """A metric of one condition against the baseline."""

    condition: list[str]  # values of the parameters
    metric: str  # `stage.metric`
    known: Metric  # its direction and unit
    cells: list[str]  # pairs, baseline, mean, difference, interval, effect, p, corrected p
    verdict: str  # better, worse, or empty if neither
    significant: bool  # whether the corrected p-value is below 0.05


def condition_columns(experiments: Experiments, by: Sequence[str], metrics: Sequence[str]) -> list[Column]:
    """One row per condition: its parameters, its runs, and `mean ± std` of each metric, the best marked."""
    codecs = counts_codecs(experiments.runs, by)
    summary = summarize(replicates(experiments.runs, by, metrics, codecs=codecs), by, metrics, interval="t")
    table = summary_table(summary, by)
    columns = [_plain(name, table[name].tolist()) for name in by]
    most = summary["n"].to_numpy().reshape(-1, len(metrics)).max(axis=1).tolist()
    columns.append(_plain("codecs" if codecs else "runs", most))
    for name in metrics:
        estimates = table[name].tolist()
        metric = metric_of(experiments, name)
        best = best_rows(estimates, metric.direction)
        shown = zip(format_column(estimates), estimates, most, strict=True)
        texts = [_with_count(text, value, runs) for text, value, runs in shown]
        cells = [_Cell(text, "", row in best) for row, text in enumerate(texts)]
        columns.append(Column(clean_text(name), metric, True, cells))
    return columns


def compare_conditions(
    experiments: Experiments, by: Sequence[str], metrics: Sequence[str], baseline: Mapping[str, Any], seeds: str
) -> list[_Comparison]:
    """Each condition against the baseline, paired by seed, of runs on several codecs as in `joined.pairing`."""
    codecs = counts_codecs(experiments.runs, by)
    pair = pairing(baseline, codecs=True) if codecs else seeds
    runs = replicates(experiments.runs, by, metrics, codecs=codecs)
    runs, pair = in_blocks(runs, by, metrics, baseline, parameters=experiments.swept, pair=pair)
    table = compare(runs, by, metrics, baseline, pair=pair)
    return [_comparison(experiments, by, row) for row in table.to_dict("records")]


def _comparison(experiments: Experiments, by: Sequence[str], row: Mapping[Any, Any]) -> _Comparison:
    known = metric_of(experiments, row["metric"])
    gain = 0.0
    if known.direction != "neutral":
        baseline, mean = goodness(np.array([row["baseline"], row["mean"]]), known.direction)
        gain = mean - baseline
    low, high = (format_value(row[name]) for name in ("low", "high"))
    names = ("n", "baseline", "mean", "difference", "interval", "effect", "p", "p_holm")
    values = {**row, "interval": f"{low} to {high}" if pd.notna(row["low"]) else "-"}
    return _Comparison(
        condition=[format_value(row[name]) for name in by],
        metric=clean_text(row["metric"]),
        known=known,
        cells=[_text(name, values[name]) for name in names],
        verdict="better" if gain > 0 else "worse" if gain < 0 else "",
        significant=bool(row["p_holm"] < _SIGNIFICANT),
    )


def _text(name: str, value: Any) -> str:
    """A cell of a comparison; p-values and effects with few digits."""
    if name == "interval" or not isinstance(value, float) or pd.isna(value):
        return value if name == "interval" else format_value(value)
    if name in ("p", "p_holm"):
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    return f"{value:.2f}" if name == "effect" else format_value(value)


def _plain(name: str, items: list[Any]) -> Column:
    return Column(clean_text(name), _NO_METRIC, False, [_Cell(text) for text in format_column(items)])


def _with_count(text: str, value: Any, runs: int) -> str:
    """The number of runs that have a value, where some have not."""
    return f"{text} (n = {value.n})" if isinstance(value, Estimate) and 0 < value.n < runs else text
