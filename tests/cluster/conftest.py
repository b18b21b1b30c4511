"""The clusters of all cluster tests, and the tiny project on them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.shared import borrowed
from tests.cluster.slurm import Options, TestCluster
from tests.fakes.tiny import TinyProject


@pytest.fixture(scope="session")
def full_cluster() -> Iterator[TestCluster]:
    with borrowed("full") as running:
        yield running


@pytest.fixture(scope="session")
def running_bare_cluster() -> Iterator[TestCluster]:
    with borrowed("bare") as running:
        yield running


@pytest.fixture(scope="session")
def running_second_cluster(full_cluster: TestCluster) -> Iterator[TestCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        TestCluster(Path(folder), Options(name="second"), beside=full_cluster) as running,
    ):
        yield running


@pytest.fixture
def second_cluster(running_second_cluster: TestCluster) -> Iterator[TestCluster]:
    """A cluster beside `cluster`, with the same users and accounting, free of jobs before and after the test."""
    yield running_second_cluster
    running_second_cluster.clear()


@pytest.fixture
def cluster(full_cluster: TestCluster) -> Iterator[TestCluster]:
    """A cluster with accounting, free of jobs before and after the test."""
    yield full_cluster
    full_cluster.clear()


@pytest.fixture
def bare_cluster(running_bare_cluster: TestCluster) -> Iterator[TestCluster]:
    """A cluster without accounting that forgets its jobs at once and takes arrays of 11 only."""
    yield running_bare_cluster
    running_bare_cluster.clear()


@pytest.fixture
def project(cluster: TestCluster, tmp_path: Path) -> Iterator[TinyProject]:
    """The tiny project, which finds SLURM by its commands; without a login name, as on a machine of CI."""
    tiny = TinyProject(tmp_path / "project", {**cluster.environ, "USER": "", "LOGNAME": ""})
    yield tiny
    cluster.clear()
    tiny.close()
