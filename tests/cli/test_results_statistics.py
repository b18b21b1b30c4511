"""`audiotok results --by …` and `--watch`: conditions rather than runs, and a table that follows a grid."""

import itertools
import json
import math
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from audiotok import cli
from audiotok.cli.results import _in_words

GRID = "compression.sweep"


def status(state: str) -> str:
    now = time.time()
    return json.dumps(
        {"state": state, "started": now - 9, "updated": now, "ended": None if state == "RUNNING" else now}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two weights × two widths × two seeds; the last run has not completed."""
    path = tmp_path / "outputs"
    (path / "grids" / GRID).mkdir(parents=True)
    for index, (weight, sigmas, seed) in enumerate(itertools.product((0, 10), ("median", "[1,5]"), (1, 2))):
        folder = path / "xps" / f"0000000{index}"
        folder.mkdir(parents=True)
        argv = [f"losses.mmd={weight}", f"mmd.sigmas={sigmas}", f"seed={seed}"]
        (folder / ".argv.json").write_text(json.dumps(argv))
        history = [
            {
                "valid": {"msspec": 1 / epoch},
                "evaluate": {"sisnr": weight + seed + epoch, "mi": 1 / (1 + weight + seed)},
            }
            for epoch in (1, 2)
        ]
        (folder / "history.json").write_text(json.dumps(history))
        (folder / "status.json").write_text(status("RUNNING" if index == 7 else "COMPLETED"))
        (path / "grids" / GRID / folder.name).symlink_to(folder)
    return path


def results(root: Path, *arguments: str) -> int:
    return cli.main(["results", GRID, "--root", str(root), *arguments])


def test_conditions(root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--by", "losses.mmd,mmd.sigmas", "--metric", "evaluate.sisnr", "--format", "markdown"]
    assert results(root, *arguments) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 0 | median | 2 | 3.50 ± 0.71 |",
        "| 0 | [1, 5] | 2 | 3.50 ± 0.71 |",
        "| 10 | median | 2 | **13.50 ± 0.71** |",
        "| 10 | [1, 5] | 1 | **13.00** |",
    ]
    assert "left out: 1 RUNNING" in caplog.text
    assert results(root, *arguments, "--unfinished", "--pivot", "mmd.sigmas") == 0
    assert "| 10 | 2 | **13.50 ± 0.71** | **13.50 ± 0.71** |" in capsys.readouterr().out


def test_the_best_epoch(root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--by", "losses.mmd", "--metric", "evaluate.sisnr", "--format", "csv", "--unfinished"]
    means = []
    for by in ([], ["--best-by", "valid.msspec"], ["--best-by", "evaluate.mi", "--direction", "mi=lower"]):
        assert results(root, *arguments, *by) == 0
        means.append(float(capsys.readouterr().out.splitlines()[1].split(",")[2]))
    assert means == [3.5, 3.5, 2.5]  # mi is equal in both epochs: the first
    assert "--best-by evaluate.mi chooses the epoch by the data that evaluate.sisnr is reported of" in caplog.text
    assert "chooses the epoch by the data that" not in caplog.text.split("evaluate.mi chooses")[0]
    for wrong, message in (
        ([*arguments, "--best-by", "evaluate.mi"], "scatters"),
        (["--best-by", "valid.msspec"], "--by"),
    ):
        assert results(root, *wrong) == 2
        assert message in capsys.readouterr().err


def test_averaging_over_more_than_seeds_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert results(root, "--by", "losses.mmd") == 0
    assert "averaged over mmd.sigmas too; add to --by" in caplog.text


def test_comparison_to_a_parquet_file(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    arguments = [
        "--by",
        "losses.mmd,mmd.sigmas",
        "--metric",
        "evaluate.sisnr,evaluate.mi",
        "--baseline",
        "losses.mmd=0",
    ]
    assert results(root, *arguments, "--format", "parquet", "--output", str(path)) == 0
    table = pd.read_parquet(path).set_index(["mmd.sigmas", "metric"])
    assert list(table.loc[("median", "evaluate.sisnr"), ["n", "difference"]]) == [2, 10]
    assert list(table.loc[("[1, 5]", "evaluate.sisnr"), ["n", "difference"]]) == [1, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "evaluate.mi"], "--metric needs --by"),
        (["--by", "losses.mdm"], "no column losses.mdm"),
        (["--by", "losses.mmd", "--metric", "evaluate.sisn"], "evaluate.sisnr"),
        (["--by", "losses.mmd", "--baseline", "losses.mmd=3"], "losses.mmd is one of: 0, 10"),
        (["--by", "losses.mmd", "--baseline", "mmd=0"], "parameters are: losses.mmd, mmd.sigmas, seed"),
        (["--where", "losses.mmd > many"], "a number expected after >"),
        (["--sort", "evaluate.sisnr:up"], "NAME, NAME:asc or NAME:desc expected"),
        (["--top", "0"], "a number of rows from 1 on expected"),
        (["--width", "-1"], "a number of characters from 0 on expected"),
        (["--by", "losses.mmd", "--pivot", "losses.mmd"], "leave another one for the rows"),
        (["--format", "parquet"], "give a file with output"),
    ],
)
def test_mistakes(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert results(root, *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_watching_ends_with_the_last_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = root / "xps" / "00000007" / "status.json"
    threading.Timer(0.5, lambda: last.write_text(status("COMPLETED"))).start()
    assert results(root, "--watch", "0.1", "--columns", "sig,state") == 0
    tables = capsys.readouterr().out.split("sig       state")[1:]
    assert len(tables) >= 2 and "RUNNING" in tables[0] and "RUNNING" not in tables[-1]


def test_a_comparison_says_whether_a_difference_is_clear(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    by = ["--by", "losses.mmd,mmd.sigmas", "--metric", "evaluate.sisnr"]
    assert results(root, *by, "--baseline", "losses.mmd=0") == 0
    assert "1 pair of runs, too few for an error (+10 dB)" in caplog.text


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "words"),
    [
        (-0.3, -0.1, 0.04, "lower (-0.2 bit, 95 % interval -0.3 to -0.1, 3 pairs of runs)"),
        (
            *(-0.3, -0.1, 0.51),
            "lower (-0.2 bit, 95 % interval -0.3 to -0.1, 3 pairs of runs; not clear among all rows, p_holm 0.51)",
        ),
        (-0.5, 0.1, 1.0, "no clear difference (-0.2 bit, 95 % interval -0.5 to +0.1, 3 pairs of runs)"),
        (math.nan, math.nan, 1.0, "3 pairs of runs that differ alike, so no error is known (-0.2 bit)"),
    ],
)
def test_a_difference_in_words(low: float, high: float, p_holm: float, words: str) -> None:
    row = {"losses.mmd": 0.5, "metric": "evaluate.mi_groups", "n": 3, "difference": -0.2, "low": low, "high": high}
    row["p_holm"] = p_holm
    words = f"mi_groups {words}"
    assert _in_words(row, ["losses.mmd"]) == f"losses.mmd=0.5 against the baseline: evaluate.{words}"


def test_one_test_over_the_whole_grid(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    arguments = ["--by", "losses.mmd", "--metric", "evaluate.sisnr", "--pooled", "--format", "csv"]
    assert results(root, *arguments) == 0
    header, row = capsys.readouterr().out.splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert [values[name] for name in ("levels", "blocks", "n")] == [
        "2",
        "3",
        "6",
    ]  # the run without a partner is not in n
    assert float(values["p"]) == float(values["smallest_p"]) == 2 / 2**3
    assert "equal in all of: mmd.sigmas, seed" in caplog.text and "no p below 0.05 is possible" in caplog.text
    assert "averaged over" not in caplog.text
    for wrong in (["--baseline", "losses.mmd=0"], ["--pivot", "losses.mmd"], ["--direction", "sisnr=up"]):
        assert results(root, *arguments, *wrong) == 2
        assert wrong[0] in capsys.readouterr().err


def test_a_metric_declared_by_option_has_a_best_value(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(8):
        file = root / "xps" / f"0000000{index}" / "history.json"
        file.write_text(json.dumps([{"evaluate": {"brightness": index // 2 * 100.0 + index % 2}}]))
    arguments = ["--by", "losses.mmd,mmd.sigmas", "--metric", "evaluate.brightness", "--format", "markdown"]
    for option, bold in (["--direction", "brightness=lower"], 0), (["--direction", "brightness=higher"], 3), ([], None):
        assert results(root, *arguments, *option) == 0
        rows = capsys.readouterr().out.splitlines()[2:]
        assert [row for row in range(4) if "**" in rows[row]] == ([] if bold is None else [bold])
