"""What all figures share: axes with titles and units, colours that need not be seen, numbers written into maps.

Readable in print and by colour-blind readers: the colours of Okabe and Ito (2008) always come with another line style,
marker or hatch; maps are cividis.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audiotok.errors import ResultsError
from audiotok.results.cells import clean_text, format_value
from audiotok.results.metrics import METRICS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"
MAX_GROUPS = 12
DPI = 160
_BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better", "neutral": ""}


def metric_label(name: str) -> str:
    """Axis label of a `stage.metric`: its name, unit and direction."""
    metric = METRICS.get(name.rpartition(".")[2])
    parts = [name if metric is None or not metric.unit else f"{name}, {metric.unit}"]
    if metric is not None and _BETTER[metric.direction]:
        parts.append(f"({_BETTER[metric.direction]})")
    return " ".join(parts)


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as `path`.png and `path`.svg, the same bytes for the same data.

    Returns:
        The files.

    Raises:
        ResultsError: if they cannot be written.
    """
    files = [Path(path).with_name(f"{Path(path).name}.{kind}") for kind in ("png", "svg")]
    try:
        for file in files:
            metadata: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, dpi=DPI, metadata=metadata)
    except OSError as error:
        raise ResultsError(f"cannot write {files[0].parent}: {error.strerror or error}.") from error
    return files


def new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Figure of one panel, its title and the labels of its axes."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plain_text(title))
    axes.set_xlabel(plain_text(x))
    axes.set_ylabel(plain_text(y))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_matrix(figure: Figure, axes: Axes, values: Any, label: str, spreads: Any = None) -> None:
    """Draw a matrix with its numbers; text is black on light and white on dark cells."""
    shown = axes.imshow(values, cmap="cividis", aspect="auto")
    figure.colorbar(shown, ax=axes, label=plain_text(label))
    colours = np.asarray(colormaps["cividis"](np.asarray(shown.norm(np.nan_to_num(values)))))
    shades = colours[..., :3] @ np.array([0.299, 0.587, 0.114])
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            spread = spreads[i, j] if spreads is not None else np.nan
            text = f"{value:.3g}" if not np.isfinite(spread) else f"{value:.3g}\n± {spread:.2g}"
            axes.text(j, i, text, ha="center", va="center", color="black" if shades[i, j] > 0.5 else "white")
    axes.spines[:].set_visible(False)


def styles() -> Iterator[dict[str, Any]]:
    """Endless line styles; no two within a legend differ by colour alone."""
    pairs = zip(itertools.cycle(COLOURS), itertools.cycle(LINES), itertools.cycle(MARKERS), strict=False)
    return ({"color": c, "linestyle": line, "marker": m, "markersize": 3.5, "linewidth": 1.6} for c, line, m in pairs)


def add_legend(axes: Axes) -> None:
    """Legend, or a word in the empty panel where nothing was drawn."""
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 4:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif handles:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", transform=axes.transAxes)


def few(groups: Sequence[Any]) -> Sequence[Any]:
    """The groups, if a reader can tell so many apart.

    Raises:
        ResultsError: if there are more than MAX_GROUPS.
    """
    if len(groups) > MAX_GROUPS:
        raise ResultsError(f"{len(groups)} groups do not fit one figure, {MAX_GROUPS} do; group by fewer parameters.")
    return groups


def short_text(value: Any) -> str:
    """A parameter in a few characters."""
    return plain_text(format_value(value))


def plain_text(text: str) -> str:
    """Text from files, with line breaks kept and without matplotlib's `$` mathematics."""
    return "\n".join(clean_text(line) for line in text.split("\n")).replace("$", r"\$")
