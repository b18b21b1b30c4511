"""The real trainer on the real SLURM: an array on real music in which one experiment fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audiotok.results import load_grid
from tests.cluster.slurm import TestCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

GRID = """
from audiotok.explorers import CompressionExplorer

@CompressionExplorer
def explorer(launcher):
    launcher.bind_(solver="compression/debug", device="cpu")
    with launcher.job_array():
        launcher()
        launcher({"losses.mmd": 0.0})
        launcher({"optim.lr": 1e30})
"""


def test_an_array_of_real_experiments(cluster: TestCluster, tmp_path: Path, demo_music: Path) -> None:
    (tmp_path / "data").symlink_to(demo_music.parent)
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "__init__.py").touch()
    (tmp_path / "questions" / "real.py").write_text(GRID)
    environment = {**os.environ, **cluster.environ, "AUDIOTOK_CLUSTER": "cpu", "PYTHONPATH": str(tmp_path)}
    for name in ("AUDIOTOK_OUTPUT_DIR", "AUDIOTOK_LAUNCHER", "USER"):
        environment.pop(name, None)
    # The grids of the repository are one package; a user's own may be another.
    command = [
        sys.executable,
        "-c",
        "import sys; from audiotok import train; train.main.dora.grid_package = 'questions'; "
        "from dora.__main__ import main; sys.argv[0] = 'dora'; main()",
        "-P",
        "audiotok",
    ]

    def dora(*arguments: str) -> str:
        run = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    dora("grid", "real", "--no_monitoring")
    deadline = time.monotonic() + 240
    states: list[str] = []
    while time.monotonic() < deadline and (not states or {"PENDING", "RUNNING", "NOT_STARTED"} & set(states)):
        time.sleep(2)
        states = list(load_grid("real", tmp_path / "outputs").runs["state"])
    runs = load_grid("real", tmp_path / "outputs").runs
    assert sorted(states) == ["COMPLETED", "COMPLETED", "DIVERGED"], runs.to_string()
    failed = runs[runs["state"] == "DIVERGED"].iloc[0]
    assert failed["optim.lr"] == 1e30 and failed["reason"]
    assert runs[runs["state"] == "COMPLETED"]["evaluate.mmd"].notna().all()
    table = dora("grid", "real", "--no_monitoring")
    assert table.count("COM") == 2 and table.count("FAI") == 1
