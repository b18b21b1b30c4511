"""Figures of a grid: learning curves, heatmap, trade-off with its Pareto front, intervals, codebooks of one run.

Each function returns a matplotlib `Figure`, which shows itself in a notebook, and raises `ResultsError` for a metric, a
parameter or a run that the grid has not. Runs that have not completed are left out by default. Readable in print and by
colour-blind readers: the colours of Okabe and Ito (2008) always come with another line style, marker or hatch, but for
the grey of groups beyond MAX_GROUPS; maps are cividis.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audiotok.errors import ResultsError
from audiotok.results.experiments import Experiments
from audiotok.results.joined import counts_codecs, replicates
from audiotok.results.metrics import CODEC, known_metric, metric_values, pareto_front, require_metric
from audiotok.results.statistics import summarize
from audiotok.results.tables import format_value, short_names
from audiotok.text import clean_text

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*"
MAX_GROUPS = 12
_PLACE = re.compile(r"[0-9]{1,2}")  # of a codebook; no codec has a hundred, and a plot would not show them
_PAIR = re.compile(r"([0-9]{1,2})_q([0-9]{1,2})")
_BETTER = {
    "higher": " (↑ higher is better)",
    "lower": " (↓ lower is better)",
    "near_zero": " (closer to 0 is better)",
    "neutral": "",
}


def learning_curves(
    experiments: Experiments, metric: str, by: Sequence[str], *, seeds: str = "seed", unfinished: bool = False
) -> Figure:
    """A metric over epochs: a line for the mean of each group of runs, a band from its lowest to its highest run.

    Of more than MAX_GROUPS groups those that end best have a colour, and the others are grey.

    Args:
        experiments: the runs.
        metric: `stage.metric`.
        by: parameters that make a group; empty for one line a run.
        seeds: parameter that is averaged over; named in the title.
        unfinished: whether runs that have not completed count.
    """
    require_metric(experiments, metric)
    experiments, name = _counted(experiments, unfinished)
    if metric.startswith(CODEC):
        raise ResultsError(f"{metric} is of the codecs that {experiments.name} builds on, measured once: no curve.")
    stage, _, column = metric.partition(".")
    curves = experiments.read_history([stage], [column])[["sig", "epoch", column]].dropna().astype({"sig": str})
    curves = curves.merge(experiments.runs[["sig", *_known(experiments, by)]].astype({"sig": str}), on="sig")
    figure, axes = _new_figure(f"{metric} of {name}", "epoch", metric_label(metric))
    groups = list(curves.groupby(list(by or ["sig"]), sort=False, dropna=False))
    if len(groups) > MAX_GROUPS:
        groups = _best_first(groups, column, metric)
    for place, ((group, rows), style) in enumerate(zip(groups, _styles(len(groups)), strict=False)):
        spread = rows.groupby("epoch")[column].agg(["mean", "min", "max"])
        runs = rows["sig"].nunique()
        label = _name(by or ["sig"], group, runs) if place < MAX_GROUPS else _others(len(groups), place)
        axes.plot(spread.index, spread["mean"], label=label, **style)
        if runs > 1 and place < MAX_GROUPS:
            axes.fill_between(spread.index, spread["min"], spread["max"], color=style["color"], alpha=0.18, linewidth=0)
    if by:
        axes.set_title(_plain_text(f"{metric} of {name}\nmean and range over {seeds}"))
    _add_legend(axes)
    return figure


def heatmap(
    experiments: Experiments,
    metric: str,
    rows: str,
    columns: str,
    *,
    best_by: str | None = None,
    unfinished: bool = False,
) -> Figure:
    """Mean and standard deviation of a metric over runs, for each pair of values of two parameters.

    Args:
        experiments: the runs.
        metric: `stage.metric`.
        rows: parameter down the side.
        columns: parameter along the bottom.
        best_by: as in `metric_values`.
        unfinished: whether runs that have not completed count.
    """
    experiments, name = _counted(experiments, unfinished)
    runs = experiments.runs.assign(**{metric: metric_values(experiments, metric, best_by=best_by).to_numpy()})
    by = _known(experiments, [rows, columns])
    summary = summarize(replicates(runs, by, [metric], codecs=counts_codecs(runs, by)), by, [metric])
    ticks = [list(dict.fromkeys(summary[parameter])) for parameter in (rows, columns)]
    means, spreads = (np.full([len(names) for names in ticks], np.nan) for _ in range(2))
    for record in summary.to_dict("records"):
        where = ticks[0].index(record[rows]), ticks[1].index(record[columns])
        means[where], spreads[where] = record["mean"], record["std"]
    figure, axes = _new_figure(f"{metric} of {name}", columns, rows)
    _draw_matrix(figure, axes, means, metric_label(metric), spreads=spreads)
    labels = [[_plain_text(format_value(value)) for value in values] for values in ticks]
    axes.set_xticks(range(len(ticks[1])), labels[1], rotation=30, ha="right")
    axes.set_yticks(range(len(ticks[0])), labels[0])
    return figure


def tradeoff(
    experiments: Experiments,
    x: str,
    y: str,
    by: Sequence[str] = (),
    *,
    best_by: str | None = None,
    unfinished: bool = False,
) -> Figure:
    """One point a run, such as dependence against quality, and the Pareto front; of runs on several codecs one a codec.

    Args:
        experiments: the runs.
        x: `stage.metric` with a better direction.
        y: likewise.
        by: parameters that give a point its colour and marker; groups beyond the first MAX_GROUPS are grey.
        best_by: as in `metric_values`.
        unfinished: whether runs that have not completed count.
    """
    experiments, title = _counted(experiments, unfinished)
    values = {name: metric_values(experiments, name, best_by=best_by).to_numpy() for name in (x, y)}
    _known(experiments, by)
    codecs = counts_codecs(experiments.runs, [])
    points = experiments.runs.assign(**values)
    if codecs:
        points = replicates(points, by, [x, y], codecs=True)
    points = points.replace([np.inf, -np.inf], np.nan).dropna(subset=[x, y])
    figure, axes = _new_figure(f"{y} against {x}\n{title}", metric_label(x), metric_label(y))
    front = points[pareto_front(points, x, y)].sort_values([x, y])
    axes.plot(front[x], front[y], color="#666666", linewidth=1.2, zorder=1, label="Pareto front")
    groups = list(points.groupby(list(by), sort=False, dropna=False)) if by else [("all runs", points)]
    for place, ((group, members), style) in enumerate(zip(groups, _styles(len(groups)), strict=False)):
        things = "codecs" if codecs else "runs"
        label = _name(by, group, len(members), things) if by else f"{things} ({len(members)})"
        label = label if place < MAX_GROUPS else _others(len(groups), place)
        look = {"color": style["color"], "marker": style["marker"], "edgecolors": "white", "s": 55}
        axes.scatter(members[x], members[y], label=label, **look)
    _add_legend(axes)
    return figure


def intervals(
    experiments: Experiments, metrics: Sequence[str], by: Sequence[str], *, unfinished: bool = False
) -> Figure:
    """Mean and 95 % interval (Student's) of metrics of one unit for each condition, a point where there is no interval.

    Args:
        experiments: the runs; of runs on several codecs a codec counts once (`joined.replicates`).
        metrics: `stage.metric` names, which share an axis.
        by: parameters that make a condition.
        unfinished: whether runs that have not completed count.
    """
    for metric in metrics:
        require_metric(experiments, metric)
    experiments, name = _counted(experiments, unfinished)
    runs = experiments.runs
    codecs = counts_codecs(runs, _known(experiments, by))
    summary = summarize(replicates(runs, by, metrics, codecs=codecs), by, metrics, interval="t")
    what = " and ".join(metrics)
    figure, axes = _new_figure(f"{what}\n{name}, mean and 95 % interval", "", metric_label(metrics[0]))
    labels = list[str]()
    for place, (metric, style) in enumerate(zip(metrics, _styles(), strict=False)):
        rows = summary[summary["metric"] == metric]
        _check_count(list(rows.index))
        low, mean, high = (rows[column].to_numpy(float) for column in ("low", "mean", "high"))
        sizes = np.nan_to_num(np.stack([mean - low, high - mean]))
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none", "capsize": 4}
        shift = (place - (len(metrics) - 1) / 2) * 0.2
        axes.errorbar(np.arange(len(rows)) + shift, mean, yerr=sizes, label=metric, **look)
        things = "codecs" if codecs else "runs"
        groups = rows[[*by, "n"]].itertuples(index=False)
        labels = [_name(by, tuple(group)[:-1], group[-1], things).replace(", ", "\n") for group in groups]
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(x=0.2)
    if len(metrics) > 1:
        _add_legend(axes)
        axes.set_ylabel(_plain_text(metric_label(metrics[0]).replace(metrics[0], "", 1).strip(", ")))
    return figure


def information_matrix(experiments: Experiments, sig: str, metric: str = "mi") -> Figure:
    """A metric of pairs of codebooks, such as `mi`, `nmi`, `mi_groups`, from the last evaluation of one run."""
    run = _run(experiments, sig)
    prefix = f"evaluate.{metric}_q"
    pairs = {name: run[name] for name in run.index if name.startswith(prefix) and pd.notna(run[name])}
    places = {name: _PAIR.fullmatch(name.removeprefix(prefix)) for name in pairs}
    cells = {(int(found[1]), int(found[2])): pairs[name] for name, found in places.items() if found}
    if not cells:
        raise ResultsError(f"{sig} has no {prefix}I_qJ; it has not been evaluated, or metrics.dependence.pairs is off.")
    size = 1 + max(map(max, cells))
    matrix = np.full((size, size), np.nan)
    for (i, j), value in cells.items():
        matrix[i, j] = matrix[j, i] = value
    figure, axes = _new_figure(f"{metric} between the codebooks of {sig}", "codebook", "codebook")
    _draw_matrix(figure, axes, matrix, metric_label(f"evaluate.{metric}"))
    axes.set(xticks=range(size), yticks=range(size))
    return figure


def codebook_usage(experiments: Experiments, sigs: Sequence[str] | None = None) -> Figure:
    """Share of the codes in use in each codebook, from the last evaluation of some runs, by default all."""
    runs = [_run(experiments, sig) for sig in (experiments.runs["sig"] if sigs is None else sigs)]
    prefix = "evaluate.usage_q"
    found = [name for name in experiments.metrics if _PLACE.fullmatch(name.removeprefix(prefix))]
    names = sorted(found, key=lambda name: int(name.removeprefix(prefix)))
    if not names:
        raise ResultsError(f"no run of {experiments.name} has {prefix}0; evaluate them first (evaluate.every).")
    figure, axes = _new_figure(f"codebook usage of {experiments.name}", "codebook", metric_label("evaluate.usage"))
    width = 0.8 / max(1, len(runs))
    for index, (run, style) in enumerate(zip(_check_count(runs), _styles(), strict=False)):
        places = np.arange(len(names)) + (index - (len(runs) - 1) / 2) * width
        hatch = ("", "//", "\\\\", "..", "xx")[index % 5]
        values = run[names].astype(float)
        axes.bar(places, values, width, label=run["sig"], color=style["color"], hatch=hatch, edgecolor="white")
    axes.set_xticks(range(len(names)), [name.removeprefix(prefix) for name in names])
    axes.set_ylim(0, 1.02)
    _add_legend(axes)
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


def _name(by: Sequence[str], group: Any, runs: int, things: str = "runs") -> str:
    values = group if isinstance(group, tuple) and len(by) == len(group) else (group,)
    pairs = zip(short_names(by).values(), map(format_value, values), strict=True)
    text = ", ".join(f"{name}={value}" for name, value in pairs)
    return _plain_text(text if runs == 1 else f"{text} ({runs} {things})")


def metric_label(name: str) -> str:
    """Axis label of a `stage.metric`: its name, unit and direction."""
    metric = known_metric(name)
    if metric is None:
        return name
    unit, better = metric.unit and f", {metric.unit}", _BETTER[metric.direction]
    return f"{name}{unit}{better}"


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as `path`.png and `path`.svg, the same bytes for the same data, and return both."""
    files = [Path(path).with_name(f"{Path(path).name}.{kind}") for kind in ("png", "svg")]
    try:
        for file in files:
            metadata: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, dpi=160, metadata=metadata)
    except OSError as error:
        raise ResultsError(f"cannot write {files[0].parent}: {error.strerror or error}.") from error
    return files


