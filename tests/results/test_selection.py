"""Which runs count, and what is said of it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from audiotok.results import load_grid
from audiotok.results.selection import counted, counted_line
from tests.results.shapes import sweep, truth, write_shape


def test_runs_that_have_not_completed_are_left_out_and_counted() -> None:
    runs = pd.DataFrame({"sig": list("abcd"), "state": ["COMPLETED", "RUNNING", "FAILED", "RUNNING"]})
    assert counted(runs)["sig"].tolist() == ["a"]
    assert counted(runs, unfinished=True)["sig"].tolist() == list("abcd")
    left_out = "1 of 4 runs completed and are counted; left out: 2 RUNNING, 1 FAILED; --unfinished counts them"
    assert counted_line(runs) == left_out
    every = "all 4 runs are counted, 3 of which have not completed: 2 RUNNING, 1 FAILED"
    assert counted_line(runs, unfinished=True) == every
    assert counted_line(counted(runs)) == counted_line(counted(runs), unfinished=True) == ""


def test_the_stored_sweep_has_the_states_and_the_truth_that_it_states(tmp_path: Path) -> None:
    runs = load_grid(sweep(tmp_path), tmp_path).runs
    states = runs["state"].value_counts().to_dict()
    assert states == {"COMPLETED": 362, "RUNNING": 14, "FAILED": 12, "DIVERGED": 9, "PENDING": 3}
    assert len(runs.columns[runs.columns.get_loc("sig") : runs.columns.get_loc("state")]) == 7
    done = counted(runs)
    names = ["losses.mmd", "rvq.n_q", "mmd.stream", "optim.lr", "rvq.bins"]
    rows: list[Any] = done[names].to_dict("records")
    wanted = [truth(row)["mi_groups"] for row in rows]
    assert (done["evaluate.mi_groups"] - wanted).abs().mean() < 0.02


@pytest.mark.parametrize(("name", "runs", "seeds"), [("main", 40, 2), ("demo", 8, 4), ("mmd_on_off_demo", 6, 3)])
def test_the_stored_grids_have_their_shapes(name: str, runs: int, seeds: int, tmp_path: Path) -> None:
    grids = {frozen: write_shape(name, tmp_path / str(frozen), frozen=frozen) for frozen in (False, True)}
    found = {frozen: load_grid(grid, tmp_path / str(frozen)).runs for frozen, grid in grids.items()}
    for table in found.values():
        assert (len(table), table["seed"].nunique(), set(table["state"])) == (runs, seeds, {"COMPLETED"})
    if name == "main":
        baseline = {frozen: table[table["losses.mmd"] == 0]["mmd.sigmas"] for frozen, table in found.items()}
        assert baseline[False].isna().all() and set(baseline[True]) == {"median"}
