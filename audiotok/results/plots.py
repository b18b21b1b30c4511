"""Figures of a grid: learning curves, heatmap, trade-off with the front of its means, intervals, codebooks.

Each function returns a matplotlib `Figure`, which shows itself in a notebook, and raises `ResultsError` for a metric, a
parameter or a run that the grid has not. Runs that have not completed are left out, by default. Of more than MAX_GROUPS
groups the best have a colour and the others are grey. Readable in print and by colour-blind readers: the colours of
Okabe and Ito (2008) always come with another line style, marker or hatch; maps are cividis, whose bright end is better.
"""

import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audiotok.errors import ResultsError
from audiotok.results.codecs import CODEC_SEED
from audiotok.results.experiments import Experiments
from audiotok.results.joined import counts_codecs, replicates
from audiotok.results.metrics import (
    CODEC,
    Direction,
    known_metric,
    metric_in,
    metric_values,
    not_compared,
    pareto_front,
    require_metric,
)
from audiotok.results.statistics import summarize
from audiotok.results.tables import condition_text, format_value, short_names
from audiotok.text import clean_text

Floats = np.ndarray[Any, np.dtype[np.float64]]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*"
MAX_GROUPS = 12  # that have a colour
MAX_PANELS = 6
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
    figure, axes = _new_figure(f"{metric} of {name}", "epoch", metric_label(metric, experiments.runs))
    groups = list(curves.groupby(list(by or ["sig"]), sort=False, dropna=False))
    if len(groups) > MAX_GROUPS:
        groups = _best_first(groups, column, _direction(experiments.runs, metric))
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
    at: Mapping[str, Any] | None = None,
    mean_over: Sequence[str] = (),
    seeds: Sequence[str] = ("seed", CODEC_SEED),
    best_by: str | None = None,
    unfinished: bool = False,
) -> Figure:
    """Mean and standard deviation of a metric over seeds, for each pair of values of two parameters.

    A third parameter that differs makes a panel for each of its values. The title names what the mean is over.

    Args:
        experiments: the runs.
        metric: `stage.metric`.
        rows: parameter down the side.
        columns: parameter along the bottom.
        at: values of other parameters, of the runs that are shown.
        mean_over: other parameters to average over.
        seeds: parameters that are averaged over without being named.
        best_by: as in `metric_values`.
        unfinished: whether runs that have not completed count.

    Raises:
        ResultsError: also if more parameters differ than panels can show, and neither `at` nor `mean_over` names them.
    """
    experiments, name = _counted(experiments, unfinished)
    runs = experiments.runs.assign(**{metric: metric_values(experiments, metric, best_by=best_by).to_numpy()})
    _known(experiments, [rows, columns, *mean_over])
    for parameter, value in (at or {}).items():
        texts = runs[_known(experiments, [parameter])[0]].map(format_value)
        runs = runs[texts == format_value(value)]  # null and lists, too
    if runs.empty:
        raise ResultsError(f"no run of {name} has {_values_text(at or {})}.")
    panels = _panels(runs, [one for one in experiments.swept if one not in (rows, columns, *mean_over, *seeds)])
    by = [*panels, rows, columns]
    summary = summarize(replicates(runs, by, [metric], codecs=counts_codecs(runs, by)), by, [metric])
    over = " and ".join([*(one for one in seeds if one in experiments.swept), *mean_over]) or "nothing: one run a cell"
    fixed = f", {_values_text(at)}" if at else ""
    title = f"{metric} of {name}\nmean ± standard deviation over {over}{fixed}"
    label, direction = metric_label(metric, runs), _direction(runs, metric)
    return _draw_panels(summary, label, direction, rows, columns, panels, title)


def _panels(runs: pd.DataFrame, others: Sequence[str]) -> list[str]:
    """The one parameter of `others` that differs, if panels can show its values; none if none differs."""
    differ = [name for name in others if runs[name].nunique(dropna=False) > 1]
    if not differ or (len(differ) == 1 and runs[differ[0]].nunique(dropna=False) <= MAX_PANELS):
        return differ
    raise ResultsError(
        f"{', '.join(differ)} differ too, and a heatmap would hide it: give values with at={{'{differ[0]}': ...}}, or "
        f"average with mean_over={differ}, until at most one with {MAX_PANELS} values is left, which gets panels."
    )