def _new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Figure of one panel, its title and the labels of its axes."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=_plain_text(title), xlabel=_plain_text(x), ylabel=_plain_text(y))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_matrix(figure: Figure, axes: Axes, values: Any, label: str, spreads: Any = None) -> None:
    """Draw a matrix with its numbers; text is black on light and white on dark cells."""
    shown = axes.imshow(values, cmap="cividis", aspect="auto")
    figure.colorbar(shown, ax=axes, label=_plain_text(label))
    colours = np.asarray(colormaps["cividis"](np.asarray(shown.norm(np.nan_to_num(values)))))
    shades = colours[..., :3] @ np.array([0.299, 0.587, 0.114])
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            spread = spreads[i, j] if spreads is not None else np.nan
            text = f"{value:.3g}" if not np.isfinite(spread) else f"{value:.3g}\n± {spread:.2g}"
            axes.text(j, i, text, ha="center", va="center", color="black" if shades[i, j] > 0.5 else "white")
    axes.spines[:].set_visible(False)


def _styles(groups: int = MAX_GROUPS) -> Iterator[dict[str, Any]]:
    """Line styles, of which no two within a legend differ by colour alone; grey after the first MAX_GROUPS of more."""
    pairs = zip(itertools.cycle(_COLOURS), itertools.cycle(_LINES), itertools.cycle(_MARKERS), strict=False)
    own = ({"color": c, "linestyle": line, "marker": m, "markersize": 3.5, "linewidth": 1.6} for c, line, m in pairs)
    if groups <= MAX_GROUPS:
        return own
    grey = {"color": "#BBBBBB", "linestyle": "-", "marker": ".", "markersize": 2.0, "linewidth": 0.8, "zorder": 0.5}
    return itertools.chain(itertools.islice(own, MAX_GROUPS), itertools.repeat(grey))


