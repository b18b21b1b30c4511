"""Tables of the page: runs, conditions over seeds, conditions against a baseline; with the best of each metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results.codecs import CODEC_SEED
from audiotok.results.conclusions import against_baseline, over_design
from audiotok.results.experiments import Experiments
from audiotok.results.joined import codec_rows, counts_codecs, replicates
from audiotok.results.metrics import CODEC, Metric, goodness, metric_in
from audiotok.results.published import published_table
from audiotok.results.selection import counted
from audiotok.results.statistics import summarize
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
_MAX_NUMBERS, _MAX_TEXTS = 12, 60  # values that a list to choose from may have
_FACTS = ("gpu_hours", "host", "commit")
_ARROWS = {"higher": "↑", "lower": "↓", "near_zero": "→0", "neutral": ""}


@dataclass(frozen=True)
class _Cell:
    """One cell."""

    text: str  # what is shown
    best: bool = False  # whether no other cell of the column is better


@dataclass(frozen=True)
class Column:
    """One column: its name, what is known of the metric, whether it holds numbers, and its cells."""

    name: str
    metric: Metric
    numeric: bool
    cells: list[_Cell]
    keys: list[float] | None = None  # numbers that the rows are sorted and filtered by; None in a column of texts
    role: str = "metric"  # or sig, parameter, state, effort, fact, note
    shown: bool = True  # whether the table has it before the reader chooses

    @property
    def values(self) -> list[str]:
        """What the reader may choose from, in order; empty where a range or the search serves better."""
        if self.role not in ("parameter", "state"):
            return []
        texts = [cell.text for cell in self.cells]
        if self.keys is not None:
            texts = [
                text
                for _, _, text in sorted((math.isnan(n), n, text) for n, text in zip(self.keys, texts, strict=True))
            ]
        values = list(dict.fromkeys(texts))
        return values if 1 < len(values) <= (_MAX_NUMBERS if self.numeric else _MAX_TEXTS) else []

    @property
    def numbers(self) -> tuple[str, str] | None:
        """The texts of the smallest and the largest number; None where there are no two."""
        finite = [
            (key, cell.text) for key, cell in zip(self.keys or (), self.cells, strict=False) if math.isfinite(key)
        ]
        ends = (min(finite), max(finite)) if finite else ((0.0, ""), (0.0, ""))
        return (ends[0][1], ends[1][1]) if ends[0][0] < ends[1][0] else None

    def data(self) -> dict[str, Any]:
        """The column as JSON, which `table.js` and `filter.js` read."""
        return {
            "name": self.name,
            "kind": "number" if self.keys is not None else "text",
            "role": self.role,
            "stage": self.stage,
            "unit": self.metric.unit,
            "direction": self.metric.direction,
            "description": self.metric.description,
            "texts": [cell.text for cell in self.cells],
            "keys": None if self.keys is None else [_key(value) for value in self.keys],
            "best": [row for row, cell in enumerate(self.cells) if cell.best],
            "shown": self.shown,
        }

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


def run_columns(experiments: Experiments, metrics: Sequence[str], *, unfinished: bool = False) -> list[Column]:
    """Columns of the table: signature, swept parameters, state, effort, metrics, what went wrong, facts.

    The best of a metric is the best of the runs that count.
    """
    runs = experiments.runs
    ranked = runs.index.isin(counted(runs, unfinished=unfinished).index).tolist()
    headline = headline_columns(experiments)
    notes = [name for name in ("reason", "problems") if name in headline]
    names = [name for name in headline if name not in experiments.metrics and name not in notes]
    facts = [name for name in _FACTS if name in runs and _is_told(runs[name])]
    roles = dict.fromkeys(names, "effort") | dict.fromkeys(experiments.swept, "parameter")
    roles |= {"sig": "sig", f"{CODEC}sig": "parameter", "state": "state"}
    roles |= dict.fromkeys(metrics, "metric") | dict.fromkeys(notes, "note") | dict.fromkeys(facts, "fact")
    return [
        replace(
            _column(name, runs[name].tolist(), metric_of(experiments, name), own_errors(runs, name), ranked),
            role=roles[name],
            shown=name not in facts,
        )
        for name in [*names, *metrics, *notes, *facts]
    ]


def _is_told(values: "pd.Series[Any]") -> bool:
    return bool(((values != "") & (values != 0) & values.notna()).any())


def codec_columns(
    experiments: Experiments, metrics: Sequence[str], seeds: str, *, unfinished: bool = False
) -> list[Column]:
    """Columns of the table of codecs: each one's parameters and metrics, and those of the runs on it over seeds."""
    table = codec_rows(experiments, seeds=[seeds], unfinished=unfinished)
    names = [*table.columns[: table.columns.get_loc("n")], "n", *metrics]
    columns = {str(name): table[name].tolist() for name in names}
    return [_column(name, items, metric_of(experiments, name)) for name, items in columns.items()]


