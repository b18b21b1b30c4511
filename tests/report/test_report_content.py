"""What stands in a report, and what may be asked of it, as far as no browser is needed."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from audiotok import cli
from audiotok.errors import ResultsError
from audiotok.report import ReportOptions, write_report
from audiotok.report.charts import RunCharts, curve
from audiotok.report.runs import _log_file, run_pages
from audiotok.report.table import clock_text, compare_conditions, condition_columns, run_columns
from audiotok.results import METRICS, load_grid
from audiotok.results.statistics import compare
from audiotok.results.tables import best_rows
from tests.report.conftest import add_run


def test_only_the_pages_own_script_may_run(reports: dict[str, Path]) -> None:
    text = (reports["demo"] / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy and len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"
    assert "connect-src" not in rules and "unsafe" not in policy[1]
    for page in reports["demo"].rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"https?://|\sstyle=|\son\w+=", text.split('<script type="application/json"')[0])


def test_every_link_leads_to_a_file_of_the_folder(reports: dict[str, Path]) -> None:
    for report in reports.values():
        for page in report.rglob("*.html"):
            html = page.read_text(encoding="utf-8").split('<script type="application/json"')[0]
            for target in re.findall(r'(?:href|src|srcset)="(?!data:audio/)([^"#]+)"', html):
                assert (page.parent / target).resolve().is_relative_to(report)
                assert (page.parent / target).is_file(), target


def test_a_report_made_again_is_the_same(results: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        write_report(load_grid("demo", results), tmp_path / "report")
        files = [path for path in (tmp_path / "report").rglob("*") if path.suffix != ".html" and path.is_file()]
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_the_page_says_how_evaluate_measured_and_shows_published_numbers_apart(tmp_path: Path) -> None:
    for index, clips in enumerate((24, 24, 12)):
        history = [{"evaluate": {"sisdr": 5.0, "protocol": float(clips)}}]
        folder = add_run(tmp_path / "outputs", "own", f"0000000{index}", [f"seed={index}"], history, state="COMPLETED")
        protocol = {"clips": clips, "recordings": 3, "seconds": 5.0, "sample_rate": 32000, "metrics": {"sisdr": "<b>"}}
        (folder / "evaluate.json").write_text(json.dumps(protocol))
    write_report(load_grid("own", tmp_path / "outputs"), tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert "do not compare" in page and "(clips=24)" in page and "(clips=12)" in page and "<b>" not in page
    details = page.split("Published numbers of other codecs")[1].split("</details>")[0]
    assert "10.75" in details and "NeurIPS 2023" in details and "Their test set is another one" in details
    assert "best" not in details
    assert "12 clips of 5 s from 3 recording(s) at 32000 Hz" in (tmp_path / "report/runs/00000002.html").read_text()


def test_statistics_are_those_of_the_library(results: Path) -> None:
    grid = load_grid("demo", results)
    metrics = ["evaluate.sisnr", "evaluate.mi"]
    columns = {column.name: column for column in condition_columns(grid, ["losses.mmd"], metrics)}
    assert [cell.text for cell in columns["runs"].cells] == ["2", "2"]
    values = grid.runs.groupby("losses.mmd")["evaluate.sisnr"]
    told_apart = ttest_ind(*(group for _, group in values)).pvalue / 2 < 0.05
    assert [cell.best for cell in columns["evaluate.sisnr"].cells] == [not told_apart, True]
    expected = [f"{mean:.0f} ± {std:.0f}" for mean, std in zip(values.mean(), values.std(), strict=True)]
    assert [cell.text for cell in columns["evaluate.sisnr"].cells] == expected
    rows, _ = compare_conditions(grid, ["losses.mmd"], metrics, {"losses.mmd": 0}, "seed")
    table = compare(grid.runs, ["losses.mmd"], metrics, {"losses.mmd": 0})
    assert [(row.metric, row.verdict) for row in rows] == [("evaluate.sisnr", "better"), ("evaluate.mi", "better")]
    assert [row.cells[0] for row in rows] == ["2", "2"]
    assert [row.cells[7] for row in rows] == [f"{p:.3f}" if p >= 1e-3 else "< 0.001" for p in table["p_holm"]]


def test_runs_that_have_not_completed_count_only_on_request(tmp_path: Path) -> None:
    for index, (state, value) in enumerate([("COMPLETED", 10.0), ("COMPLETED", 12.0), ("RUNNING", 50.0)]):
        argv = ["losses.mmd=1", f"seed={index}"]
        add_run(tmp_path, "g", f"0000000{index}", argv, [{"evaluate": {"sisnr": value}}], state=state)
    grid = load_grid("g", tmp_path)
    for unfinished, runs, mean, best, line in (
        (False, "2", "11", [False, True, False], "2 of 3 runs completed and are counted; left out: 1 RUNNING"),
        (True, "3", "24", [False, False, True], "all 3 runs are counted, 1 of which have not completed"),
    ):
        by, metrics = ["losses.mmd"], ["evaluate.sisnr"]
        columns = {column.name: column for column in condition_columns(grid, by, metrics, unfinished=unfinished)}
        assert columns["runs"].cells[0].text == runs
        assert columns["evaluate.sisnr"].cells[0].text.startswith(f"{mean}")
        table = {column.name: column for column in run_columns(grid, metrics, unfinished=unfinished)}
        assert [cell.best for cell in table["evaluate.sisnr"].cells] == best
        report = tmp_path / f"report{unfinished}"
        write_report(grid, report, ReportOptions(by=by, metrics=metrics, unfinished=unfinished))
        assert (report / "index.html").read_text().count(line) == 3  # table, statistics, plots


def test_a_curve_has_no_direction_where_the_runs_do_not_compare(tmp_path: Path) -> None:
    for index, sigmas in enumerate(["[1]", "[2]"]):
        history = [{"train": {"mmd": 0.5}, "valid": {"msspec": 1.0}}]
        add_run(tmp_path, "grid", f"000000c{index}", [f"mmd.sigmas={sigmas}"], history, state="COMPLETED")
    grid = load_grid("grid", tmp_path)
    titles = [chart.title for chart in RunCharts(grid, ["train.mmd", "valid.msspec"]).of("000000c0")]
    assert titles == ["train.mmd", "valid.msspec (↓ lower is better)"]


def test_the_range_beside_a_curve_is_of_the_runs_that_count(tmp_path: Path) -> None:
    for index, (value, state) in enumerate([(1.0, "COMPLETED"), (2.0, "COMPLETED"), (900.0, "DIVERGED")]):
        history = [{"valid": {"msspec": value + epoch}} for epoch in (1, 0)]
        add_run(tmp_path, "grid", f"000000c{index}", [f"seed={index}"], history, state=state)
    grid = load_grid("grid", tmp_path)
    for unfinished, highest in ((False, 3.0), (True, 901.0)):
        charts = RunCharts(grid, ["valid.msspec"], unfinished=unfinished)
        ticks = [float(text.replace("\u2212", "-")) for _, text in charts.of("000000c0")[0].y_ticks]
        assert max(ticks) <= highest < 400 + max(ticks)
    assert float(RunCharts(grid, ["valid.msspec"]).of("000000c2")[0].y_ticks[-1][1]) > 600  # itself it is drawn
    write_report(grid, tmp_path / "page")
    page = (tmp_path / "page/runs/000000c0.html").read_text()
    assert "runs of the grid that count: 2 of 3 runs completed" in page


def test_runs_know_what_sets_them_apart(results: Path) -> None:
    runs = {run.sig: run for run in run_pages(load_grid("demo", results))}
    run = runs["000000a0"]
    assert run.label == "mmd=0, seed=1"
    assert [(p.name, p.value, p.others) for p in run.own] == [
        ("losses.mmd", "0", [("0", 1), ("10", 3)]),
        ("seed", "1", [("1", 1), ("2", 2), ("3", 1)]),
    ]
    assert [(p.name, p.value, p.source) for p in run.common] == [("optim.epochs", "2", "override")]
    assert run.neighbours == [("000000a2", "losses.mmd", "10"), ("000000a1", "seed", "2")]
    assert run.tail == "" and runs["000000af"].tail.endswith("disk full")


def test_a_log_outside_the_folder_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    folder = add_run(tmp_path, "g", "00000001", [], state="FAILED")
    (folder / "job.json").write_text('{"log": "../../../secret"}')
    (folder / "submitit" / "1_0_log.out").symlink_to(tmp_path / "secret")
    (record,) = load_grid("g", tmp_path).records
    assert _log_file(record) is None
    (folder / "train.log").write_text("here")
    assert _log_file(record) == folder / "train.log"


def test_a_log_that_is_no_file(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], state="FAILED")
    (folder / "submitit" / "1_0_log.out").symlink_to("1_0_log.out")
    os.mkfifo(folder / "train.log")
    for name in ("x" * 300, "a\0b", ".."):
        (folder / "job.json").write_text(json.dumps({"log": name}))
        assert _log_file(load_grid("g", tmp_path).records[0]) is None


def test_of_very_many_metrics_some_are_drawn_and_the_rest_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiotok.report.page.MAX_CHARTS", 3)
    metrics = {f"m{n:03d}": float(n) for n in range(50)} | {"mi_qa_qb": 1.0, "mi_q0_q99999999": 1.0, "usage_qx": 1.0}
    history = [{"train": {**metrics, "epoch": 7.0}, "evaluate": {**metrics, "usage_q0": 0.5}} for _ in range(2)]
    add_run(tmp_path, "g", "00000001", [], history, state="COMPLETED")
    write_report(load_grid("g", tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "runs" / "00000001.html").read_text()
    assert text.count("<figcaption>") == 3
    assert "98 more metrics are not drawn: <code>audiotok results GRID --format csv</code>" in text  # of 101


def test_metrics_of_odd_names_have_their_own_curves(tmp_path: Path) -> None:
    history = [{"train": {"epoch": 7.0 + n, "sig": 1.0, "a.b": 2.0}, "a.b": {"c": 3.0}} for n in range(2)]
    add_run(tmp_path, "g", "00000001", [], history)
    experiments = load_grid("g", tmp_path)
    values = {name: curve(experiments, name)["value"].tolist() for name in experiments.metrics}
    assert values == {"train.epoch": [7.0, 8.0], "train.sig": [1.0, 1.0], "train.a.b": [2.0, 2.0], "a.b.c": [3.0, 3.0]}


def test_the_best_rows_follow_the_direction() -> None:
    numbers = [1.0, np.nan, 3.0, 3.0, np.inf]
    assert best_rows(numbers, METRICS["sisnr"].direction) == {2, 3}
    assert best_rows(numbers, METRICS["mel"].direction) == {0}
    assert best_rows(numbers, METRICS["duration"].direction) == set()
    assert best_rows([1.0, np.nan], METRICS["mel"].direction) == set()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (90061, "25:01:01"), (np.nan, "-")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["losses.mdm"]}, r"no parameter losses\.mdm in demo; there are: losses\.mmd"),
        ({"metrics": ["evaluate.sisn"]}, r"evaluate\.sisnr"),
        ({"baseline": {"seed": 1}}, "baseline seed is not among the conditions: losses.mmd"),
        ({"baseline": {"losses.mmd": 3}}, "no runs with losses.mmd=3"),
        ({"baseline": {"losses.mmd": 0}, "seeds": "sede"}, "no parameter 'sede'"),
    ],
)
def test_what_the_grid_does_not_have_is_refused(
    results: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ResultsError, match=message):
        write_report(load_grid("demo", results), tmp_path / "report", ReportOptions(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "report").exists()
    with pytest.raises(ResultsError, match="may be negative"):
        ReportOptions(clips=-1)


def test_the_command_writes_a_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    command = ["report", "demo", "--root", str(results), "--output", str(output), "--clips", "1"]
    command += ["--metric", "evaluate.mi", "--by", "losses.mmd", "--baseline", "losses.mmd=0"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{output / 'index.html'}\n"
    text = (output / "index.html").read_text(encoding="utf-8")
    assert "Against losses.mmd=0" in text and "8 reconstructions left out" in text and "msspec" not in text
    for wrong in (["report", "dmeo", "--root", str(results)], [*command, "--baseline", "losses.mmd"]):
        assert cli.main(wrong) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_a_report_needs_neither_torch_nor_dora() -> None:
    code = "import sys, audiotok.report; sys.exit(any(name in sys.modules for name in ('torch', 'dora', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
