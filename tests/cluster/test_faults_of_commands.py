"""What befalls the commands that submit, on a real SLURM: nothing is submitted twice, and nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess as sp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import FAKES, TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.3}
LONG: dict[str, Any] = {**SHORT, "seconds": 600}


class Sbatch:
    """Makes calls of sbatch go wrong; see tests/fakes/sbatch_fault.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "faults"
        (folder / "bin").mkdir()
        self.folder.mkdir()
        (folder / "bin" / "sbatch").symlink_to(FAKES / "sbatch_fault.sh")
        real = shutil.which("sbatch")
        assert real is not None
        path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        self.environ = {"PATH": path, "FAULTS": str(self.folder), "REAL_SBATCH": real}

    def plan(self, fault: str) -> None:
        (self.folder / fault).touch()

    def undo(self, fault: str) -> None:
        (self.folder / fault).unlink()

    def happened(self, fault: str) -> bool:
        return (self.folder / fault).exists()

    @property
    def went(self) -> str:
        """Id of the job that was late, "" as long as SLURM does not have it."""
        found = re.search(r"\d+", (self.folder / "went").read_text()) if self.happened("went") else None
        return found[0] if found else ""

    @property
    def calls(self) -> int:
        """How often sbatch was called."""
        calls = self.folder / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def sbatch(tmp_path: Path) -> Sbatch:
    return Sbatch(tmp_path)


def job_ids(project: TinyProject, count: int) -> list[str]:
    return [str(project.job(index=index)["job_id"]) for index in range(1, count + 1)]


def finish(project: TinyProject, count: int) -> None:
    """Wait for the end, and make sure that each experiment took one process only and lost nothing."""
    project.wait(lambda: project.verdicts(count) == ["COMPLETED"] * count)
    assert_nothing_lost(project, count)
    for index in range(1, count + 1):
        assert len(runs_of(project.experiment(index=index))) == 1


def submitted(cluster: TestCluster, project: TinyProject) -> int:
    """Return how many jobs and tasks of arrays SLURM has had of this project."""
    first = min(int(identity.split("_")[0]) for identity in job_ids(project, 1))
    return sum(int(identity.split("_")[0]) >= first for identity in cluster.jobs())


@pytest.mark.parametrize("fault", ["refuse-2", "lose-answer-2"])
def test_sbatch_fails_half_way_through_an_array(
    cluster: TestCluster, project: TinyProject, sbatch: Sbatch, fault: str
) -> None:
    asked = {"max_array_size": 2}  # five experiments in arrays of two
    sbatch.plan(fault)
    said = project.many(5, slurm=asked, code=2, environ=sbatch.environ, **SHORT)
    assert "SLURM" in said.strip().splitlines()[-1]
    before = sbatch.calls
    assert before == 2
    project.many(5, slurm=asked, environ=sbatch.environ, **SHORT)
    assert sbatch.calls - before == (2 if fault == "refuse-2" else 1)
    finish(project, 5)
    assert submitted(cluster, project) == 5


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_command_is_killed_while_it_submits(
    cluster: TestCluster, project: TinyProject, sbatch: Sbatch, moment: str
) -> None:
    sbatch.plan(f"kill-{moment}-1")
    project.many(3, code=-signal.SIGKILL, environ=sbatch.environ, **SHORT)
    queued = cluster.jobs()
    table = project.many(3, environ=sbatch.environ, **SHORT)
    assert sbatch.calls == (2 if moment == "before" else 1)  # adopted rather than submitted again
    assert len(shown_states(table)) == 3 and "N/A" not in table
    assert moment == "before" or set(job_ids(project, 3)) <= set(queued)
    finish(project, 3)
    assert submitted(cluster, project) == 3


def test_two_people_launch_the_same_grid_at_once(cluster: TestCluster, project: TinyProject, sbatch: Sbatch) -> None:
    sbatch.plan("hold")  # the first stays in sbatch until the second has come to wait for it
    environ = {**project.grid_environ(4, **SHORT), **sbatch.environ}
    first = project.start("grid", "many", "--no_monitoring", environ={**environ, "USER": "ada"})
    project.wait(lambda: sbatch.happened("held"))
    second = project.start("grid", "many", "--no_monitoring", environ={**environ, "USER": "bob"})
    told = [next(line for line in second.stdout or [] if f"(process {first.pid}" in line)]
    sbatch.undo("hold")
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert "ada@" in told[0]
    assert sbatch.calls == 1
    assert all(len(shown_states(text)) == 4 and "N/A" not in text for text in said)
    finish(project, 4)
    assert submitted(cluster, project) == 4


