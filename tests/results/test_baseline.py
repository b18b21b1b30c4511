"""The baseline of each condition in factorial sweeps as they are run: null values, parameters that a baseline lacks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from audiotok.errors import ResultsError
from audiotok.results import load_grid
from audiotok.results.baseline import in_blocks, match, unmatched_lines
from audiotok.results.statistics import compare
from tests.results.shapes import truth, write_shape

BY = ["losses.mmd", "rvq.n_q", "mmd.stream", "mmd.sigmas"]
MI = "evaluate.mi_groups"


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA])
def test_a_condition_has_the_baseline_of_its_own_codebooks(missing: object) -> None:
    conditions = [(0, 4, missing, missing), (0, 8, missing, missing), (1, 8, "code", (1.0, 2.0)), (1, 4, missing, 5)]
    found = match(conditions, BY, {"losses.mmd": 0})
    assert (found.baselines, found.of, found.without) == ((0, 1), {2: 1, 3: 0}, {})


def test_settings_of_a_loss_that_the_baseline_does_not_have_do_not_count_though_it_has_a_default() -> None:
    conditions = [(0.0, 4, "code", "median"), (1.0, 4, "residual", (1.0,))]
    assert match(conditions, BY, {"losses.mmd": 0}).of == {1: 0}
    assert match(conditions, ["losses.mmd", "rvq.n_q", "rvq.bins", "lr"], {"losses.mmd": 0}).of == {}
    codec = [f"codec.{name}" for name in BY]
    assert match(conditions, codec, {"codec.losses.mmd": 0.0}).of == {1: 0}


def test_a_condition_without_a_baseline_is_listed() -> None:
    conditions = [(0, 4, "code", "median"), (1, 4, "code", "median"), (1, 8, "code", "median")]
    found = match(conditions, BY, {"losses.mmd": 0})
    assert (found.of, list(found.without)) == ({1: 0}, [2])
    assert found.without[2] == "the baselines are: losses.mmd=0, rvq.n_q=4, mmd.stream=code, mmd.sigmas=median"
    runs = pd.DataFrame(conditions, columns=BY)
    (line,) = unmatched_lines(runs, BY, {"losses.mmd": 0})
    assert line.startswith("no baseline of losses.mmd=1, rvq.n_q=8, mmd.stream=code, mmd.sigmas=median; the baselines")
    table = compare(runs.assign(seed=1, mi=[3.0, 2.0, 1.0]), BY, ["mi"], {"losses.mmd": 0})
    assert table[["n", "difference"]].values.tolist()[0] == [1, -1] and table["n"].tolist() == [1, 0]
    assert table.loc[1, ["baseline", "mean", "difference", "p"]].isna().all()


def test_a_placebo_is_a_baseline_with_its_settings() -> None:
    """A weight that is small is not 0: its stream counts, unless it is named."""
    conditions = [(1e-6, 4, "code", "median"), (1, 4, "code", "median"), (1, 4, "residual", "median")]
    assert list(match(conditions, BY, {"losses.mmd": 1e-6}).without) == [2]
    assert match(conditions, BY, {"losses.mmd": 1e-6, "mmd.stream": "code"}).of == {1: 0, 2: 0}


def test_of_several_baselines_the_nearest_counts_and_none_of_two_equally_near() -> None:
    conditions = [(0, 4, "code", 1), (0, 4, "residual", 1), (1, 4, "residual", 2), (1, 4, "input", 1)]
    found = match(conditions, BY, {"losses.mmd": 0})
    assert found.of == {2: 1}
    assert found.without[3].startswith("several baselines fit: losses.mmd=0, rvq.n_q=4, mmd.stream=code")


def test_a_missing_value_can_be_the_baseline() -> None:
    found = match([(None,), (512.0,), (math.nan,)], ["mmd.num_features"], {"mmd.num_features": None})
    assert (found.baselines, found.of) == ((0, 2), {}) and list(found.without) == [1]


def test_where_nothing_counts_yet_nothing_is_compared() -> None:
    assert match([], BY, {"losses.mmd": 0}) == ((), {}, {})


@pytest.mark.parametrize("baseline", [{}, {"seed": 1}, {"losses.mmd": 7}])
def test_what_is_no_baseline_is_refused(baseline: dict[str, object]) -> None:
    with pytest.raises(ResultsError, match=r"baseline names|no runs with losses\.mmd=7 .* there are: los"):
        match([(0, 4, None, None)], BY, baseline)


@pytest.mark.parametrize("frozen", [False, True])
def test_every_condition_of_the_main_sweep_has_its_baseline(frozen: bool, tmp_path: Path) -> None:
    grid = load_grid(write_shape("main", tmp_path, frozen=frozen), tmp_path)
    by = [name for name in grid.swept if name != "seed"]
    table = compare(grid.runs, by, [MI], {"losses.mmd": 0})
    assert len(table) == 18 and (table["n"] == 2).all()
    for row in table.to_dict("records"):
        condition = {name: row[name] for name in by}
        expected = truth(condition)["mi_groups"] - truth({"losses.mmd": 0, "rvq.n_q": row["rvq.n_q"]})["mi_groups"]
        assert row["difference"] == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("frozen", [False, True])
def test_few_parameters_are_compared_in_blocks_of_seed_and_codebooks(frozen: bool, tmp_path: Path) -> None:
    grid = load_grid(write_shape("main", tmp_path, frozen=frozen), tmp_path)
    runs, baseline = grid.runs, {"losses.mmd": 0}
    rows, pair = in_blocks(runs, ["losses.mmd"], [MI], baseline, parameters=grid.swept, pair="seed")
    table: Any = compare(rows, ["losses.mmd"], [MI], baseline, pair=pair).set_index("losses.mmd")
    assert table["n"].tolist() == [4, 4, 4]
    means = runs.groupby(["losses.mmd", "rvq.n_q", "seed"])[MI].mean()  # independent of the pairing by texts
    differences = means.loc[0.5] - means.loc[0.0]
    assert table.loc[0.5, "difference"] == pytest.approx(differences.mean())
    assert table.loc[0.5, "effect"] == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_runs_that_differ_in_the_seed_alone_are_paired_by_it(tmp_path: Path) -> None:
    grid = load_grid(write_shape("demo", tmp_path), tmp_path)
    rows, pair = in_blocks(grid.runs, ["losses.mmd"], [MI], {"losses.mmd": 0.0}, parameters=grid.swept, pair="seed")
    assert rows is grid.runs and pair == "seed"
    assert np.isfinite(compare(rows, ["losses.mmd"], [MI], {"losses.mmd": 0.0})["p"]).all()
