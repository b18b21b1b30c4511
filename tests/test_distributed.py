"""Two processes train one experiment: `dora run -d` over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiotok.status import read_status

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_two_processes_train_one_experiment(tmp_path: Path, debug_overrides: list[str]) -> None:
    overrides = [*debug_overrides, "optim.epochs=2", "rvq.q_dropout=true", "rvq.n_q=3"]
    environment = {**os.environ, "AUDIOTOK_OUTPUT_DIR": str(tmp_path), "AUDIOTOK_LAUNCHER": "local"}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(
        [sys.executable, "-m", "dora", "run", "-d", "--ddp_workers", "2", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    (folder,) = (tmp_path / "xps").iterdir()
    assert run.returncode == 0, run.stderr + (folder / "worker_1.log").read_text()
    history = json.loads((folder / "history.json").read_text())
    assert len(history) == 2 and "mmd" in history[1]["evaluate"]
    status = read_status(folder)
    assert status is not None and status["state"] == "COMPLETED" and status["epoch"] == 2
    logs = [(folder / f"solver.log.{rank}").read_text() for rank in (0, 1)]
    summaries = [[line.split("Summary")[1] for line in log.splitlines() if "Valid Summary" in line] for log in logs]
    without_time = [[line.split("duration")[0] for line in lines] for lines in summaries]
    assert without_time[0] == without_time[1], "metrics are averages over the processes"
