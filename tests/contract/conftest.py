"""The two places where experiments run, behind one face: what holds for one must hold for the other."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.shared import borrowed
from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject

AT_ONCE = 2  # jobs that run at the same time


class House:
    """The tiny project with a launcher, which has what needs others `waits_in_queue`.

    Attributes:
        project: the project.
        slurm: what a grid asks for, so that AT_ONCE of its jobs run at once.
        limit: a time limit whose signal comes soon, but when a job has certainly begun. SLURM looks at its clock twice
            a minute and signals up to half a minute early: here between 30 and 60 s after the start of the job.
    """

    def __init__(self, project: TinyProject, cluster: TestCluster | None) -> None:
        self.project = project
        self.slurm = {"array_parallelism": AT_ONCE}
        self.limit = {"time": 1, "signal_s": 50} if cluster is None else {"time": 2, "signal_s": 60}
        self.restarted = "0" if cluster is None else "1"
        self._cluster = cluster

    waits_in_queue = True

    def kill_daemon(self) -> None:
        """Kill what looks after the queue: the supervisor of local jobs, the controller of SLURM."""
        if self._cluster is None:
            os.kill(self.project.supervisor_pid(), signal.SIGKILL)
        else:
            self._cluster.kill_controller()

    def revive_daemon(self) -> None:
        """Have the machine bring it back; for local jobs the next command does."""
        if self._cluster is not None:
            self._cluster.start_controller()


@pytest.fixture(scope="session")
def full_cluster() -> Iterator[TestCluster]:
    with borrowed("full") as running:
        yield running


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.cluster)])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    cluster: TestCluster | None = None
    environ = {"AUDIOTOK_LAUNCHER": str(request.param), "CUDA_VISIBLE_DEVICES": "", "USER": "", "LOGNAME": ""}
    if request.param == "slurm":
        cluster = request.getfixturevalue("full_cluster")
        environ |= cluster.environ
    else:
        environ |= {"AUDIOTOK_LOCAL_SLOTS": str(AT_ONCE), "AUDIOTOK_LOCAL_GRACE_S": "5"}
    project = TinyProject(tmp_path / "project", environ)
    yield House(project, cluster)
    if cluster is not None:
        cluster.clear()
    project.close()