def _draw_panels(
    summary: pd.DataFrame,
    label: str,
    direction: Direction,
    rows: str,
    columns: str,
    panels: Sequence[str],
    title: str,
) -> Figure:
    """A matrix for each value of `panels`, all on one scale."""
    ticks = [list(dict.fromkeys(summary[parameter].map(format_value))) for parameter in (rows, columns)]
    groups = list(summary.groupby(list(panels), sort=False, dropna=False)) if panels else [((), summary)]
    figure = Figure(figsize=(max(7.0, 4.0 * len(groups)), 4.4), layout="constrained")
    figure.suptitle(_plain_text(title), fontsize="medium")
    limits = summary["mean"].min(), summary["mean"].max()
    several = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, (group, members) in zip(several, groups, strict=True):
        means, spreads = (np.full([len(names) for names in ticks], np.nan) for _ in range(2))
        for record in members.to_dict("records"):
            where = ticks[0].index(format_value(record[rows])), ticks[1].index(format_value(record[columns]))
            means[where], spreads[where] = record["mean"], record["std"]
        last = axes is several[-1]
        _draw_matrix(figure, axes, means, label, direction, spreads=spreads, limits=limits, bar=last)
        axes.set_xticks(range(len(ticks[1])), map(_plain_text, ticks[1]), rotation=30, ha="right")
        axes.set_yticks(range(len(ticks[0])), map(_plain_text, ticks[0]))
        axes.set_xlabel(_plain_text(columns))
        if panels:
            axes.set_title(_name(panels, group, 1), fontsize="medium")
    several[0].set_ylabel(_plain_text(rows))
    return figure


def _values_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={format_value(value)}" for name, value in values.items())


def tradeoff(
    experiments: Experiments,
    x: str,
    y: str,
    by: Sequence[str] = (),
    *,
    seeds: Sequence[str] = ("seed", CODEC_SEED),
    best_by: str | None = None,
    unfinished: bool = False,
) -> Figure:
    """Two metrics, such as dependence and quality: a small point a run, the mean and 95 % interval of each condition.

    The front is of means, for one of single runs is of luck: conditions that no other beats in both metrics. Where any
    condition has several runs, those with one are not on it; where values do not compare, there is none. Of runs on
    several codecs a point is a codec.

    Args:
        experiments: the runs.
        x: `stage.metric` with a better direction.
        y: likewise.
        by: parameters that make a condition; empty: those that differ, without `seeds`. Of many, those on the front
            have a colour.
        seeds: parameters that are averaged over.
        best_by: as in `metric_values`.
        unfinished: whether runs that have not completed count.
    """
    experiments, title = _counted(experiments, unfinished)
    runs = experiments.runs
    by = _known(experiments, by) or [name for name in experiments.swept if name not in seeds]
    values = {name: metric_values(experiments, name, best_by=best_by).to_numpy() for name in (x, y)}
    codecs = counts_codecs(runs, by)
    points = replicates(runs.assign(**values), by, [x, y], codecs=codecs)
    points = points.replace([np.inf, -np.inf], np.nan).dropna(subset=[x, y])
    means = _means(points, by, x, y)
    figure, axes = _new_figure(
        f"{y} against {x}\n{title}, means and 95 % intervals", metric_label(x, runs), metric_label(y, runs)
    )
    repeated = means["n"].max() > 1 if len(means) else False
    candidates = means[means["n"] > 1] if repeated else means
    apart = not_compared(runs, x) or not_compared(runs, y)
    front = candidates.iloc[:0] if apart else candidates[pareto_front(candidates, x, y)].sort_values([x, y])
    line = "no front: values that do not compare" if apart else "front of the means"
    axes.plot(front[x], front[y], color="#666666", linewidth=1.2, zorder=1, label=line)
    some = np.unique(
        np.linspace(0, len(front) - 1, min(len(front), MAX_GROUPS)).round().astype(int)
    )  # of the whole front
    coloured = list(means.index if len(means) <= MAX_GROUPS else front.index[some])
    looks = dict(zip(coloured, _styles(), strict=False))
    if len(means) > len(coloured):
        rest = points[~points["group"].isin(coloured)]
        axes.scatter(rest[x], rest[y], color="#BBBBBB", s=10, zorder=0.5, label=f"{len(means) - len(coloured)} others")
    things = "codecs" if codecs else "runs"
    for place, style in looks.items():
        row: Any = means.loc[place]
        members = points[points["group"] == place]
        look = {"color": style["color"], "marker": style["marker"]}
        axes.scatter(members[x], members[y], s=14, alpha=0.5, linewidths=0, **look)
        sizes = {f"{axis}err": np.nan_to_num([[row[f"{name}.half"]]]) for axis, name in (("x", x), ("y", y))}
        label = _name(by, tuple(row[name] for name in by), int(row["n"]), things) if by else "all runs"
        axes.errorbar(row[x], row[y], **sizes, label=label, linestyle="none", markersize=8, elinewidth=0.8, **look)
    axes.set(**{f"{axis}lim": _around(points[name]) for axis, name in (("x", x), ("y", y)) if len(points)})
    _add_legend(axes)
    return figure


