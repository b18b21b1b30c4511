"""Conditions as text over runs, and the order of rows: held against pandas and Python's own operators."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audiotok.errors import ResultsError
from audiotok.results.experiments import load_named
from audiotok.results.query import is_value, ordered, where
from audiotok.results.tables import Estimate, format_table
from tests.results.shapes import write_shape

RUNS = pd.DataFrame(
    {
        "sig": ["00000012", "0a", "0b", "0c"],
        "losses.mmd": [0.0, 0.5, 10.0, math.nan],
        "rvq.n_q": [4, 8, 4, 8],
        "mmd.sigmas": [None, "median", (1.0, 5.0), (1.0, 5.0)],
        "state": ["COMPLETED", "RUNNING", "COMPLETED", "FAILED"],
        "evaluate.sisdr": [1.0, 3.0, math.nan, 2.0],
        "evaluate.mi": [0.3, 0.1, 0.2, math.inf],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("losses.mmd>0 and state==COMPLETED", "2"),
        ("losses.mmd>0", "12"),
        ("not losses.mmd>0", "03"),
        ("losses.mmd<=0.5 or rvq.n_q = 8", "013"),
        ("state==COMPLETED and rvq.n_q==8 or losses.mmd==0", "0"),
        ("state==COMPLETED and (rvq.n_q==8 or losses.mmd==0)", "0"),
        ("rvq.n_q==8 or losses.mmd==0 and state==COMPLETED", "013"),
        ("losses.mmd==null", "3"),
        ("losses.mmd!=null AND losses.mmd!=0", "12"),
        ("mmd.sigmas==[1, 5]", "23"),
        ("mmd.sigmas==null or mmd.sigmas=='median'", "01"),
        ("losses.mmd in [0, 10]", "02"),
        ('state in ["RUNNING", FAILED]', "13"),
        ("sig==00000012", "0"),
        ("evaluate.mi > 1e3", "3"),
        ("losses.mmd > -1", "012"),
        ("'rvq.n_q'>=8", "13"),
    ],
)
def test_rows_for_which_a_condition_holds(text: str, rows: str) -> None:
    assert np.flatnonzero(where(RUNS, text)).tolist() == [int(row) for row in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a column expected, the end found"),
        ("losses.mmd", "==, !=, <, <=, >, >= or in expected, the end found"),
        ("losses.mmd>0 and", "the name of a column expected"),
        ("losses.mmd>0 state==x", "and, or, or the end expected, 'state' found"),
        ("(losses.mmd>0", r"and, or, or \) expected"),
        ("losses.mdm>0", "no column losses.mdm; there are: losses.mmd"),
        ("losses.mmd>many", "a number expected after >"),
        ("state>3", "state has no numbers"),
        ("losses.mmd in 3", r"a list such as \[4, 8\] expected"),
        ("losses.mmd in [3", r", or \] expected"),
        ("sig=='", "cannot read"),
        ("__import__('os').system('id')", "no column __import__"),
        ("not " * 60 + "losses.mmd>0", "more than 50"),
        ("(" * 2000, "cannot read"),
    ],
)
def test_what_is_no_condition_is_named(text: str, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        where(RUNS, text)


def test_text_of_a_condition_is_data(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with pytest.raises(ResultsError):
        where(RUNS, f"sig==[].__class__ or open({str(path)!r}, 'w')")
    assert not where(RUNS, f"sig==\"open('{path}', 'w')\"").any() and not path.exists()


def test_values_as_a_person_types_them() -> None:
    assert is_value(0.0, "0") and is_value(1e-6, "1e-06") and is_value(True, "true") and is_value("a b", "a b")
    assert is_value(None, "null") and is_value(math.nan, "None") and is_value(pd.NA, "null")
    assert not is_value(0, "null") and not is_value("x", "y") and not is_value((1,), "[1, 2]")


def sigs(*names: str) -> list[int]:
    return ordered(RUNS, names).index.tolist()


def test_the_best_of_a_metric_comes_first_and_what_is_missing_last() -> None:
    assert sigs("evaluate.sisdr") == [1, 3, 0, 2]  # higher is better
    assert sigs("evaluate.mi") == [1, 2, 0, 3]
    assert sigs("losses.mmd") == [0, 1, 2, 3]
    assert sigs("losses.mmd:desc") == [2, 1, 0, 3]
    assert sigs("rvq.n_q", "evaluate.sisdr:asc") == [0, 2, 3, 1]
    means = pd.DataFrame({"evaluate.sisdr": [Estimate(1, 0, 2), Estimate(3, 0, 2), Estimate(math.nan, 0, 0)]})
    assert ordered(means, ["evaluate.sisdr"]).index.tolist() == [1, 0, 2]
    for wrong in ("losses.mmd:up", "losses.mmd:"):
        with pytest.raises(ResultsError, match="NAME:asc or NAME:desc"):
            sigs(wrong)
    with pytest.raises(ResultsError, match="no column nope"):
        sigs("nope")


def test_several_grids_and_signatures_are_one_table(tmp_path: Path) -> None:
    grids = [write_shape(name, tmp_path) for name in ("demo", "mmd_on_off_demo")]
    both = load_named(grids, tmp_path)
    assert both.runs["grid"].value_counts().to_dict() == {grids[0]: 8, grids[1]: 6}
    assert [record.sig for record in both.records] == both.runs["sig"].tolist()
    one = both.runs[both.runs["grid"] == grids[0]]["sig"].iloc[0]
    found = load_named([grids[1], one, one], tmp_path).runs
    assert len(found) == 7 and found.set_index("sig").loc[one, "grid"] == ""
    assert "grid" not in load_named(grids[:1], tmp_path).runs
    for wrong, message in (("nope", "no grid 'nope'"), ("0" * 8, "no experiment '00000000'")):
        with pytest.raises(ResultsError, match=message):
            load_named([wrong], tmp_path)


def test_runs_that_have_not_completed_are_not_marked_as_best() -> None:
    text = format_table(RUNS, "markdown", ["sig", "evaluate.sisdr"], bold=True)
    assert "**" not in text  # of those that have completed one alone has measured it
    assert "| 0a | **3** |" in format_table(RUNS, "markdown", ["sig", "evaluate.sisdr"], bold=True, unfinished=True)


def test_numbers_and_durations_in_tables() -> None:
    table = pd.DataFrame({"name": ["a-1", "b"], "difference": [-1.5, 2e-9], "duration": [7980.0, math.nan]})
    latex = format_table(table, "latex")
    assert "a-1 & $-$1.5" in latex and "2h 13m" in latex and r"2$\cdot 10^{-9}$" in latex
    assert format_table(table, "csv").splitlines()[1] == "a-1,-1.5,7980.0"


def test_a_duration_is_written_as_the_table_shows_it() -> None:
    runs = pd.DataFrame({"duration": [30.0, 600.0, 7980.0, math.nan], "train.duration": [1.0, 2.0, 3.0, 4.0]})
    for text, seconds in (("10m", 600), ("2h13m", 7980), ('"2h 13m"', 7980), ("1.5h", 5400), ("599", 599), ("0d", 0)):
        assert where(runs, f"duration>={text}").tolist() == [value >= seconds for value in runs["duration"]]
    assert where(runs, "train.duration<3s").tolist() == [True, True, False, False]
    runs = pd.DataFrame({"duration": [30.2, 600.4, 7991.0, math.nan], "n": [600, 1, 1, 1]})
    assert where(runs, "duration==10m or duration=='2h 13m'").tolist() == [False, True, True, False]
    assert where(runs, "duration in [30s, 600s]").tolist() == [True, True, False, False]
    assert where(runs, "duration!=30s").tolist() == [False, True, True, True]
    assert not where(runs, "n==10m").any()
    for text in ("10x", "m", "10m5", "ten", "1h-2m"):
        with pytest.raises(ResultsError, match=r"a number expected after >"):
            where(runs, f"duration>{text}")
