"""What the README promises, without SLURM: music, a grid, its table."""

from pathlib import Path

import pytest
import soundfile

from audiotok.results import load_grid
from tests.conftest import run_module

pytestmark = pytest.mark.slow

GRID = "compression.debug"


def test_a_grid_trains_on_real_music_and_comes_back_as_a_table(debug_grid: Path) -> None:
    grid = load_grid(GRID, debug_grid / "outputs")
    assert list(grid.runs["state"]) == ["COMPLETED"] * 4
    assert list(zip(grid.runs["losses.mmd"], grid.runs["seed"], strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for column in ("train.mmd", "valid.mmd", "evaluate.mmd", "valid.msspec", "evaluate.sisdr", "evaluate.mel_distance"):
        assert grid.runs[column].notna().all(), column
    for sig in grid.runs["sig"]:
        samples = debug_grid / "outputs" / "xps" / sig / "samples"
        names = {path.name for path in (samples / "epoch_0002").iterdir()}
        assert names == {path.name for path in (samples / "reference").glob("*.wav")} and names
        info = soundfile.info(samples / "epoch_0002" / names.pop())
        assert (info.samplerate, info.frames) == (16000, 32000)
    table = run_module(debug_grid, "audiotok.cli", "results", GRID, "--check", "--samples")
    assert all(sig in table.stdout for sig in grid.runs["sig"])
    assert "samples" in table.stderr


def test_a_grid_that_is_done_is_not_done_again(debug_grid: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (debug_grid / "outputs").rglob("checkpoint.th")}
    assert len(before) == 4
    run_module(debug_grid, "dora", "-P", "audiotok", "grid", GRID, "--no_monitoring")
    assert before == {path: path.stat().st_mtime_ns for path in (debug_grid / "outputs").rglob("checkpoint.th")}


def test_dora_info_tells_state_and_metrics(debug_grid: Path) -> None:
    (sig, *_) = load_grid(GRID, debug_grid / "outputs").runs["sig"]
    said = run_module(debug_grid, "dora", "-P", "audiotok", "info", "-f", sig, "-m")
    assert "COMPLETED" in said.stdout + said.stderr and "msspec" in said.stdout + said.stderr


def test_a_table_for_a_paper(debug_grid: Path) -> None:
    by = ["--by", "losses.mmd", "--metric", "evaluate.sisdr,evaluate.mi"]
    table = run_module(debug_grid, "audiotok.cli", "results", GRID, *by, "--format", "latex").stdout
    assert table.count(r"\pm") == 4 and r"\begin{tabular}{rrrr}" in table
    compared = run_module(debug_grid, "audiotok.cli", "results", GRID, *by, "--baseline", "losses.mmd=0").stdout
    assert [line.split()[:3] for line in compared.splitlines()[2:]] == [
        ["1", "evaluate.sisdr", "2"],
        ["1", "evaluate.mi", "2"],
    ]
