"""The real trainer on the real SLURM, on real music: arrays, two nodes at once, a stop in the middle of an epoch."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audiotok.results import load_grid
from audiotok.status import experiment_state, read_json
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
# The grids of the repository are one package; a user's own may be another.
DORA = (
    "import sys; from audiotok import train; train.main.dora.grid_package = 'questions'; "
    "from dora.__main__ import main; sys.argv[0] = 'dora'; main()"
)


class Trainer:
    """An empty folder with real music, and `dora -P audiotok` in it."""

    def __init__(self, folder: Path, music: Path, environ: dict[str, str]) -> None:
        (folder / "data").symlink_to(music.parent)
        (folder / "questions").mkdir()
        (folder / "questions" / "__init__.py").touch()
        self.folder, self.outputs = folder, folder / "outputs"
        self.environ = {**os.environ, **environ, "AUDIOTOK_CLUSTER": "cpu", "PYTHONPATH": str(folder)}
        for name in ("AUDIOTOK_OUTPUT_DIR", "AUDIOTOK_LAUNCHER", "USER"):
            self.environ.pop(name, None)

    def dora(self, *arguments: str) -> str:
        return self._run("-c", DORA, "-P", "audiotok", *arguments)

    def audiotok(self, *arguments: str) -> str:
        return self._run("-m", "audiotok.cli", *arguments)

    def _run(self, *arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    def launch(self, *arguments: str) -> Path:
        """Launch one experiment of the debug preset; returns its folder."""
        before = set(self.outputs.glob("xps/*"))
        self.dora("launch", "--no_tail", *arguments)
        (folder,) = set(self.outputs.glob("xps/*")) - before
        return folder

    def log(self, folder: Path) -> str:
        path = Path((read_json(folder / "job.json") or {})["log"])
        return path.read_text(errors="replace") if path.exists() else "no log yet"

    def wait(self, folder: Path, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{experiment_state(folder)}\n{self.log(folder)}"
            time.sleep(0.1)

    def complete(self, folder: Path) -> None:
        """Wait until an experiment is over, with success."""
        live = ("PENDING", "RUNNING", "REQUEUED", "PREEMPTED", "TIMEOUT")

        def is_over() -> bool:
            state = experiment_state(folder)
            return state is not None and state.state not in live

        self.wait(folder, is_over)
        assert experiment_state(folder) == ("COMPLETED", ""), self.log(folder)


@pytest.fixture
def trainer(cluster: TestCluster, tmp_path: Path, demo_music: Path) -> Trainer:
    return Trainer(tmp_path, demo_music, cluster.environ)


def numbers(folder: Path) -> list[dict[str, dict[str, float]]]:
    """The history of an experiment without durations."""
    history = json.loads((folder / "history.json").read_text())
    return [
        {
            stage: {name: value for name, value in metrics.items() if "duration" not in name}
            for stage, metrics in epoch.items()
        }
        for epoch in history
    ]


def test_an_array_of_real_experiments(trainer: Trainer) -> None:
    (trainer.folder / "questions" / "real.py").write_text(GRID)
    trainer.dora("grid", "real", "--no_monitoring")
    deadline = time.monotonic() + 240
    states: list[str] = []
    while time.monotonic() < deadline and (not states or {"PENDING", "RUNNING", "NOT_STARTED"} & set(states)):
        time.sleep(1)
        states = list(load_grid("real", trainer.outputs).runs["state"])
    runs = load_grid("real", trainer.outputs).runs
    assert sorted(states) == ["COMPLETED", "COMPLETED", "DIVERGED"], runs.to_string()
    failed = runs[runs["state"] == "DIVERGED"].iloc[0]
    assert failed["optim.lr"] == 1e30 and failed["reason"]
    assert runs[runs["state"] == "COMPLETED"]["evaluate.mmd"].notna().all()
    table = trainer.dora("grid", "real", "--no_monitoring")
    assert len(re.findall(r"\bCOMPLETED  ", table)) == 2 and len(re.findall(r"\bDIVERGED  ", table)) == 1


def test_two_nodes_of_two_tasks_train_as_one(cluster: TestCluster, trainer: Trainer) -> None:
    (trainer.folder / "questions" / "two.py").write_text(
        "from audiotok.explorers import CompressionExplorer\n"
        "@CompressionExplorer\n"
        "def explorer(launcher):\n"
        "    launcher.slurm_(nodes=2, tasks_per_node=2, cpus_per_task=1, mem_gb=8)\n"
        "    sizes = {'generate.batch_size': 4, 'generate.num_samples': 4}\n"
        "    sizes = {f'dataset.{name}': size for name, size in sizes.items()}\n"
        "    launcher(sizes, solver='compression/debug', device='cpu')\n"
    )
    trainer.dora("grid", "two", "--no_monitoring")
    (folder,) = trainer.outputs.glob("xps/*")
    job_id = (read_json(folder / "job.json") or {})["job_id"]
    trainer.complete(folder)
    history = numbers(folder)
    assert len(history) == 2 and all("train" in epoch and "valid" in epoch for epoch in history)
    granted = cluster.run("sacct", "-n", "-P", "-o", "JobID,NTasks,NNodes", "-j", job_id).split()
    assert f"{job_id}.0|4|2" in granted
    assert "Distributed init: 0/4" in trainer.log(folder)


def test_a_stop_in_the_middle_of_an_epoch_shows_in_no_number(cluster: TestCluster, trainer: Trainer) -> None:
    """Once told that its time is up, once requeued by an operator; its history is that of one left in peace."""
    several = ["solver=compression/debug", "device=cpu", "optim.epochs=2", "optim.updates_per_epoch=120"]
    struck = trainer.launch(*several, "label=struck", "logging.log_updates=20")
    peaceful = trainer.launch(*several, "label=peaceful")
    job_id = str((read_json(struck / "job.json") or {})["job_id"])

    def is_inside(epoch: int) -> bool:
        told = re.findall(r"Train \| Epoch (\d+) \| \d+/120", trainer.log(struck))
        return told[-1:] == [str(epoch)] and cluster.jobs().get(job_id) == "RUNNING"

    trainer.wait(struck, lambda: is_inside(1))
    cluster.run("scancel", "--signal=USR2", job_id)
    trainer.wait(struck, lambda: is_inside(2))
    cluster.run("scontrol", "requeue", job_id)
    trainer.complete(struck)
    trainer.complete(peaceful)
    assert numbers(struck) == numbers(peaceful)
    assert (read_json(struck / "task.json") or {})["attempt"] == 2
    assert len(re.findall(r"Train Summary", trainer.log(struck))) == 2  # no epoch was done twice


def test_a_finished_experiment_is_extended_and_its_grid_trains_it_on(trainer: Trainer) -> None:
    (trainer.folder / "questions" / "short.py").write_text(
        "from audiotok.explorers import CompressionExplorer\n"
        "@CompressionExplorer\n"
        "def explorer(launcher):\n"
        "    sizes = {'optim.epochs': 1, 'optim.updates_per_epoch': 2, 'dataset.evaluate.num_samples': 2}\n"
        "    launcher(sizes, solver='compression/debug', device='cpu')\n"
    )
    trainer.dora("grid", "short", "--no_monitoring")
    (folder,) = trainer.outputs.glob("xps/*")
    trainer.complete(folder)
    before, job = numbers(folder), (read_json(folder / "job.json") or {})["job_id"]
    assert "optim.epochs 1 → 2" in trainer.audiotok("extend", "short", "optim.epochs=2")
    assert experiment_state(folder) == ("EXTENDED", "1 of 2 epochs are done")
    trainer.dora("grid", "short", "--no_monitoring")
    trainer.complete(folder)
    after, (record,) = numbers(folder), (read_json(folder / "amended.json") or {})["amendments"]
    assert len(after) == 2 and after[0]["train"] == before[0]["train"]
    assert (record["epochs_done"], record["keys"]) == (1, {"optim.epochs": [1, 2]})
    text, again = trainer.log(folder), (read_json(folder / "job.json") or {})["job_id"]
    assert "1 epochs done" in text and again != job
    trainer.dora("grid", "short", "--no_monitoring")
    assert (read_json(folder / "job.json") or {})["job_id"] == again  # it is done, and stays so