def _means(points: pd.DataFrame, by: Sequence[str], x: str, y: str) -> pd.DataFrame:
    """Mean of two metrics in each condition, half their intervals, and n; `points` get the number of theirs."""
    points["group"] = points.groupby(list(by), sort=False, dropna=False).ngroup() if by else 0
    rows = summarize(points, ["group"], [x, y], interval="t").set_index("group")
    parts = [rows[rows["metric"] == name] for name in (x, y)]
    means = pd.DataFrame({name: part["mean"] for name, part in zip((x, y), parts, strict=True)})
    for name, part in zip((x, y), parts, strict=True):
        means[f"{name}.half"] = part["high"] - part["mean"]
    firsts = points.drop_duplicates("group").set_index("group")
    return means.assign(n=parts[0]["n"], **{name: firsts[name] for name in by})


def _around(values: "pd.Series[Any]") -> tuple[float, float]:
    """Limits of an axis: a little more than the runs, for intervals of two runs would leave them no room."""
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or max(abs(high), 1.0) / 2
    return low - margin, high + margin


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
    figure, axes = _new_figure(f"{what}\n{name}, mean and 95 % interval", "", metric_label(metrics[0], runs))
    labels = list[str]()
    for place, (metric, style) in enumerate(zip(metrics, _styles(), strict=False)):
        rows = summary[summary["metric"] == metric]
        if len(rows) > MAX_GROUPS:
            figure.set_size_inches(min(40, 0.35 * len(rows) + 3), 6.0)
        low, mean, high = (rows[column].to_numpy(float) for column in ("low", "mean", "high"))
        sizes = np.nan_to_num(np.stack([mean - low, high - mean]))
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none", "capsize": 4}
        shift = (place - (len(metrics) - 1) / 2) * 0.2
        axes.errorbar(np.arange(len(rows)) + shift, mean, yerr=sizes, label=metric, **look)
        things = "codecs" if codecs else "runs"
        groups = rows[[*by, "n"]].itertuples(index=False)
        labels = [_name(by, tuple(group)[:-1], group[-1], things).replace(", ", "\n") for group in groups]
    many = len(labels) > MAX_GROUPS
    axes.set_xticks(range(len(labels)), labels, rotation=90 if many else 0, fontsize="x-small" if many else None)
    axes.margins(x=0.02 if many else 0.2)
    if len(metrics) > 1:
        _add_legend(axes)
        axes.set_ylabel(_plain_text(metric_label(metrics[0], runs).replace(metrics[0], "", 1).strip(", ")))
    return figure


def information_matrix(experiments: Experiments, sig: str, metric: str = "mi") -> Figure:
    """A metric of pairs of codebooks, such as `mi`, `nmi`, `mi_groups`, from the last evaluation of one run."""
    matrix = pair_matrix(experiments, sig, metric)
    figure, axes = _new_figure(f"{metric} between the codebooks of {sig}", "codebook", "codebook")
    known = known_metric(f"evaluate.{metric}")
    _draw_matrix(figure, axes, matrix, metric_label(f"evaluate.{metric}"), known.direction if known else "neutral")
    axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
    return figure


def pair_matrix(experiments: Experiments, sig: str, metric: str = "mi") -> Floats:
    """Values [K, K] of a metric of pairs of codebooks from the last evaluation of one run; NaN where not measured.

    Raises:
        ResultsError: if there is no such run, or it has no such values.
    """
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
    return matrix


