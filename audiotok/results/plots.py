"""Figures of a grid: learning curves, heatmap, trade-off with its Pareto front, codebooks of one run.

Each function gives a matplotlib `Figure`, which shows itself in a notebook; `save_figure` writes it as PNG and SVG.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiotok.errors import ResultsError
from audiotok.results.drawing import (
    MARKERS,
    add_legend,
    draw_matrix,
    few,
    metric_label,
    new_figure,
    plain_text,
    short_text,
    styles,
)
from audiotok.results.frame import Experiments
from audiotok.results.selection import metric_values, pareto_front
from audiotok.results.statistics import summarize


def learning_curves(experiments: Experiments, metric: str, by: Sequence[str], *, seeds: str = "seed") -> Figure:
    """A metric over epochs: a line for the mean of each group of runs, a band from its lowest to its highest run.

    Args:
        experiments: the runs.
        metric: `stage.metric`.
        by: parameters that make a group; empty for one line a run.
        seeds: parameter that is averaged over; named in the title.

    Raises:
        ResultsError: if no run has the metric, a parameter does not exist, or there are more than 12 groups.
    """
    metric_values(experiments, metric)  # refuses an unknown one
    stage, _, column = metric.partition(".")
    curves = experiments.read_history([stage], [column])[["sig", "epoch", column]].dropna().astype({"sig": str})
    curves = curves.merge(experiments.runs[["sig", *_known(experiments, by)]].astype({"sig": str}), on="sig")
    figure, axes = new_figure(f"{metric} of {experiments.name}", "epoch", metric_label(metric))
    groups = list(curves.groupby(list(by or ["sig"]), sort=False, dropna=False))
    for (group, rows), style in zip(few(groups), styles(), strict=False):
        spread = rows.groupby("epoch")[column].agg(["mean", "min", "max"])
        runs = rows["sig"].nunique()
        axes.plot(spread.index, spread["mean"], label=_name(by or ["sig"], group, runs), **style)
        if runs > 1:
            axes.fill_between(spread.index, spread["min"], spread["max"], color=style["color"], alpha=0.18, linewidth=0)
    if by:
        axes.set_title(f"{metric} of {experiments.name}\nmean and range over {seeds}")
    add_legend(axes)
    return figure


def heatmap(experiments: Experiments, metric: str, rows: str, columns: str, *, best_by: str | None = None) -> Figure:
    """Mean of a metric over runs, for each pair of two parameters, with its standard deviation below.

    Args:
        experiments: the runs.
        metric: `stage.metric`.
        rows: parameter down the side.
        columns: parameter along the bottom.
        best_by: as in `metric_values`.

    Raises:
        ResultsError: if no run has the metric or a parameter does not exist.
    """
    runs = experiments.runs.assign(**{metric: metric_values(experiments, metric, best_by=best_by).to_numpy()})
    summary = summarize(runs, _known(experiments, [rows, columns]), [metric])
    ticks = [list(dict.fromkeys(summary[name])) for name in (rows, columns)]
    means, spreads = (np.full([len(names) for names in ticks], np.nan) for _ in range(2))
    for record in summary.to_dict("records"):
        where = ticks[0].index(record[rows]), ticks[1].index(record[columns])
        means[where], spreads[where] = record["mean"], record["std"]
    figure, axes = new_figure(f"{metric} of {experiments.name}", columns, rows)
    draw_matrix(figure, axes, means, metric_label(metric), spreads=spreads)
    axes.set_xticks(range(len(ticks[1])), [short_text(value) for value in ticks[1]], rotation=30, ha="right")
    axes.set_yticks(range(len(ticks[0])), [short_text(value) for value in ticks[0]])
    return figure


def tradeoff(experiments: Experiments, x: str, y: str, by: Sequence[str] = (), *, best_by: str | None = None) -> Figure:
    """One point a run, such as dependence against quality; a line joins those that no other run beats in both.

    Args:
        experiments: the runs.
        x: `stage.metric`.
        y: `stage.metric`.
        by: parameters that give a point its colour and marker.
        best_by: as in `metric_values`.

    Raises:
        ResultsError: if no run has a metric, it has no better direction, or a parameter does not exist.
    """
    points = experiments.runs[["sig", *_known(experiments, by)]].copy()
    points[x], points[y] = (metric_values(experiments, name, best_by=best_by).to_numpy() for name in (x, y))
    points = points.replace([np.inf, -np.inf], np.nan).dropna(subset=[x, y])
    figure, axes = new_figure(f"{y} against {x}\n{experiments.name}", metric_label(x), metric_label(y))
    front = points[pareto_front(points, x, y)].sort_values([x, y])
    axes.plot(front[x], front[y], color="#666666", linewidth=1.2, zorder=1, label="Pareto front")
    groups = list(points.groupby(list(by), sort=False, dropna=False)) if by else [("all runs", points)]
    for (group, members), style, marker in zip(few(groups), styles(), itertools.cycle(MARKERS), strict=False):
        label = _name(by, group, len(members)) if by else f"runs ({len(members)})"
        axes.scatter(members[x], members[y], label=label, color=style["color"], marker=marker, edgecolors="white", s=55)
    add_legend(axes)
    return figure


def information_matrix(experiments: Experiments, sig: str, metric: str = "mi") -> Figure:
    """Mutual information between each two codebooks of one run, from its last evaluation.

    Args:
        experiments: the runs.
        sig: one of them.
        metric: measured by pairs, such as `mi`, `nmi`, `mi_groups`.

    Raises:
        ResultsError: if there is no such run, or it has not measured this by pairs.
    """
    run = _run(experiments, sig)
    prefix = f"evaluate.{metric}_q"
    pairs = {name: run[name] for name in run.index if name.startswith(prefix) and pd.notna(run[name])}
    cells = {tuple(int(part) for part in name.removeprefix(prefix).split("_q")): value for name, value in pairs.items()}
    if not cells:
        raise ResultsError(f"{sig} has no {prefix}I_qJ; it has not been evaluated, or metrics.dependence.pairs is off.")
    size = 1 + max(map(max, cells))
    matrix = np.full((size, size), np.nan)
    for (i, j), value in cells.items():
        matrix[i, j] = matrix[j, i] = value
    figure, axes = new_figure(f"{metric} between the codebooks of {sig}", "codebook", "codebook")
    draw_matrix(figure, axes, matrix, metric_label(f"evaluate.{metric}"))
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    return figure


def codebook_usage(experiments: Experiments, sigs: Sequence[str] | None = None) -> Figure:
    """Share of the codes in use in each codebook, from the last evaluation.

    Args:
        experiments: the runs.
        sigs: runs to show; default all, of which there may be 12.

    Raises:
        ResultsError: if there is no such run, there are too many, or none has been evaluated.
    """
    runs = [_run(experiments, sig) for sig in (experiments.runs["sig"] if sigs is None else sigs)]
    prefix = "evaluate.usage_q"
    found = [name for name in experiments.metrics if name.startswith(prefix)]
    names = sorted(found, key=lambda name: int(name.removeprefix(prefix)))
    if not names:
        raise ResultsError(f"no run of {experiments.name} has {prefix}0; evaluate them first (evaluate.every).")
    figure, axes = new_figure(f"codebook usage of {experiments.name}", "codebook", metric_label("evaluate.usage"))
    width = 0.8 / max(1, len(runs))
    for index, (run, style) in enumerate(zip(few(runs), styles(), strict=False)):
        places = np.arange(len(names)) + (index - (len(runs) - 1) / 2) * width
        hatch = ("", "//", "\\\\", "..", "xx")[index % 5]
        values = run[names].astype(float)
        axes.bar(places, values, width, label=run["sig"], color=style["color"], hatch=hatch, edgecolor="white")
    axes.set_xticks(range(len(names)), [name.removeprefix(prefix) for name in names])
    axes.set_ylim(0, 1.02)
    add_legend(axes)
    return figure


def _known(experiments: Experiments, names: Sequence[str]) -> list[str]:
    missing = [name for name in names if name not in experiments.parameters]
    if missing:
        known = ", ".join(experiments.parameters)
        raise ResultsError(f"no parameter {', '.join(missing)} in {experiments.name}; there are: {known}.")
    return list(names)


def _run(experiments: Experiments, sig: str) -> "pd.Series[Any]":
    rows = experiments.runs[experiments.runs["sig"] == sig]
    if rows.empty:
        raise ResultsError(f"no run {sig!r} in {experiments.name}; there are: {', '.join(experiments.runs['sig'])}.")
    return rows.iloc[0]


def _name(by: Sequence[str], group: Any, runs: int) -> str:
    values = group if isinstance(group, tuple) and len(by) == len(group) else (group,)
    text = ", ".join(f"{name.rpartition('.')[2]}={short_text(value)}" for name, value in zip(by, values, strict=True))
    return plain_text(text if runs == 1 else f"{text} ({runs} runs)")
