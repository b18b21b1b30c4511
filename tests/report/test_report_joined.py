"""The report of language models on codecs: the codecs' table, plots of the gap, clips of both heads."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiotok import cli
from audiotok.report import ReportOptions, write_report
from audiotok.report.listening import choose_clips
from audiotok.report.table import codec_columns, compare_conditions, condition_columns, metric_of
from audiotok.results import load_grid
from audiotok.results.plots import intervals
from audiotok.results.statistics import summarize
from tests.results.joined import GRID, codec_sig, fill, measured

CLIPS = [f"{kind}-{n:04d}" for kind in ("prompted_chain", "prompted_parallel", "unprompted_chain") for n in range(4)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six codecs with two language models each, one of which has drawn clips; tests only read it."""
    path = tmp_path_factory.mktemp("outputs")
    fill(path)
    tone = np.sin(np.arange(1600) / 5) / 2
    for place, names in (("reference", CLIPS[:8]), ("epoch_0002", CLIPS)):
        folder = path / "xps" / "1a800100" / "samples" / place
        folder.mkdir(parents=True)
        for name in names:
            soundfile.write(folder / f"{name}.wav", tone, 16000)
            (folder / f"{name}.npy").write_bytes(b"")  # its codes are no clip
    return path


def test_the_page_has_the_codecs_the_gap_and_both_likelihoods(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", GRID, "--root", str(root), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/index.html").read_text()
    codecs = page[page.index('id="codecs-heading"') : page.index('id="runs-heading"')]
    assert codecs.count("<tr>") == 7 and all(codec_sig(w, s) in codecs for w in (0, 10) for s in (1, 2, 3))
    assert "of each codec&#39;s own codes" in page
    statistics = page[page.index('id="statistics-heading"') : page.index('id="plots-heading"')]
    assert all(name in statistics for name in (">gap", ">bits_parallel", ">bits_chain"))
    data = json.loads(re.findall(r'id="report-data">(.*?)</script>', page, re.DOTALL)[0])
    charts = data["charts"]
    metrics = {metric["name"]: metric for metric in charts["metrics"]}
    assert [charts["metrics"][place]["name"] for place in charts["axes"]] == ["evaluate.gap", "codec.evaluate.sisdr"]
    assert (charts["things"], metrics["evaluate.gap"]["n"]) == ("codecs", [3, 3])
    assert metrics["evaluate.bits_chain"]["direction"] == "neutral" and "valid.ce" in [
        one["name"] for one in charts["curves"]
    ]
    assert sorted(run for runs in charts["points"] for run in runs) == list(range(12))
    assert data["runs"]["1a800100 chain"] == "mmd=0, codec.seed=1, seed=1, chain head"
    run = (tmp_path / "report/runs/1a800100.html").read_text()
    assert '<td class="soft">codec</td>' in run


def test_statistics_of_the_page_count_codecs(root: Path) -> None:
    grid = load_grid(GRID, root)
    assert ReportOptions().conditions(grid) == ["codec.losses.mmd"]
    columns = {column.name: column for column in condition_columns(grid, ["codec.losses.mmd"], ["evaluate.gap"])}
    assert [cell.text for cell in columns["codecs"].cells] == ["3", "3"]
    metrics = ["evaluate.gap", "evaluate.ce"]
    row, _ = compare_conditions(grid, ["codec.losses.mmd"], metrics, {"codec.losses.mmd": 0}, "seed")
    assert [one.cells[0] for one in row] == ["3", "3"]
    assert [one.verdict for one in row] == ["better", ""]  # likelihoods of other codes are neither
    assert metric_of(grid, "evaluate.ce").direction == "neutral" == metric_of(grid, "evaluate.bits_chain").direction
    assert metric_of(grid, "codec.evaluate.sisdr").direction == "higher"
    table = {column.name: column for column in codec_columns(grid, ["evaluate.gap", "codec.evaluate.sisdr"], "seed")}
    assert [cell.best for cell in table["evaluate.gap"].cells] == [False, False, False, True, False, False]
    assert [cell.best for cell in table["codec.evaluate.sisdr"].cells] == [False, False, True, False, False, False]


def test_intervals_are_those_of_the_statistics(root: Path) -> None:
    grid = load_grid(GRID, root)
    axes = intervals(grid, ["evaluate.gap"], ["codec.losses.mmd"]).axes[0]
    container: Any = axes.containers[0]
    points, _, (bars,) = container.lines
    means = pd.DataFrame(
        [
            {"mmd": weight, "gap": np.mean([measured(weight, codec, seed)["gap"] for seed in (1, 2)])}
            for weight in (0, 10)
            for codec in (1, 2, 3)
        ]
    )
    expected = summarize(means, ["mmd"], ["gap"], interval="t")
    assert np.allclose(points.get_ydata(), expected["mean"])
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert np.allclose(ends, expected[["low", "high"]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mmd=0 (3 codecs)", "mmd=10 (3 codecs)"]
    both = intervals(grid, ["evaluate.bits_parallel", "evaluate.bits_chain"], ["codec.losses.mmd"]).axes[0]
    assert len(both.containers) == 2 and both.get_legend() is not None


def test_both_heads_are_heard_in_one_clip(root: Path) -> None:
    clips, left_out = choose_clips(load_grid(GRID, root).samples, 4)
    assert left_out == 2 * 2 + 2  # two continuations by both heads, and two from nothing
    assert {clip.name: [take.run for take in clip.takes] for clip in clips} == {
        "prompted-0000": ["reference", "1a800100 parallel", "1a800100 chain"],
        "prompted-0001": ["reference", "1a800100 parallel", "1a800100 chain"],
        "unprompted-0000": ["1a800100 chain"],
        "unprompted-0001": ["1a800100 chain"],
    }


def test_a_page_of_one_codec_and_of_none_that_is_measured(tmp_path: Path) -> None:
    fill(tmp_path, weights=(0,), codec_seeds=(1,))
    write_report(load_grid(GRID, tmp_path), tmp_path / "report")
    assert "codecs-heading" in (tmp_path / "report/index.html").read_text()
    for history in (tmp_path / "xps").glob("*/history.json"):
        history.unlink()
    write_report(load_grid(GRID, tmp_path), tmp_path / "report")
    assert "codecs-heading" in (tmp_path / "report/index.html").read_text()