def test_the_controller_dies_while_jobs_run(cluster: TestCluster, project: TinyProject, sbatch: Sbatch) -> None:
    project.many(4, environ=sbatch.environ, **{**SHORT, "faults": 1})
    folders = [project.experiment(index=index) for index in range(1, 5)]
    project.wait(lambda: all(runs_of(folder) for folder in folders))
    cluster.change(MessageTimeout="3")  # every command asks so long for a controller that is not there
    cluster.kill_controller()
    said = project.many(6, code=2, environ=sbatch.environ, **{**SHORT, "faults": 1})
    assert "SLURM" in said.strip().splitlines()[-1] and sbatch.calls == 1, said
    said = project.many(4, environ=sbatch.environ, **{**SHORT, "faults": 1})  # nothing new: the table as it is known
    assert not {"FAILED", "NODE_FAIL", "CANCELLED", "COMPLETED"} & set(shown_states(said)), said
    for index in (1, 2, 3, 4):  # they go on by themselves, and end while nobody is there to hear of it
        assert project.verdicts(4)[index - 1] == "RUNNING"
    cluster.start_controller()
    for identity in job_ids(project, 4):
        cluster.run("scancel", "--signal=USR2", identity)
    project.wait(lambda: project.verdicts(4) == ["COMPLETED"] * 4)
    project.many(6, environ=sbatch.environ, **{**SHORT, "faults": 1})
    for index in (5, 6):
        project.wait(lambda index=index: bool(runs_of(project.experiment(index=index))))  # type: ignore[misc]
        cluster.run("scancel", "--signal=USR2", job_ids(project, 6)[index - 1])
    project.wait(lambda: project.verdicts(6) == ["COMPLETED"] * 6)
    assert_nothing_lost(project, 6)
    assert sbatch.calls == 2 and submitted(cluster, project) == 6


@pytest.fixture
def small_disk(project: TinyProject) -> Iterator[Path]:
    """A disk of 32 MB for the outputs, of which the snapshots of the code take some."""
    project.outputs.mkdir()
    sp.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tiny", project.outputs], check=True)
    yield project.outputs
    sp.run(["umount", "--lazy", project.outputs], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte free."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue


def test_a_full_disk_fails_what_runs_and_loses_nothing(
    cluster: TestCluster, project: TinyProject, small_disk: Path
) -> None:
    slow = {**SHORT, "faults": 1}
    project.many(4, **slow)
    folders = [project.experiment(index=index) for index in range(1, 5)]
    project.wait(lambda: all(runs_of(folder) and runs_of(folder)[-1]["to"] == [1, STEPS // 2] for folder in folders))
    before = set(cluster.jobs())
    fill(small_disk)
    said = project.many(6, code=2, **slow)  # two more cannot be written down, so they are not submitted
    assert "No space left" in said, said
    assert set(cluster.jobs()) == before
    for identity in job_ids(project, 4):
        cluster.output("scancel", "--signal=USR2", identity)
    project.wait(lambda: not cluster.jobs("RUNNING", "COMPLETING"))  # they cannot write a checkpoint
    (small_disk / "ballast").unlink()
    project.many(6, "--retry", **slow)
    for index in (5, 6):
        project.wait(lambda index=index: bool(runs_of(project.experiment(index=index))))  # type: ignore[misc]
        project.wait(lambda index=index: runs_of(project.experiment(index=index))[-1]["to"] == [1, STEPS // 2])  # type: ignore[misc]
        cluster.run("scancel", "--signal=USR2", job_ids(project, 6)[index - 1])
    project.wait(lambda: project.verdicts(6) == ["COMPLETED"] * 6)
    assert_nothing_lost(project, 6)


def test_the_output_folder_moves(cluster: TestCluster, project: TinyProject, tmp_path: Path) -> None:
    runs = [{"index": index, "end": "exception" if index == 3 else "well"} for index in range(1, 5)]
    project.many(runs, **SHORT)
    project.wait(lambda: project.verdicts(4) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"])
    project.wait(lambda: not cluster.jobs("COMPLETING"))
    ids = job_ids(project, 4)
    elsewhere = tmp_path / "archive" / "runs"
    elsewhere.parent.mkdir()
    project.outputs.rename(elsewhere)
    project.outputs = elsewhere
    environ = {"AUDIOTOK_OUTPUT_DIR": str(elsewhere)}
    table = project.many(runs, environ=environ, **SHORT)
    assert shown_states(table) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert job_ids(project, 4) == ids
    failed = project.experiment(index=3)
    said = project.dora("info", "-f", failed.name, "-l", environ=environ)
    assert str(failed) in said and "told to fail" in said
    assert json.loads((project.experiment(index=1) / "history.json").read_text())

    project.many(runs, "--retry", environ=environ, **SHORT)
    assert [old == new for old, new in zip(ids, job_ids(project, 4), strict=True)] == [True, True, False, True]
    project.wait(lambda: len(runs_of(project.experiment(index=3))) == 2)
    project.wait(lambda: project.verdicts(4) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"])
    assert not (project.folder / "outputs").exists()  # nothing was written to where it was
