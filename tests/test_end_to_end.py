"""What the README promises, without SLURM: music, a grid, its table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from audiotok.results import load_grid

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_CLUSTER": "cpu"}
    environment.pop("AUDIOTOK_OUTPUT_DIR", None)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_a_grid_trains_on_real_music_and_comes_back_as_a_table(tmp_path: Path, demo_music: Path) -> None:
    # From an empty folder: manifests, outputs and the local queue count from where dora is run.
    (tmp_path / "data").symlink_to(demo_music.parent)
    command = ["dora", "-P", "audiotok", "grid", "compression.debug"]
    run(tmp_path, *command, "--interval", "0.05")  # watches until all is done

    grid = load_grid("compression.debug", tmp_path / "outputs")
    assert list(grid.runs["state"]) == ["COMPLETED", "COMPLETED"]
    assert sorted(grid.runs["losses.mmd"]) == [0.0, 1.0]
    for column in ("train.mmd", "valid.mmd", "evaluate.mmd", "valid.msspec", "evaluate.sisnr", "evaluate.mel"):
        assert grid.runs[column].notna().all(), column
    for sig in grid.runs["sig"]:
        samples = tmp_path / "outputs" / "xps" / sig / "samples"
        names = {path.name for path in (samples / "epoch_0002").iterdir()}
        assert names == {path.name for path in (samples / "reference").iterdir()} and names
        info = soundfile.info(samples / "epoch_0002" / names.pop())
        assert (info.samplerate, info.frames) == (16000, 32000)

    table = run(tmp_path, "audiotok.cli", "results", "compression.debug", "--check", "--samples")
    assert all(sig in table.stdout for sig in grid.runs["sig"])
    assert "samples" in table.stderr

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("checkpoint.th")}
    run(tmp_path, *command, "--no_monitoring")  # a second time: nothing is done again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("checkpoint.th")}

    (sig, *_) = grid.runs["sig"]
    told = run(tmp_path, "dora", "-P", "audiotok", "info", "-f", sig, "-m").stdout
    told += run(tmp_path, "dora", "-P", "audiotok", "info", "-f", sig, "-m").stderr
    assert "COMPLETED" in told and "msspec" in told
