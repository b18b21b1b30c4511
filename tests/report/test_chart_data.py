"""What the charts draw: held against the statistics of the library and the stored histories."""

import json
from pathlib import Path

import numpy as np
import pytest

from audiotok.report.chart_data import chart_data
from audiotok.results import load_grid
from audiotok.results.selection import counted
from audiotok.results.statistics import summarize
from tests.report.conftest import FAILED, add_run
from tests.results.shapes import write_shape

BY = ["losses.mmd", "rvq.n_q", "mmd.stream", "optim.lr", "rvq.bins"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep")
    write_shape("sweep400", path)
    return path


def test_means_are_those_of_the_statistics_and_runs_those_that_count(root: Path) -> None:
    grid = load_grid("sweep400", root)
    charts = chart_data(grid, BY, ["evaluate.sisdr"], ["seed"], unfinished=False)
    assert charts is not None and json.dumps(charts, allow_nan=False)
    runs = counted(grid.runs)
    assert charts["runs"] == runs["sig"].tolist() and len(charts["runs"]) == 362
    metric = next(one for one in charts["metrics"] if one["name"] == "evaluate.sisdr")
    expected = summarize(runs, BY, ["evaluate.sisdr"], interval="t")
    assert metric["n"] == expected["n"].tolist()
    for name in ("mean", "low", "high"):
        found = np.array([np.nan if value is None else value for value in metric[name]])
        assert np.allclose(found, expected[name], rtol=1e-4, equal_nan=True)
    assert len(charts["conditions"]) == len(expected) and charts["conditions"][0].startswith("mmd=0, n_q=4")
    every = chart_data(grid, BY, ["evaluate.sisdr"], ["seed"], unfinished=True)
    assert every is not None and len(every["runs"]) == 400


def test_parameters_have_their_values_in_order(root: Path) -> None:
    charts = chart_data(load_grid("sweep400", root), BY, ["evaluate.sisdr"], ["seed"], unfinished=False)
    assert charts is not None
    levels = {one["name"]: one["levels"] for one in charts["parameters"]}
    assert levels["rvq.n_q"] == ["4", "8"] and levels["losses.mmd"] == ["0", "0.1", "0.5", "1", "2"]
    assert "seed" not in levels


def test_long_curves_are_thinned_to_the_last_value_of_each_part(tmp_path: Path) -> None:
    for index in range(2):
        history = [{"valid": {"msspec": 1000.0 - epoch + index}} for epoch in range(1, 501)]
        add_run(tmp_path, "long", f"0000000{index}", [f"seed={index}"], history, state="COMPLETED")
    add_run(tmp_path, "long", "0000000f", ["seed=9"], [{"valid": {"msspec": 1.0}}], **FAILED)
    charts = chart_data(load_grid("long", tmp_path), [], ["valid.msspec"], ["seed"], unfinished=False)
    assert charts is not None
    (curve,) = charts["curves"]
    assert len(curve["x"]) == 60 and (curve["x"][0], curve["x"][-1]) == (1, 500)
    assert np.allclose(curve["values"][0], 1000 - np.array(curve["x"])) and len(curve["values"]) == 2


def test_nothing_that_counts_gives_no_charts(tmp_path: Path) -> None:
    add_run(tmp_path, "g", "00000001", ["seed=1"], [{"valid": {"msspec": 1.0}}], **FAILED)
    grid = load_grid("g", tmp_path)
    assert chart_data(grid, [], ["valid.msspec"], ["seed"], unfinished=False) is None
    assert chart_data(grid, [], ["valid.msspec"], ["seed"], unfinished=True) is not None
