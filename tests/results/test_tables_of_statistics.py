"""Tables for papers: estimates, the best in bold, pivots, LaTeX and Parquet."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.results.metrics import setting_lines
from audiotok.results.statistics import summarize
from audiotok.results.tables import Estimate, best_rows, format_table, summary_table, write_table


@pytest.fixture
def summary() -> pd.DataFrame:
    """Two weights × two kernels × three seeds, two metrics of opposite directions."""
    rows = [
        {
            "losses.mmd": w,
            "mmd.sigmas": s,
            "evaluate.sisnr": 5 + w + seed,
            "evaluate.mi_groups": 0.3 - w / 50 + seed / 100,
        }
        for w, s, seed in itertools.product((0.0, 10.0), ("median", (1.0, 5.0)), (-1, 0, 1))
    ]
    return summarize(pd.DataFrame(rows), ["losses.mmd", "mmd.sigmas"], ["evaluate.sisnr", "evaluate.mi_groups"])


def test_a_paper_table(summary: pd.DataFrame) -> None:
    table = summary_table(summary, ["losses.mmd", "mmd.sigmas"])
    assert format_table(table, "latex", bold=True).splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{rlrrr}",
        r"\toprule",
        r"losses.mmd & mmd.sigmas & n & evaluate.sisnr $\uparrow$ & evaluate.mi\_groups $\to 0$ \\",
        r"\midrule",
        r"0 & median & 3 & 5.0 $\pm$ 1.0 & 0.300 $\pm$ 0.010 \\",
        r"0 & [1, 5] & 3 & 5.0 $\pm$ 1.0 & 0.300 $\pm$ 0.010 \\",
        r"10 & median & 3 & \textbf{15.0 $\pm$ 1.0} & \textbf{0.100 $\pm$ 0.010} \\",
        r"10 & [1, 5] & 3 & \textbf{15.0 $\pm$ 1.0} & \textbf{0.100 $\pm$ 0.010} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_pivot(summary: pd.DataFrame) -> None:
    one = summary[summary["metric"] == "evaluate.sisnr"]
    table = summary_table(one, ["losses.mmd", "mmd.sigmas"], "mmd.sigmas")
    assert format_table(table, "markdown").splitlines() == [
        "| losses.mmd | n | evaluate.sisnr sigmas=median | evaluate.sisnr sigmas=[1, 5] |",
        "| ---: | ---: | ---: | ---: |",
        "| 0 | 3 | 5.0 ± 1.0 | 5.0 ± 1.0 |",
        "| 10 | 3 | 15.0 ± 1.0 | 15.0 ± 1.0 |",
    ]
    both = summary_table(summary, ["losses.mmd", "mmd.sigmas"], "losses.mmd")
    assert list(both.columns[2:4]) == ["evaluate.sisnr mmd=0", "evaluate.mi_groups mmd=0"]
    lines = format_table(both, "markdown", bold=True).splitlines()
    assert lines[2].count("**") == 8  # both rows are equal, so both are best, in four columns
    for wrong in ("seed", None):
        with pytest.raises(ResultsError, match=r"choose one of: losses\.mmd"):
            summary_table(one, ["losses.mmd"], wrong or "losses.mmd")


def test_the_best_is_bold_whichever_way_is_better() -> None:
    frame = pd.DataFrame(
        {
            "sig": ["a", "b", "c"],
            "evaluate.sisnr": [1.0, math.inf, 3.0],
            "evaluate.mmd": [0.25, 0.5, math.nan],
            "valid.adv": [1.0, 2.0, 3.0],
            "valid.mel": [1.5, math.nan, math.nan],
        }
    )
    columns = list(
        zip(*[line.split(" | ") for line in format_table(frame, "markdown", bold=True).splitlines()[2:]], strict=True)
    )
    assert columns[1] == ("1", "inf", "**3**")
    assert columns[2] == ("**0.25**", "0.5", "-")
    assert not any("**" in text for text in [*columns[3], *columns[4]])  # no direction; nothing to compare with
    terminal = format_table(frame, bold=True)
    assert re.findall(r"\x1b\[1m *(\S+)\x1b\[0m", terminal) == ["0.25", "3"]
    assert re.sub(r"\x1b\[\d*m", "", terminal) == format_table(frame)


def best_by_student(means: list[float], std: float, n: int) -> set[int]:
    """Rows from which the best one does not differ, by SciPy: one-sided tests with the spread of all rows."""
    degrees, best = len(means) * (n - 1), max(means)
    t = [(best - mean) / (std * math.sqrt(2 / n)) for mean in means]
    return {row for row, value in enumerate(t) if stats.t.sf(value, degrees) >= 0.05 / (len(means) - 1)}


@given(st.lists(st.floats(0, 5), min_size=2, max_size=6), st.integers(2, 5))
@settings(deadline=None)
def test_what_errors_do_not_tell_apart_is_best_together(means: list[float], n: int) -> None:
    found = best_rows([Estimate(mean, 1.0, n) for mean in means], "higher")
    assert found == best_by_student(means, 1.0, n)
    assert found == best_rows([Estimate(-mean, 1.0, n) for mean in means], "lower")


def test_noise_around_zero_is_not_best() -> None:
    """An MMD further below 0 is no better; all within their errors of 0 are equal, and a clear one is not."""
    assert best_rows([-3e-4, 1e-4, 2e-4, 9e-3], "near_zero", [2e-4] * 4) == {0, 1, 2}
    assert best_rows([-0.5, 0.2, 0.3], "near_zero") == {1}
    assert best_rows([0.5, 0.2, 0.21], "near_zero", [1e-3] * 3) == {1}  # none is near 0
    frame = pd.DataFrame({"sig": ["a", "b", "c"], "evaluate.mmd": [-3e-4, 1e-4, 9e-3], "evaluate.mmd_err": [2e-4] * 3})
    rows = [line.split(" | ")[1] for line in format_table(frame, "markdown", bold=True).splitlines()[2:]]
    assert [row.startswith("**") for row in rows] == [True, True, False]


def test_values_under_different_settings_have_no_best() -> None:
    frame = pd.DataFrame({"mmd.sigmas": ["median", (1.0,)], "train.mmd": [0.5, 0.1], "evaluate.sisdr": [1.0, 2.0]})
    rows = [line.split(" | ") for line in format_table(frame, "markdown", bold=True).splitlines()[2:]]
    assert [row[1] for row in rows] == ["0.5", "0.1"] and rows[1][2].startswith("**")
    same = frame.assign(**{"mmd.sigmas": "median"})
    assert "**0.1**" in format_table(same, "markdown", bold=True)
    assert "**" not in format_table(same[["train.mmd"]], "markdown", bold=True, source=frame)
    assert setting_lines(frame, ["train.mmd", "evaluate.sisdr"])[0].startswith(
        "train.mmd is measured under mmd.sigmas,"
    )


def test_fewer_runs_than_the_row_has_are_counted_in_the_cell() -> None:
    frame = pd.DataFrame({"n": [3, 2], "evaluate.sisdr": [Estimate(1.0, 0.1, 3), Estimate(2.0, math.nan, 1)]})
    assert format_table(frame, "markdown").splitlines()[2:] == ["| 3 | 1.00 ± 0.10 |", "| 2 | 2.00 (n = 1) |"]


def test_rounding_of_estimates_follows_their_spread() -> None:
    frame = pd.DataFrame(
        {"m": [Estimate(12.34567, 0.0123, 3), Estimate(1.0, math.nan, 1), Estimate(math.nan, math.nan, 0)]}
    )
    assert format_table(frame, "markdown").splitlines()[2:] == ["| 12.346 ± 0.012 |", "| 1.000 |", "| - |"]
    coarse = pd.DataFrame({"m": [Estimate(12345.6, 321.0, 3)]})
    assert format_table(coarse, "markdown").splitlines()[2] == "| 12346 ± 321 |"


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_no_text_is_a_latex_command(text: str) -> None:
    body = format_table(pd.DataFrame({"a": [text]}), "latex").splitlines()[5]
    for known in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        r"\textless{}",
        r"\textgreater{}",
        r"$\pm$",
        r"$\times$",
    ):
        body = body.replace(known, "")
    body = re.sub(r"\\[&%$#_{}]", "", body.removesuffix(r" \\"))
    assert not re.search(r"[\\&%$#_{}~^<>]", body)


@pytest.mark.parametrize("fmt", ["csv", "parquet"])
def test_exact_formats_give_everything_back(summary: pd.DataFrame, tmp_path: Path, fmt: str) -> None:
    table = summary_table(summary, ["losses.mmd", "mmd.sigmas"])
    path = tmp_path / "table"
    write_table(table, path, fmt)
    back = pd.read_csv(path) if fmt == "csv" else pd.read_parquet(path)
    assert list(back["evaluate.sisnr.n"]) == [3, 3, 3, 3]
    assert back["evaluate.mi_groups.mean"].tolist() == [value.mean for value in table["evaluate.mi_groups"]]
    assert back["mmd.sigmas"].tolist() == ["median", "[1.0, 5.0]"] * 2
    assert np.allclose(back["evaluate.sisnr.std"], 1.0)


def test_parquet_is_a_file(summary: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="give a file"):
        format_table(summary, "parquet")
    with pytest.raises(ResultsError, match="cannot write"):
        write_table(summary, tmp_path / "no" / "table.parquet", "parquet")
