"""Small learning curves of one run against those that count, as coordinates for SVG inside the page.

Thousands of pages need them, so no plotting library draws them; colours are the page's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from audiotok.results.experiments import Experiments
from audiotok.results.plots import metric_label
from audiotok.results.selection import counted
from audiotok.text import clean_text

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Chart:
    """One chart; coordinates in a box of WIDTH × HEIGHT."""

    title: str  # metric with unit, and with its direction where the runs' values compare
    line: str  # points of this run
    dots: list[tuple[float, float]]  # the same points, where there are too few for a line to be seen
    band: str  # outline of the range of the runs that count
    x_ticks: list[tuple[float, str]]  # place and text
    y_ticks: list[tuple[float, str]]  # place and text


def curve(experiments: Experiments, name: str) -> pd.DataFrame:
    """Finite values of a `stage.metric`: rows of sig, epoch and value, in the order of `Experiments.history`."""
    history = experiments.history
    for stage in history["stage"].cat.categories:  # the name of a stage may have dots, too
        metric = name.removeprefix(f"{stage}.")
        column = f"metric.{metric}" if metric in ("sig", "stage", "epoch") else metric
        if metric != name and column in history:
            found = (history["stage"] == stage) & np.isfinite(history[column])
            rows: pd.DataFrame = history.loc[found, ["sig", "epoch", column]]
            rows.columns = pd.Index(["sig", "epoch", "value"])
            return rows
    return pd.DataFrame({"sig": [], "epoch": [], "value": []})


class RunCharts:
    """Charts of some metrics; what all runs share is worked out once."""

    def __init__(self, experiments: Experiments, metrics: Sequence[str], *, unfinished: bool = False) -> None:
        runs = counted(experiments.runs, unfinished=unfinished)
        count = set(runs["sig"])
        self._curves: dict[str, Mapping[str, Floats]] = {}
        self._ranges: dict[str, Floats] = {}
        self._titles = {name: clean_text(metric_label(name, runs)) for name in metrics}
        for name in metrics:
            rows = curve(experiments, name).sort_values("epoch")
            spread = rows[rows["sig"].isin(count)].groupby("epoch")["value"].agg(["min", "max"]).reset_index()
            self._ranges[name] = spread.to_numpy(np.float64)
            groups = rows.groupby("sig", observed=True)
            self._curves[name] = {str(sig): group[["epoch", "value"]].to_numpy(np.float64) for sig, group in groups}

    def of(self, sig: str) -> list[_Chart]:
        """Charts of one run: those of the metrics that it has measured."""
        found = [(name, curves[sig]) for name, curves in self._curves.items() if sig in curves]
        return [_chart(self._titles[name], points, self._ranges[name]) for name, points in found]


def _chart(title: str, points: Floats, spread: Floats) -> _Chart:
    epochs, lows, highs = spread[:, 0], spread[:, 1], spread[:, 2]
    xs, ys = np.concatenate([epochs, points[:, 0]]), np.concatenate([lows, highs, points[:, 1]])
    x_range, y_range = _padded(xs.min(), xs.max(), 0.0), _padded(ys.min(), ys.max(), 0.04)

    def x(values: Floats) -> Floats:
        return LEFT + (values - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)

    def y(values: Floats) -> Floats:
        return HEIGHT - BOTTOM - (values - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)

    around = np.concatenate([np.stack([x(epochs), y(highs)], 1), np.stack([x(epochs), y(lows)], 1)[::-1]])
    mine = np.stack([x(points[:, 0]), y(points[:, 1])], 1)
    return _Chart(
        title,
        _points(mine),
        [(round(float(a), 1), round(float(b), 1)) for a, b in mine] if len(mine) <= 30 else [],
        _points(around),
        _ticks(x_range, x, integer=True),
        _ticks(y_range, y, integer=False),
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    size = high - low if high > low else max(abs(high), 1.0)
    return (low - share * size, high + share * size) if high > low else (low - size / 2, high + size / 2)


def _ticks(ends: tuple[float, float], place: Any, *, integer: bool) -> list[tuple[float, str]]:
    ticks = MaxNLocator(4, integer=integer).tick_values(*ends)
    shown = np.array([tick for tick in ticks if ends[0] <= tick <= ends[1]])
    decimals = next((n for n in range(7) if np.allclose(shown, np.round(shown, n), rtol=0, atol=1e-9)), None)
    texts = [f"{tick:.3g}" if decimals is None or abs(tick) >= 1e5 else f"{tick:.{decimals}f}" for tick in shown]
    return [(round(float(at), 1), text.replace("-", "−")) for at, text in zip(place(shown), texts, strict=True)]


def _points(places: Floats) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
