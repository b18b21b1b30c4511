"""A SLURM whose QOS takes no more than four jobs of a user at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.shared import borrowed
from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject
from tests.fakes.witness import EPOCHS, STEPS, assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def limited_cluster() -> Iterator[TestCluster]:
    with borrowed("limited") as running:
        yield running


@pytest.fixture
def project(limited_cluster: TestCluster, tmp_path: Path) -> Iterator[TinyProject]:
    tiny = TinyProject(tmp_path / "project", {**limited_cluster.environ, "USER": "", "LOGNAME": ""})
    yield tiny
    limited_cluster.clear()
    tiny.close()


def test_ten_experiments_go_out_four_at_a_time(limited_cluster: TestCluster, project: TinyProject) -> None:
    options: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.3}
    said = project.many(10, **options)
    assert "QOSMaxSubmitJobPerUserLimit" in said
    assert "4 of 10 are submitted, 6 wait for room: `dora grid many` sends them as jobs end" in said
    assert said.count("not submitted: waits for room") == 6
    watching = project.start("grid", "many", "--interval", "0.02", environ=project.grid_environ(10, **options))
    said, _ = watching.communicate(timeout=180)
    assert watching.returncode == 0, said
    assert_nothing_lost(project, 10)
    assert all(len(runs_of(project.experiment(index=index))) == 1 for index in range(1, 11))
    assert len({project.job(index=index)["job_id"] for index in range(1, 11)}) == 10
    # Accounting comes to know of jobs a little later; nothing was sent twice.
    project.wait(lambda: len(limited_cluster.output("sacct", "-n", "-X", "-P", "-o", "JobID").split()) == 10)


def test_a_single_experiment_without_room_is_one_line(limited_cluster: TestCluster, project: TinyProject) -> None:
    project.many(4, epochs=EPOCHS, steps=STEPS, seconds=600)
    said = project.dora("launch", "--no_tail", "index=9", code=2)
    assert said.splitlines()[-1].startswith("error: ") and "0 of 1 are submitted, 1 wait for room" in said
    project.many(4, "-C", epochs=EPOCHS, steps=STEPS, seconds=600)
    project.dora("launch", "--no_tail", "index=9")
    assert project.job(index=9)["job_id"]