def _others(groups: int, place: int) -> str:
    """Label in the legend of the first group that is grey; one with `_` has none."""
    return f"{groups - MAX_GROUPS} others" if place == MAX_GROUPS else "_"


def _best_first(groups: list[tuple[Any, pd.DataFrame]], column: str, metric: str) -> list[tuple[Any, pd.DataFrame]]:
    """Groups of curves by the mean of their last values, the best first; as they are if the metric has no direction."""
    known = known_metric(metric)
    if known is None or known.direction == "neutral":
        return groups
    ends = [rows.sort_values("epoch").groupby("sig")[column].last().mean() for _, rows in groups]
    scores = {"higher": -np.array(ends), "lower": np.array(ends)}.get(known.direction, np.abs(ends))
    return [groups[place] for place in np.argsort(scores, kind="stable")]


def _counted(experiments: Experiments, unfinished: bool) -> tuple[Experiments, str]:
    """The runs that count, and the name of the grid with their number where some do not."""
    found = experiments.counted(unfinished=unfinished)
    left_out = len(found.runs) < len(experiments.runs)
    return found, experiments.name + f" ({len(found.runs)} of {len(experiments.runs)} runs)" * left_out


def _add_legend(axes: Axes) -> None:
    """Legend, or a word in the empty panel where nothing was drawn."""
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 4:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif handles:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", transform=axes.transAxes)


def _check_count(groups: Sequence[Any]) -> Sequence[Any]:
    """The groups, if one figure can show so many."""
    if len(groups) > MAX_GROUPS:
        raise ResultsError(f"{len(groups)} groups do not fit one figure, {MAX_GROUPS} do; group by fewer parameters.")
    return groups


def _plain_text(text: str) -> str:
    """Text from files, with line breaks kept and without matplotlib's `$` mathematics."""
    return "\n".join(clean_text(line) for line in text.split("\n")).replace("$", r"\$")