def codebook_usage(experiments: Experiments, sigs: Sequence[str] | None = None, *, unfinished: bool = False) -> Figure:
    """Share of the codes in use in each codebook, from the last evaluation of some runs, by default all that count."""
    name = experiments.name
    if sigs is None:
        experiments, name = _counted(experiments, unfinished)
    runs = [_run(experiments, sig) for sig in (experiments.runs["sig"] if sigs is None else sigs)]
    prefix = "evaluate.usage_q"
    found = [name for name in experiments.metrics if _PLACE.fullmatch(name.removeprefix(prefix))]
    names = sorted(found, key=lambda name: int(name.removeprefix(prefix)))
    if not names:
        raise ResultsError(f"no run of {experiments.name} has {prefix}0; evaluate them first (evaluate.every).")
    figure, axes = _new_figure(f"codebook usage of {name}", "codebook", metric_label("evaluate.usage"))
    if len(runs) > MAX_GROUPS:
        every = np.array([run[names].to_numpy(float) for run in runs])
        axes.plot(range(len(names)), every.T, color="#BBBBBB", linewidth=0.8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a codebook that no run has
            mean = np.nanmean(every, axis=0)
        axes.plot(
            range(len(names)), mean, color=_COLOURS[0], marker="o", label=f"mean of {len(runs)} runs, each in grey"
        )
        runs = []
    width = 0.8 / max(1, len(runs))
    for index, (run, style) in enumerate(zip(runs, _styles(), strict=False)):
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
    text = condition_text(list(short_names(by).values()), values)
    return _plain_text(text if runs == 1 else f"{text} ({runs} {things})")


def metric_label(name: str, runs: pd.DataFrame | None = None) -> str:
    """Axis label of a `stage.metric`: its name, unit and direction, which it lacks where runs do not compare."""
    metric = known_metric(name) if runs is None else metric_in(runs, name)
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


def _draw_matrix(
    figure: Figure,
    axes: Axes,
    values: Floats,
    label: str,
    direction: Direction,
    *,
    spreads: Floats | None = None,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> None:
    """Draw a matrix with its numbers, the better the brighter; text is black on light and white on dark cells."""
    near = direction == "near_zero"
    drawn = np.abs(values) if near else values
    ends = np.array(limits if limits is not None else (np.nanmin(values), np.nanmax(values)))
    ends = np.array([0.0, np.abs(ends).max()]) if near else ends
    name = "cividis_r" if direction in ("lower", "near_zero") else "cividis"
    shown = axes.imshow(drawn, cmap=name, aspect="auto", vmin=ends[0], vmax=ends[1])
    if bar:
        figure.colorbar(shown, ax=axes, label=_plain_text(f"distance from 0: {label}" if near else label))
    colours = np.asarray(colormaps[name](np.asarray(shown.norm(np.nan_to_num(drawn)))))
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


def _direction(runs: pd.DataFrame, metric: str) -> Direction:
    """Which way a metric is better among these runs."""
    known = metric_in(runs, metric)
    return "neutral" if known is None else known.direction


def _best_first(
    groups: list[tuple[Any, pd.DataFrame]], column: str, direction: Direction
) -> list[tuple[Any, pd.DataFrame]]:
    """Groups of curves by the mean of their last values, the best first; as they are if the metric has no direction."""
    if direction == "neutral":
        return groups
    ends = [rows.sort_values("epoch").groupby("sig")[column].last().mean() for _, rows in groups]
    scores = {"higher": -np.array(ends), "lower": np.array(ends)}.get(direction, np.abs(ends))
    return [groups[place] for place in np.argsort(scores, kind="stable")]


def _counted(experiments: Experiments, unfinished: bool) -> tuple[Experiments, str]:
    """The runs that count, and the name of the grid with their number where some have not completed."""
    found = experiments.counted(unfinished=unfinished)
    every, done = len(experiments.runs), len(experiments.counted().runs)
    count = f" (all {every} runs, {every - done} not completed)" if unfinished else f" ({done} of {every} runs)"
    return found, experiments.name + count * (done < every)


def _add_legend(axes: Axes) -> None:
    """Legend, or a word in the empty panel where nothing was drawn."""
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 4:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif handles:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", transform=axes.transAxes)


def _plain_text(text: str) -> str:
    """Text from files, with line breaks kept and without matplotlib's `$` mathematics."""
    return "\n".join(clean_text(line) for line in text.split("\n")).replace("$", r"\$")
