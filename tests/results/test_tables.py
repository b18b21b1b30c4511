"""Runs as text: aligned, rounded where people read, exact where programs do, harmless everywhere."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiotok.errors import ResultsError
from audiotok.results import format_table, headline_columns, load_grid
from audiotok.results.tables import Estimate, _select_columns
from audiotok.text import clean_text

GRID = "compression.encodec_mmd_demo"


@pytest.fixture
def runs() -> pd.DataFrame:
    """Three runs with about everything a cell can hold."""
    return pd.DataFrame(
        {
            "sig": ["00000001", "00000002", "00000003"],
            "mmd.sigmas": [(0.1, 1, 5, 10, 20, 50), (1e-05,), None],
            "seed": [1, 20240501, 3],
            "label": ["a|b\\", "\x1b[31mred\x1b[0m\nline", "日本 e\u0301"],
            "valid.sisnr": [12.3456789, -0.5, math.nan],
            "evaluate.mmd": [1 / 3 * 1e-3, 2.5e-3, math.inf],
        }
    )


def test_the_terminal_table(runs: pd.DataFrame) -> None:
    assert format_table(runs).splitlines() == [
        "sig       mmd.sigmas                   seed  label     valid.sisnr  evaluate.mmd",
        "--------  -----------------------  --------  --------  -----------  ------------",
        "00000001  [0.1, 1, 5, 10, 20, 50]         1  a|b\\            12.35      0.000333",
        "00000002  [1e-05]                  20240501  red line        -0.50      0.002500",
        "00000003  -                               3  日本 e\u0301              -           inf",
    ]


def test_rounding_is_per_column() -> None:
    frame = pd.DataFrame(
        {
            "typed": [0.0003, 1.0, 1000.5],
            "measured": [12.3456789, 3.21, -0.5],
            "small": [2.12345e-3, 3e-4, 0.0],
            "wide": [1.23456789e-7, 1234.56789, 1.5],
            "long": [123456.789, 98765.4321, 2000.0],
        }
    )
    lines = [line.split() for line in format_table(frame).splitlines()]
    columns = dict(zip(lines[0], zip(*lines[2:], strict=True), strict=True))
    assert columns == {
        "typed": ("0.0003", "1", "1000.5"),
        "measured": ("12.35", "3.21", "-0.50"),
        "small": ("0.002123", "0.000300", "0.000000"),
        "wide": ("1.235e-07", "1235", "1.5"),
        "long": ("123457", "98765", "2000"),
    }


def test_small_numbers_are_in_scientific_notation() -> None:
    frame = pd.DataFrame(
        {
            "valid.mmd": [1.86e-5, 2.3456789e-4, 0.0],
            "evaluate.mmd": [Estimate(1.8634e-5, 1.2e-7, 3), Estimate(2.1e-5, math.nan, 1), Estimate(4.1e-5, 3e-6, 2)],
            "evaluate.mi": [Estimate(0.0213, 0.0012, 3), Estimate(0.0004, 0.0001, 3), Estimate(math.nan, math.nan, 0)],
        }
    )
    rows = [line.split(" | ") for line in format_table(frame, "markdown").splitlines()[2:]]
    cells = [[cell.strip("| ") for cell in row] for row in rows]
    assert cells == [
        ["1.860e-05", "1.863e-05 ± 1.2e-07", "0.0213 ± 0.0012"],
        ["2.346e-04", "2.100e-05", "0.0004 ± 0.0001"],
        ["0", "4.10e-05 ± 3.0e-06", "-"],
    ]


def test_csv_loses_nothing(runs: pd.DataFrame) -> None:
    rows = list(csv.DictReader(io.StringIO(format_table(runs, "csv"))))
    assert [row["sig"] for row in rows] == runs["sig"].tolist()
    assert [row["label"] for row in rows] == runs["label"].tolist()
    assert json.loads(rows[0]["mmd.sigmas"]) == [0.1, 1, 5, 10, 20, 50]
    assert rows[2]["mmd.sigmas"] == rows[2]["valid.sisnr"] == ""
    assert [float(row["evaluate.mmd"]) for row in rows] == runs["evaluate.mmd"].tolist()
    assert float(rows[0]["valid.sisnr"]) == 12.3456789
    assert rows[1]["seed"] == "20240501"


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_csv_gives_every_float_back(values: list[float]) -> None:
    text = format_table(pd.DataFrame({"x": values}), "csv")
    assert [float(line) for line in text.splitlines()[1:]] == values


def test_markdown_has_one_cell_per_column(runs: pd.DataFrame) -> None:
    lines = format_table(runs, "markdown").splitlines()
    assert lines[1] == "| --- | --- | ---: | --- | ---: | ---: |"
    assert lines[2] == r"| 00000001 | [0.1, 1, 5, 10, 20, 50] | 1 | a\|b\\ | 12.35 | 0.000333 |"
    assert lines[3].startswith("| 00000002 | [1e-05] | 20240501 | red line | -0.50 |")
    assert lines[4].split(" | ")[4:] == ["-", "inf |"]


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_no_text_breaks_a_line_or_reaches_the_terminal_raw(text: str) -> None:
    frame = pd.DataFrame({"a": ["x", text], text + "b": [1, 2]})
    table = format_table(frame)
    assert len(table.splitlines()) == 4
    assert table.replace("\n", "").isprintable()
    cells = format_table(frame, "markdown").splitlines()
    assert len(cells) == 4


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\r\nb\tc", "a b c"),
        ("a\u202eb\u200bc\x9bd", "abcd"),
        ("日本é|", "日本é|"),
    ],
)
def test_texts_are_cleaned(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_long_texts_end_in_an_ellipsis() -> None:
    line = format_table(pd.DataFrame({"reason": ["x" * 500]})).splitlines()[2]
    assert line == "x" * 59 + "…"


def test_columns_can_be_chosen(runs: pd.DataFrame) -> None:
    header = format_table(runs, "csv", ["seed", "*.s*", "seed"]).splitlines()[0]
    assert header == "seed,mmd.sigmas,valid.sisnr"
    with pytest.raises(ResultsError, match=r"no column 'valid.sisn'.*valid.sisnr"):
        _select_columns(runs.columns, ["valid.sisn"])
    with pytest.raises(ResultsError, match="choose one of: table, csv, markdown, latex, parquet"):
        format_table(runs, "html")


def test_the_headline(root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]) -> None:
    history = [{"train": {"l1": 1.0}, "valid": {"msspec": 1.0, "adv": 2.0, "odd": 3.0}, "evaluate": {"mel": 1.0}}]
    make_experiment("00000001", ["seed=1", "label=x"], history, status=done)
    make_experiment("00000002", ["seed=2", "label=x"], history, status=done)
    columns = ["sig", "seed", "state", "epochs", "duration", "valid.msspec", "evaluate.mel"]
    assert headline_columns(load_grid(GRID, root)) == columns
    make_experiment("00000003", ["seed=3", "label=x"], "[", status=done | {"state": "FAILED", "reason": "r"})
    assert headline_columns(load_grid(GRID, root)) == [*columns, "reason", "problems"]


@pytest.mark.parametrize("fmt", ["table", "csv", "markdown"])
def test_an_empty_grid_is_a_header(root: Path, fmt: str) -> None:
    experiments = load_grid(GRID, root)
    text = format_table(experiments.runs, fmt, headline_columns(experiments))
    assert len(text.splitlines()) == (1 if fmt == "csv" else 2)
