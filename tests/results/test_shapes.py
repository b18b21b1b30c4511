"""Grids in the shapes in which they are run go through every command of README and docs on results, the page, and both
notebooks with their defaults. Histories are stored ones: nothing trains."""

import io
import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from audiotok import cli
from audiotok.errors import ResultsError
from audiotok.report.table import compare_conditions
from audiotok.results import load_grid
from audiotok.results.metrics import pareto_front
from audiotok.results.plots import MAX_GROUPS, codebook_usage, heatmap, learning_curves, tradeoff
from audiotok.results.selection import counted
from tests.pages import ROOT, blocks
from tests.results.shapes import truth, write_shape

SHAPES = ("main", "demo", "mmd_on_off_demo")
EVERY = (*SHAPES, "sweep400")
COMPRESSION = re.compile(r"\bcompression\.\w+")
OURS = re.compile(r"audiotok (results|best)\b(?!.* lm\.)")
SHELL = [command for block in blocks() if block.kind in ("shell", "console") for command in block.commands]
COMMANDS = list(dict.fromkeys(filter(OURS.match, SHELL)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with all shapes; tests only read it."""
    root = tmp_path_factory.mktemp("shapes") / "outputs"
    for name in EVERY:
        write_shape(name, root)
    return root


GRID = {
    "main": "compression.encodec_mmd_32khz",
    "demo": "compression.encodec_mmd_demo",
    "mmd_on_off_demo": "compression.mmd_on_off_demo",
    "sweep400": "sweep400",
}


@pytest.fixture(autouse=True)
def _here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(root))


@pytest.mark.parametrize("shape", EVERY)
def test_the_commands_of_the_pages(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) > 12
    for command in COMMANDS:
        words = shlex.split(COMPRESSION.sub(GRID[shape], command))[1:]
        if "--watch" in words and shape == "sweep400":
            continue  # some of its runs go on
        assert cli.main(words) == 0, (command, capsys.readouterr().err)
        assert capsys.readouterr().out or "--output" in words, command


@pytest.mark.parametrize("shape", SHAPES)
def test_a_factorial_sweep_is_compared_with_its_baseline(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    by = [name for name in load_grid(GRID[shape]).swept if name != "seed"]
    metric = "evaluate.mi_groups"
    options = ["--by", ",".join(by), "--metric", metric, "--baseline", "losses.mmd=0", "--format", "csv"]
    assert cli.main(["results", GRID[shape], *options]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert (table["n"] == load_grid(GRID[shape]).runs["seed"].nunique()).all()
    assert table["difference"].notna().all() and (table.loc[table["losses.mmd"] > 0.4, "difference"] < 0).all()


def test_mistakes_about_statistics_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    by = ["--by", "losses.mmd"]
    for options, found in (
        ([*by, "--baseline", "losses.mmd=0", "--seeds", "nope"], "no column nope"),
        ([*by, "--pooled", "--seeds", "nope"], "no column nope"),
        (["--by", "seed", "--baseline", "seed=1"], "seed pairs the runs"),
        ([*by, "--importance", "evaluate.sisdr", "--pooled"], "takes no --pooled"),
        ([*by, "--importance", "evaluate.sisdr", "--metric", "evaluate.mmd"], "takes no --metric"),
    ):
        assert cli.main(["results", GRID["demo"], *options]) == 2
        assert re.fullmatch(rf"error: .*{found}.*\n", capsys.readouterr().err), options
    assert cli.main(["best", GRID["demo"], "evaluate.sisdr", "--top", "0"]) == 2
    assert capsys.readouterr().err == "error: --top 0: a number of rows from 1 on expected.\n"


def test_tables_of_runs_say_which_runs_count_and_show_what_sorts_them(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert cli.main(["results", "sweep400", "--sort", "evaluate.sisdr", "--top", "2", "--width", "60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sig ") and lines[0].endswith("evaluate.sisdr") and max(map(len, lines)) <= 60
    assert "for means and bold values 362 of 400 runs completed and are counted" in caplog.text


def test_the_importance_states_what_counts_and_by_what_the_epoch_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    options = ["--importance", "train.mmd", "--best-by", "valid.msspec"]
    assert cli.main(["results", "sweep400", *options]) == 0
    assert "362 of 400 runs completed" in caplog.text and "train.mmd is measured under mmd.stream" in caplog.text
    assert cli.main(["results", "sweep400", "--importance", "evaluate.mmd", "--best-by", "evaluate.sisdr"]) == 0
    assert "--best-by evaluate.sisdr chooses the epoch by the data" in caplog.text


def test_the_best_of_many_is_no_finding(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert cli.main(["best", "sweep400", "evaluate.mmd", "--top", "3"]) == 0
    assert capsys.readouterr().out
    assert re.search(r"over seeds \d+ of 199 conditions are not told apart from the best mean", caplog.text)


def test_the_notebook_warns_where_it_chooses_by_what_it_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((ROOT / "notebooks" / "compare_seeds.ipynb").read_text())["cells"]
    parameters, load = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:2]
    for best_by, warned in ((None, False), ("valid.msspec", False), ("evaluate.sisdr", True)):
        space: dict[str, Any] = {}
        exec(parameters, space)
        space |= {"best_by": best_by}
        exec(load.replace("%matplotlib inline", ""), space)
        assert ("chooses the epoch by the data that" in capsys.readouterr().out) is warned


def test_a_null_value_is_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--by", "mmd.estimator,losses.mmd", "--metric", "evaluate.mi_groups", "--format", "csv"]
    assert cli.main(["results", GRID["main"], *options, "--baseline", "mmd.estimator=null"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["mmd.estimator"].tolist() == ["disjoint", "features"]
    assert cli.main(["results", GRID["main"], *options, "--baseline", "mmd.estimator=closed"]) == 2
    assert re.search(r"is one of: null, (features, disjoint|disjoint, features)\.", capsys.readouterr().err)


def test_runs_that_have_not_completed_do_not_count_and_are_named(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = ["--by", "losses.mmd", "--metric", "evaluate.sisdr", "--format", "csv"]
    numbers = {}
    for more in ([], ["--unfinished"]):
        assert cli.main(["results", "sweep400", *options, *more]) == 0
        numbers[bool(more)] = pd.read_csv(io.StringIO(capsys.readouterr().out))["evaluate.sisdr.n"].sum()
    measured = load_grid("sweep400").runs["evaluate.sisdr"].notna().sum()
    assert numbers == {False: 362, True: measured}
    assert "362 of 400 runs completed and are counted; left out: 14 RUNNING, 12 FAILED" in caplog.text
    assert "all 400 runs are counted, 38 of which have not completed" in caplog.text


def test_the_best_run_counts_and_is_by_formula_the_best(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    runs = load_grid("sweep400").runs
    (root / "xps" / runs["sig"][0] / "checkpoint.th").touch()
    assert cli.main(["best", "sweep400", "evaluate.mi_groups", "--top", "400", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 362
    assert [row["evaluate.mi_groups"] for row in rows] == sorted(row["evaluate.mi_groups"] for row in rows)
    best: dict[str, Any] = rows[0]
    assert truth(best)["mi_groups"] < 0.06 and best["evaluate.mi_groups over seeds"]["n"] in (1, 2)
    found = [row["checkpoint"] for row in rows if row["sig"] == runs["sig"][0]]
    assert found == [str(root / "xps" / runs["sig"][0] / "checkpoint.th")] * len(found)


def test_curves_of_many_conditions_are_the_best_in_colour_and_the_rest_in_grey() -> None:
    grid = load_grid("sweep400")
    by = [name for name in grid.swept if name != "seed"]
    axes = learning_curves(grid, "valid.msspec", by).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    conditions = counted(grid.runs).groupby(by).ngroups
    assert len(labels) == MAX_GROUPS + 1 and labels[-1] == f"{conditions - MAX_GROUPS} others"
    assert all("n_q=8" in label and "bins=1024" in label for label in labels[:3])  # which are best by formula
    assert len(axes.get_lines()) == conditions and "(362 of 400 runs)" in axes.get_title()


def test_conditions_that_are_no_conditions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("losses.mmd >", "(" * 60, "losses.mmd>0 state==x", "__import__('os')", "x" * 5000, "state > 3", "'"):
        assert cli.main(["results", GRID["demo"], "--where", text]) == 2
        assert re.fullmatch(r"error: .*\n", capsys.readouterr().err), text


def test_the_page_compares_few_parameters_in_blocks() -> None:
    rows, lines = compare_conditions(
        load_grid(GRID["main"]), ["losses.mmd"], ["evaluate.mi_groups"], {"losses.mmd": 0}, "seed"
    )
    assert [row.cells[0] for row in rows] == ["4", "4", "4"]
    assert lines[0].startswith("n counts blocks") and lines[1].startswith("with 4 pairs p < .05 needs")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_page(shape: str, tmp_path: Path) -> None:
    assert cli.main(["report", GRID[shape], "--baseline", "losses.mmd=0", "--clips", "0"]) == 0
    page = (tmp_path / "reports" / GRID[shape] / "index.html").read_text()
    assert "Against losses.mmd=0" in page
    found = re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    drawn = json.loads(found[1])["charts"] if found else None
    runs = load_grid(GRID[shape]).counted().runs
    assert drawn is not None and len(drawn["runs"]) == len(runs)
    assert len(drawn["conditions"]) == len(
        runs.drop_duplicates([n for n in load_grid(GRID[shape]).swept if n != "seed"])
    )
    assert re.search(r"with \d pairs p &lt; .05 needs|no p below .05 is possible", page)
    assert "Tests over all runs" in page and "runs that are equal in all of: seed and" in page


def test_a_baseline_whose_runs_have_not_completed_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_shape("demo", tmp_path)
    for sig in load_grid(GRID["demo"], tmp_path).runs.query("`losses.mmd` == 0")["sig"]:
        path = tmp_path / "xps" / sig / "status.json"
        path.write_text(path.read_text().replace("COMPLETED", "FAILED"))
    root, baseline = ["--root", str(tmp_path)], ["--baseline", "losses.mmd=0"]
    options = ["--by", "losses.mmd", "--metric", "evaluate.sisdr", "--format", "csv"]
    assert cli.main(["results", GRID["demo"], *root, *options, *baseline]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["n"].tolist() == [0] and table["p"].isna().all()
    assert "no run with losses.mmd=0 counts yet" in caplog.text
    assert cli.main(["report", GRID["demo"], *root, *baseline, "--clips", "0", "--output", str(tmp_path / "page")]) == 0
    assert "no run with losses.mmd=0 counts yet" in (tmp_path / "page/index.html").read_text()


def test_the_page_compares_no_values_of_different_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--by", "losses.mmd", "--baseline", "losses.mmd=0.5", "--clips", "0", "--metric"]
    assert cli.main(["report", GRID["main"], *options, "train.mmd"]) == 2
    assert "measured under settings that differ" in capsys.readouterr().err
    grid, baseline = load_grid(GRID["main"]), {"losses.mmd": 0.5}
    rows, _ = compare_conditions(grid, ["losses.mmd"], ["train.mmd", "evaluate.sisdr"], baseline, "seed")
    assert {row.metric for row in rows} == {"evaluate.sisdr"}


@pytest.mark.parametrize("shape", EVERY)
@pytest.mark.parametrize("name", ["report", "compare_seeds"])
def test_a_notebook_with_its_defaults(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after another, in this process; a kernel runs them in tests/test_notebooks.py."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    space: dict[str, Any] = {}
    monkeypatch.setattr("IPython.display.Markdown", str)
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("%matplotlib inline", "")
            exec(compile(code, f"{name}.ipynb", "exec"), space)
            if "parameters" in cell["metadata"].get("tags", ()):
                space["grid"] = GRID[shape]
    assert len(space["counted"].runs) == {"sweep400": 362}.get(shape, len(space["experiments"].runs))


def test_values_measured_under_other_settings_have_no_best(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert cli.main(["best", GRID["main"], "train.mmd"]) == 2
    found = r"error: train\.mmd is measured under mmd\.sigmas, .* do not compare; .*--where.*\n"
    assert re.fullmatch(found, capsys.readouterr().err)
    alike = "mmd.sigmas==null and mmd.estimator==null and mmd.stream==code"
    assert cli.main(["best", GRID["main"], "train.mmd", "--where", alike]) == 0
    assert cli.main(["results", GRID["main"], "--columns", "sig,train.mmd"]) == 0
    assert "train.mmd is measured under mmd.sigmas" in caplog.text and "losses.mmd is measured" not in caplog.text
    caplog.clear()
    assert cli.main(["results", GRID["main"], "--by", "losses.mmd", "--metric", "train.mmd", "--width", "200"]) == 0
    assert caplog.text.count("train.mmd is measured under") == 1
    grid = load_grid(GRID["main"])
    runs = grid.runs.dropna(subset=["train.mmd"])
    with pytest.raises(ResultsError, match=r"train\.mmd is measured under .* do not compare"):
        pareto_front(runs, "train.mmd", "evaluate.sisdr")
    figure = tradeoff(grid, "train.mmd", "evaluate.sisdr")
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert "no front: values that do not compare" in labels and "better" not in figure.axes[0].get_xlabel()
    lines = learning_curves(grid, "train.mmd", ["losses.mmd", "mmd.sigmas", "rvq.n_q"]).axes[0]
    assert lines.get_ylabel() == "train.mmd"
    rest = ["mmd.stream", "mmd.estimator", "mmd.num_features"]
    figure = heatmap(grid, "train.mmd", "losses.mmd", "rvq.n_q", at={"mmd.sigmas": None}, mean_over=rest)
    assert "better" not in figure.axes[-1].get_ylabel()  # of streams that differ
    held = {"mmd.sigmas": None, "mmd.stream": "code"}
    figure = heatmap(grid, "train.mmd", "losses.mmd", "rvq.n_q", at=held)
    assert "closer to 0 is better" in figure.axes[-1].get_ylabel()


def test_why_a_condition_has_no_pair(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    options = ["--by", "mmd.stream", "--metric", "evaluate.sisdr", "--format", "csv", "--baseline", "mmd.stream=null"]
    assert cli.main(["results", GRID["main"], *options]) == 0
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["n"].tolist() == [0, 0]
    assert re.search(
        r"no pair of mmd\.stream=residual: its runs are of block 'seed=2036, losses\.mmd=0\.1", caplog.text
    )
    caplog.clear()
    seeds = "seed==2036 and losses.mmd==0 or seed==2037 and losses.mmd==0.1"
    options = ["--by", "losses.mmd,mmd.stream,rvq.n_q", "--metric", "evaluate.sisdr", "--baseline", "losses.mmd=0"]
    assert cli.main(["results", GRID["main"], *options, "--where", seeds]) == 0
    assert "n_q=8: its runs are of seed '2037', those of its baseline of '2036'" in caplog.text
    assert "add seeds" not in caplog.text and "has measured it" not in caplog.text
    options = ["--by", "losses.mmd", "--metric", "train.mmd,evaluate.sisdr", "--baseline", "losses.mmd=0"]
    assert cli.main(["results", GRID["mmd_on_off_demo"], *options]) == 0
    assert "no pair of train.mmd: no run with losses.mmd=0 has measured it" in caplog.text
    assert caplog.text.count("has measured it") == 1


def test_a_comparison_leaves_out_what_has_no_better_value_and_a_narrow_table_keeps_n(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by = ["results", GRID["demo"], "--by", "losses.mmd"]
    assert cli.main([*by, "--baseline", "losses.mmd=0", "--format", "csv"]) == 0
    compared = set(pd.read_csv(io.StringIO(capsys.readouterr().out))["metric"])
    assert "evaluate.mmd_p" not in compared and {"evaluate.mmd", "evaluate.usage"} <= compared
    assert cli.main([*by, "--width", "20"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["losses.mmd", "n"]


def test_a_warning_wherever_the_data_that_chose_the_epoch_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    options = ["--by", "losses.mmd", "--metric", "valid.sisnr,evaluate.sisdr", "--best-by", "valid.msspec"]
    assert cli.main(["results", GRID["demo"], *options]) == 0
    assert "by the data that valid.sisnr is reported of" in caplog.text
    assert "choose by another stage" in caplog.text and "evaluate.sisdr is" not in caplog.text


def test_every_plot_states_which_runs_it_counts() -> None:
    grid = load_grid("sweep400")
    for unfinished, count in ((False, "(362 of 400 runs)"), (True, "(all 400 runs, 38 not completed)")):
        usage = codebook_usage(grid, unfinished=unfinished).axes[0]
        measured = grid.counted(unfinished=unfinished).runs["sig"].size
        assert count in usage.get_title() and len(usage.get_lines()) == measured + 1
        assert count in learning_curves(grid, "valid.msspec", ["rvq.n_q"], unfinished=unfinished).axes[0].get_title()


def test_a_condition_is_named_without_what_it_lacks() -> None:
    axes = learning_curves(load_grid(GRID["main"]), "valid.msspec", ["losses.mmd", "mmd.estimator"]).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} >= {
        "mmd=0 (4 runs)",
        "mmd=0.5, estimator=disjoint (4 runs)",
    }
