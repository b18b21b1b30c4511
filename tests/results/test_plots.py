"""Figures: what is drawn is what was measured, and every axis says what it shows."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread
from matplotlib.patches import Rectangle
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.results import Experiments, load_grid
from audiotok.results.plots import (
    codebook_usage,
    heatmap,
    information_matrix,
    intervals,
    learning_curves,
    metric_label,
    save_figure,
    tradeoff,
)
from tests.results.shapes import RELEASED, write_shape

GRID = "compression.encodec_mmd_demo"


@pytest.fixture
def experiments(root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]) -> Experiments:
    """Two weights, two codebook counts, two seeds, three epochs; the weight lowers mi and sisnr."""
    cases = itertools.product((0, 10), (2, 3), (1, 2))
    for index, (weight, n_q, seed) in enumerate(cases):
        pairs = {f"mi_q{i}_q{j}": 0.1 * (i + j) + index for i, j in itertools.combinations(range(n_q), 2)}
        evaluate = {"mi": 1 / (1 + weight) + seed / 100, "sisnr": 9 - weight / 5 + n_q, **pairs}
        evaluate |= {f"usage_q{q}": 1 - q / 10 for q in range(n_q)}
        history = [{"valid": {"msspec": 1 / epoch + seed / 10 + weight}} for epoch in (1, 2, 3)]
        history[-1] |= {"evaluate": evaluate}
        argv = [f"losses.mmd={weight}", f"rvq.n_q={n_q}", f"seed={seed}", "label=$x^2$_\\alpha"]
        make_experiment(f"0000000{index}", argv, history, status=done)
    return load_grid(GRID, root)


def texts(figure: Figure) -> str:
    axes = figure.axes[0]
    legend = axes.get_legend()
    named = [text.get_text() for text in legend.get_texts()] if legend else []
    return "\n".join([axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *named])


def test_learning_curves(experiments: Experiments) -> None:
    figure = learning_curves(experiments, "valid.msspec", ["losses.mmd"])
    axes = figure.axes[0]
    assert "mmd=0 (4 runs)" in texts(figure) and "mmd=10 (4 runs)" in texts(figure)
    assert "mean and range over seed" in texts(figure) and "↓ lower is better" in axes.get_ylabel()
    first, second = axes.get_lines()
    assert np.allclose(np.asarray(first.get_ydata(), float), [1.15, 0.65, 1 / 3 + 0.15])
    assert np.allclose(np.asarray(second.get_ydata(), float) - np.asarray(first.get_ydata(), float), 10)
    assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()
    band = next(child for child in axes.get_children() if isinstance(child, FillBetweenPolyCollection))
    heights = np.asarray(band.get_paths()[0].vertices, float)[:, 1]
    assert np.isclose(heights.min(), 1 / 3 + 0.1) and np.isclose(heights.max(), 1.2)
    assert len(learning_curves(experiments, "valid.msspec", []).axes[0].get_lines()) == 8  # a line a run


def test_heatmap(experiments: Experiments) -> None:
    axes = heatmap(experiments, "evaluate.sisnr", "losses.mmd", "rvq.n_q").axes[0]
    image = next(child for child in axes.get_children() if isinstance(child, AxesImage))
    assert np.allclose(np.asarray(image.get_array()), [[11, 12], [9, 10]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "10"]
    assert {text.get_text() for text in axes.texts} == {"11\n± 0", "12\n± 0", "9\n± 0", "10\n± 0"}


def test_tradeoff(experiments: Experiments) -> None:
    figure = tradeoff(experiments, "evaluate.mi", "evaluate.sisnr", ["losses.mmd"])
    axes = figure.axes[0]
    assert "evaluate.mi, bit (closer to 0 is better)" in texts(figure) and "dB (↑ higher is better)" in texts(figure)
    front = axes.get_lines()[0]
    assert np.allclose(np.asarray(front.get_ydata(), float), [9.5, 11.5])  # of the means of four runs, not of runs
    assert sum(len(np.asarray(points.get_offsets())) for points in axes.collections) >= 8
    assert "mmd=0 (4 runs)" in texts(figure) and "mmd=10 (4 runs)" in texts(figure)
    error: Any = next(one for one in axes.containers if one.get_label() == "mmd=0 (4 runs)")
    half = stats.t.interval(0.95, 3, 11.5, stats.sem([11, 11, 12, 12]))[1] - 11.5
    (_, _, (_, bars)) = error.lines
    assert np.allclose(np.ptp(bars.get_segments()[0], axis=0)[1], 2 * half)


def test_a_third_parameter_gets_panels_a_value_or_is_averaged_over_by_name(experiments: Experiments) -> None:
    swept = ["losses.mmd", "rvq.n_q", "seed"]
    assert list(experiments.swept) == swept
    with pytest.raises(ResultsError, match=r"rvq\.n_q, seed differ too.*mean_over"):
        heatmap(experiments, "evaluate.sisnr", "losses.mmd", "label", seeds=())
    figure = heatmap(experiments, "evaluate.sisnr", "losses.mmd", "seed", seeds=())
    assert [axes.get_title() for axes in figure.axes[:2]] == ["n_q=2", "n_q=3"]
    images = [child for axes in figure.axes[:2] for child in axes.get_children() if isinstance(child, AxesImage)]
    assert images[0].get_clim() == images[1].get_clim() == (9, 12)
    assert np.allclose(np.asarray(images[1].get_array()), [[12, 12], [10, 10]])
    held = heatmap(experiments, "evaluate.sisnr", "losses.mmd", "seed", seeds=(), at={"rvq.n_q": 3})
    assert "rvq.n_q=3" in title(held) and len(held.axes) == 2
    mean = heatmap(experiments, "evaluate.sisnr", "losses.mmd", "seed", seeds=(), mean_over=["rvq.n_q"])
    assert "over rvq.n_q" in title(mean)
    assert "over seed" in title(heatmap(experiments, "evaluate.sisnr", "losses.mmd", "rvq.n_q"))
    with pytest.raises(ResultsError, match=r"no run of .* has rvq\.n_q=5"):
        heatmap(experiments, "evaluate.sisnr", "losses.mmd", "seed", at={"rvq.n_q": 5})


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def test_better_is_bright_for_every_metric(experiments: Experiments) -> None:
    for metric, best in (("evaluate.sisnr", np.argmax), ("valid.msspec", np.argmin), ("evaluate.mi", np.argmin)):
        axes = heatmap(experiments, metric, "losses.mmd", "rvq.n_q").axes[0]
        image = next(child for child in axes.get_children() if isinstance(child, AxesImage))
        values = np.asarray(image.get_array(), float)
        shades = np.asarray(image.to_rgba(values))[..., :3].sum(axis=-1)
        assert np.argmax(shades) == best(values), metric


def test_forty_groups_are_drawn_the_best_in_colour(
    root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]
) -> None:
    for index, (weight, seed) in enumerate(itertools.product(range(40), (1, 2))):
        evaluate = {"mi_groups": 1 + abs(weight - 20) + seed / 100, "sisnr": weight, "usage_q0": 0.5, "usage_q1": 1.0}
        history = [{"valid": {"msspec": 50.0 - weight}}, {"valid": {"msspec": 40.0 - weight}, "evaluate": evaluate}]
        make_experiment(f"{index:08x}", [f"losses.mmd={weight}", f"seed={seed}"], history, status=done)
    grid = load_grid(GRID, root)
    curves = learning_curves(grid, "valid.msspec", ["losses.mmd"]).axes[0]
    assert len(curves.get_lines()) == 40
    assert "mmd=39 (2 runs)" in texts(curves.figure) and "28 others" in texts(curves.figure)  # type: ignore[arg-type]
    points = tradeoff(grid, "evaluate.mi_groups", "evaluate.sisnr")
    assert "28 others" in texts(points) and "mmd=39 (2 runs)" in texts(points)
    assert len(np.asarray(points.axes[0].get_lines()[0].get_xdata())) == 20  # from the weight with least to the best
    assert len(intervals(grid, ["evaluate.sisnr"], ["losses.mmd"]).axes[0].get_xticklabels()) == 40
    usage = codebook_usage(grid).axes[0]
    assert np.allclose(np.asarray(usage.get_lines()[-1].get_ydata(), float), [0.5, 1.0])
    assert "mean of 80 runs" in texts(usage.figure)  # type: ignore[arg-type]


def test_matrices_of_codebooks(experiments: Experiments) -> None:
    axes = information_matrix(experiments, "00000002").axes[0]  # n_q = 3
    image = next(child for child in axes.get_children() if isinstance(child, AxesImage))
    matrix = np.array(np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan), float)
    assert np.isnan(np.diag(matrix)).all() and np.allclose(matrix, matrix.T, equal_nan=True)
    assert np.isclose(matrix[1, 2], 0.1 * 3 + 2)
    bars = codebook_usage(experiments, ["00000000", "00000002"]).axes[0].patches
    heights = [bar.get_height() for bar in bars if isinstance(bar, Rectangle)]
    assert np.allclose(heights, [1, 0.9, np.nan, 1, 0.9, 0.8], equal_nan=True)  # no bar where there is no codebook


def test_files(experiments: Experiments, tmp_path: Path) -> None:
    figures = [learning_curves(experiments, "valid.msspec", ["label"]) for _ in range(2)]
    png, svg = save_figure(figures[0], tmp_path / "curves.of.mmd")
    assert (png.name, svg.name) == ("curves.of.mmd.png", "curves.of.mmd.svg")
    picture = imread(png)
    assert picture.shape[:2] == (704, 1120) and picture.std() > 0.05
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert png.read_bytes() == save_figure(figures[1], tmp_path / "again")[0].read_bytes()
    with pytest.raises(ResultsError, match="cannot write"):
        save_figure(figures[0], tmp_path / "no" / "figure")


def test_what_cannot_be_drawn(experiments: Experiments) -> None:
    with pytest.raises(ResultsError, match=r"no parameter rvq\.bins in .*losses\.mmd"):
        heatmap(experiments, "evaluate.mi", "losses.mmd", "rvq.bins")
    with pytest.raises(ResultsError, match=r"valid\.mssp"):
        learning_curves(experiments, "valid.mssp", [])
    with pytest.raises(ResultsError, match=r"no run 'ffffffff'"):
        information_matrix(experiments, "ffffffff")
    with pytest.raises(ResultsError, match=r"evaluate\.nmi_q"):
        information_matrix(experiments, "00000002", "nmi")


def test_labels() -> None:
    assert metric_label("evaluate.sisnr") == "evaluate.sisnr, dB (↑ higher is better)"
    assert metric_label("valid.adv") == "valid.adv"
    assert re.fullmatch(r"train\.own", metric_label("train.own"))


def test_a_value_that_is_held_may_be_null_or_a_list(tmp_path: Path) -> None:
    grid = load_grid(write_shape("main", tmp_path), tmp_path)
    rest = ["mmd.stream", "mmd.estimator", "mmd.num_features"]
    for value, cells in ((None, 8), (RELEASED, 2)):
        figure = heatmap(grid, "evaluate.sisdr", "losses.mmd", "rvq.n_q", at={"mmd.sigmas": value}, mean_over=rest)
        image = next(child for child in figure.axes[0].get_children() if isinstance(child, AxesImage))
        assert np.isfinite(np.asarray(image.get_array(), float)).sum() == cells