def published_columns(experiments: Experiments) -> list[Column]:
    """Published numbers of the metrics that the runs have; empty without any."""
    table = published_table(experiments.metrics)
    columns = {str(name): table[name].tolist() for name in table.columns if len(table)}
    return [_column(name, items, metric_of(experiments, name)) for name, items in columns.items()]


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock has them."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _column(
    name: str,
    items: list[Any],
    metric: Metric,
    errors: list[float] | None = None,
    ranked: Sequence[bool] | None = None,  # rows that may be the best; None: all
) -> Column:
    numeric = all(map(is_numeric, items))
    texts = [clock_text(value) for value in items] if name == "duration" else format_column(items)
    judged = items if ranked is None else [item if fits else None for item, fits in zip(items, ranked, strict=True)]
    best = best_rows(judged, metric.direction, errors)
    cells = [_Cell(text, row in best) for row, text in enumerate(texts)]
    return Column(clean_text(name), metric, numeric, cells, [*map(number_of, items)] if numeric else None)


def _key(value: float) -> float | str | None:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@dataclass(frozen=True)
class _Comparison:
    """A metric of one condition against the baseline."""

    condition: list[str]  # values of the parameters
    metric: str  # `stage.metric`
    known: Metric  # its direction and unit
    cells: list[str]  # pairs, baseline, mean, difference, interval, effect, p, corrected p
    verdict: str  # better, worse, or empty if neither
    significant: bool  # whether the corrected p-value is below 0.05


def condition_columns(
    experiments: Experiments, by: Sequence[str], metrics: Sequence[str], *, unfinished: bool = False
) -> list[Column]:
    """One row per condition: its parameters, its runs that count, `mean ± std` of each metric, the best marked."""
    runs = counted(experiments.runs, unfinished=unfinished)
    codecs = counts_codecs(runs, by)
    summary = summarize(replicates(runs, by, metrics, codecs=codecs), by, metrics, interval="t")
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
        cells = [_Cell(text, row in best) for row, text in enumerate(texts)]
        columns.append(Column(clean_text(name), metric, True, cells))
    return columns


def compare_conditions(
    experiments: Experiments,
    by: Sequence[str],
    metrics: Sequence[str],
    baseline: Mapping[str, Any],
    seeds: str,
    *,
    unfinished: bool = False,
) -> tuple[list[_Comparison], list[str]]:
    """Each condition against the baseline, paired by seed, of codecs as in `joined.pairing`; lines about what was."""
    pair = None if counts_codecs(experiments.runs, by) else seeds
    options: dict[str, Any] = {"parameters": experiments.swept, "seeds": pair, "unfinished": unfinished}
    table, warnings, remarks = against_baseline(experiments.runs, by, metrics, baseline, **options)
    lines = [clean_text(line) for line in (*warnings, *remarks)]
    return [_comparison(experiments, by, row) for row in table.to_dict("records")], lines


def pooled_columns(
    experiments: Experiments, by: Sequence[str], metrics: Sequence[str], seeds: str, *, unfinished: bool = False
) -> tuple[list[Column], list[str]]:
    """Whether each parameter matters over the whole grid, and lines about what was compared.

    Returns:
        Columns, a row per parameter and metric; none where no two runs differ in one parameter alone.
    """
    if not by:
        return [], []
    options: dict[str, Any] = {"parameters": experiments.swept, "seeds": [seeds, CODEC_SEED], "unfinished": unfinished}
    table, _, remarks = over_design(experiments.runs, by, metrics, **options)
    if table.empty or not table["p"].notna().any():
        return [], []
    heads = {"levels": "values", "n": "codecs" if counts_codecs(experiments.runs, by) else "runs", "p_holm": "p, Holm"}
    texts = {name: [_text(name, value) for value in table[name]] for name in table.columns if name != "smallest_p"}
    columns = [
        _texts(heads.get(name, name), cells, name not in ("parameter", "metric")) for name, cells in texts.items()
    ]
    return columns, [clean_text(line) for line in remarks]


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
    return f"{value:.2f}" if name in ("effect", "explained") else format_value(value)


def _plain(name: str, items: list[Any]) -> Column:
    return _texts(name, format_column(items), all(map(is_numeric, items)))


def _texts(name: str, texts: list[str], numeric: bool = False) -> Column:
    return Column(clean_text(name), _NO_METRIC, numeric, [_Cell(text) for text in texts])


def _with_count(text: str, value: Any, runs: int) -> str:
    """The number of runs that have a value, where some have not."""
    return f"{text} (n = {value.n})" if isinstance(value, Estimate) and 0 < value.n < runs else text
