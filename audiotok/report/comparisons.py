"""Statistics of the page: conditions over seeds, and conditions against a baseline, as rows of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audiotok.report.table import Cell, Column, best_rows, metric_of
from audiotok.results.tables import Estimate, clean_text, format_column, format_value, number_of
from audiotok.results.experiments import Experiments
from audiotok.results.metrics import Metric
from audiotok.results.statistics import compare, summarize
from audiotok.results.tables import summary_table

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """A metric of one condition against the baseline.

    Attributes:
        condition: values of the parameters.
        metric: `stage.metric`.
        known: what is known of it.
        cells: pairs, baseline, mean, difference, interval, effect, p, corrected p.
        verdict: better, worse, or empty where neither can be said.
        significant: whether the corrected p-value is below SIGNIFICANT.
    """

    condition: list[str]
    metric: str
    known: Metric
    cells: list[str]
    verdict: str
    significant: bool


def condition_columns(experiments: Experiments, by: Sequence[str], metrics: Sequence[str]) -> list[Column]:
    """One row per condition: its parameters, its runs, and `mean ± std` of each metric, the best marked."""
    summary = summarize(experiments.runs, by, metrics, interval="t")
    table = summary_table(summary, by)
    columns = [_plain(name, table[name].tolist()) for name in by]
    most = summary["n"].to_numpy().reshape(-1, len(metrics)).max(axis=1).tolist()
    columns.append(_plain("runs", most))
    for name in metrics:
        estimates = table[name].tolist()
        metric = metric_of(experiments, name)
        best = best_rows(np.array([number_of(value) for value in estimates], np.float64), metric)
        shown = zip(format_column(estimates), estimates, most, strict=True)
        texts = [_with_count(text, value, runs) for text, value, runs in shown]
        cells = [Cell(text, "", row in best) for row, text in enumerate(texts)]
        columns.append(Column(clean_text(name), metric, True, cells))
    return columns


def compare_conditions(
    experiments: Experiments, by: Sequence[str], metrics: Sequence[str], baseline: Mapping[str, Any], seeds: str
) -> list[Comparison]:
    """Each condition against the baseline, paired by seed; see `statistics.compare`."""
    table = compare(experiments.runs, by, metrics, baseline, pair=seeds)
    return [_comparison(experiments, by, row) for row in table.to_dict("records")]


def _comparison(experiments: Experiments, by: Sequence[str], row: Mapping[Any, Any]) -> Comparison:
    known = metric_of(experiments, row["metric"])
    sign = {"higher": 1, "lower": -1, "neutral": 0}[known.direction]
    gain = sign * row["difference"]
    low, high = (format_value(row[name]) for name in ("low", "high"))
    names = ("n", "baseline", "mean", "difference", "interval", "effect", "p", "p_holm")
    values = {**row, "interval": f"{low} to {high}" if pd.notna(row["low"]) else "-"}
    return Comparison(
        condition=[format_value(row[name]) for name in by],
        metric=clean_text(row["metric"]),
        known=known,
        cells=[_text(name, values[name]) for name in names],
        verdict="better" if gain > 0 else "worse" if gain < 0 else "",
        significant=bool(row["p_holm"] < SIGNIFICANT),
    )


def _text(name: str, value: Any) -> str:
    """A cell of a comparison; p-values and effects with as many digits as they deserve."""
    if name == "interval" or not isinstance(value, float) or pd.isna(value):
        return value if name == "interval" else format_value(value)
    if name in ("p", "p_holm"):
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    return f"{value:.2f}" if name == "effect" else format_value(value)


def _plain(name: str, items: list[Any]) -> Column:
    return Column(clean_text(name), Metric("neutral", "", ""), False, [Cell(text) for text in format_column(items)])


def _with_count(text: str, value: Any, runs: int) -> str:
    """Say how many runs have a value where some have not."""
    return f"{text} (n = {value.n})" if isinstance(value, Estimate) and 0 < value.n < runs else text
