"""Plots of a grid as files, each in the colours of a light and of a dark page."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audiotok.errors import ResultsError
from audiotok.report.charts import curve
from audiotok.results.experiments import Experiments
from audiotok.results.metrics import known_metric
from audiotok.results.plots import (
    MAX_GROUPS,
    codebook_usage,
    heatmap,
    information_matrix,
    intervals,
    learning_curves,
    tradeoff,
)
from audiotok.text import clean_text

_DEPENDENCE = ("evaluate.gap", "evaluate.mi_groups", "evaluate.mi", "evaluate.mmd", "valid.mmd", "train.mmd")
_QUALITY = (
    "codec.evaluate.visqol", "codec.evaluate.sisdr",
    "evaluate.visqol", "evaluate.sisdr", "evaluate.mel_distance", "evaluate.sisnr", "evaluate.mel", "valid.sisnr",
    "valid.msspec", "train.msspec",
)  # fmt: skip
_GAP, _LIKELIHOODS = ("evaluate.gap",), ("evaluate.bits_parallel", "evaluate.bits_chain")
_SCALES = (1.0, 1.5, 3.0)
"""Small, so that the words can be read on a phone; larger ones for labels that would leave no room to draw in."""
_SIZE_INCHES = (5.0, 3.4)
_LEGEND_INCHES = 0.19  # a row
_PX_PER_INCH = 96
_WIDE_LABEL = 30
_MAX_CURVES = 6
_MAX_HEATMAPS = 4

_INK, _PAPER = "#1c1e22", "#fefefe"  # found nowhere else in the file, so that they can be replaced
_SETTINGS: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), _PAPER),
    "svg.hashsalt": "audiotok",  # the same data gives the same bytes
    "font.size": 10.0,
    "axes.titlesize": 10.5,
}
_DARK = {_INK: "#d9dce1", _PAPER: "#1b1e23", "stroke: #000000": "stroke: #d9dce1", "#0072b2": "#4a9fe0"}


@dataclass(frozen=True)
class Plot:
    """A plot, or why there is none."""

    title: str  # what it shows
    light: str = ""  # file for a light page, relative to the report
    dark: str = ""  # file for a dark page
    width: int = 0  # px of a page
    height: int = 0  # px of a page
    note: str = ""  # why it could not be drawn; empty if it was


def _draw(folder: Path, name: str, title: str, make: Callable[[], Figure]) -> Plot:
    """Draw one plot into `folder`/plots; data that do not allow it make a note."""
    try:
        with rc_context(_SETTINGS):
            figure = _for_page(make())
            text = _svg(figure)
    except ResultsError as error:
        return Plot(clean_text(title), note=clean_text(str(error)))
    (folder / "plots").mkdir(exist_ok=True)
    files = [f"plots/{name}.svg", f"plots/{name}.dark.svg"]
    (folder / files[0]).write_text(text, encoding="utf-8")
    for light, dark in _DARK.items():
        text = text.replace(light, dark)
    (folder / files[1]).write_text(text, encoding="utf-8")
    width, height = (round(inches * _PX_PER_INCH) for inches in figure.get_size_inches())
    return Plot(clean_text(title), files[0], files[1], width, height)


def grid_plots(
    experiments: Experiments, folder: Path, by: Sequence[str], metrics: Sequence[str], seeds: str
) -> list[Plot]:
    """Plots of the whole grid: dependence against quality, heatmaps, learning curves, usage of the codebooks.

    Of language models also the gap of each condition, and beside it both likelihoods that it is the difference of.
    """
    plots = []
    pair = [next((name for name in _first(metrics, names) if name in experiments.metrics), "") for names in _AXES]
    if all(pair):
        x, y = pair
        plots.append(_draw(folder, "tradeoff", f"{y} against {x}", partial(tradeoff, experiments, x, y, by)))
    for name, likelihoods in (("gap", _GAP), ("likelihoods", _LIKELIHOODS)):
        if by and all(metric in experiments.metrics for metric in likelihoods):
            title = f"{' and '.join(likelihoods)}, mean and 95 % interval"
            plots.append(_draw(folder, name, title, partial(intervals, experiments, likelihoods, by)))
    if len(by) >= 2:
        evaluated = [name for name in metrics if name.startswith("evaluate.") and _directed(name)]
        for index, name in enumerate((evaluated or list(metrics))[:_MAX_HEATMAPS]):
            title = f"{name} over {by[0]} and {by[1]}, mean ± standard deviation"
            plots.append(_draw(folder, f"heatmap{index}", title, partial(heatmap, experiments, name, by[0], by[1])))
    for index, name in enumerate(curve_metrics(experiments, metrics)[:_MAX_CURVES]):
        make = partial(learning_curves, experiments, name, by, seeds=seeds)
        plots.append(
            _draw(
                folder, f"curve{index}", f"{name} over epochs" + (f", mean and range over {seeds}" if by else ""), make
            )
        )
    if "evaluate.usage_q0" in experiments.metrics:
        used = experiments.runs[experiments.runs["evaluate.usage_q0"].notna()]["sig"].tolist()
        title = "codebook usage" + (f", the first {MAX_GROUPS} runs" if len(used) > MAX_GROUPS else "")
        plots.append(_draw(folder, "usage", title, partial(codebook_usage, experiments, used[:MAX_GROUPS])))
    return plots


def matrix_plot(experiments: Experiments, folder: Path, sig: str) -> Plot:
    """Mutual information between each two codebooks of a run."""
    title = f"Mutual information between the codebooks of {sig}"
    return _draw(folder, f"matrix-{sig}", title, partial(information_matrix, experiments, sig))


def curve_metrics(experiments: Experiments, metrics: Sequence[str]) -> list[str]:
    """Metrics of which some run has finite values of more than one epoch."""
    return [name for name in metrics if curve(experiments, name)["sig"].duplicated().any()]


_AXES = (_DEPENDENCE, _QUALITY)


def _for_page(figure: Figure) -> Figure:
    """Leave the title to the page, and put the legend below, where it hides nothing and leaves the panel its width."""
    width, height = _SIZE_INCHES
    handles: list[Any] = []
    labels: list[str] = []
    for axes in figure.axes:
        axes.set_title("")
        if axes.get_xlabel() == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
            handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > _WIDE_LABEL else 2
        figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize="small", ncols=columns)
        height += _LEGEND_INCHES * -(-len(labels) // columns)
    figure.set_size_inches(width, height)
    return figure


def _svg(figure: Figure) -> str:
    """Text of a figure in the first size that has room for its labels."""
    size = figure.get_size_inches()
    for scale in _SCALES:
        buffer = io.StringIO()
        figure.set_size_inches(*(size * scale))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        if not any("collapsed" in str(warning.message) for warning in caught):
            break
    return buffer.getvalue()


def _first(chosen: Sequence[str], names: Sequence[str]) -> list[str]:
    return [*(name for name in names if name in chosen), *names]


def _directed(name: str) -> bool:
    metric = known_metric(name)
    return metric is not None and metric.direction != "neutral"
