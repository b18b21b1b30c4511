"""One SLURM for all cluster tests, brought up with the first of them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import TestCluster, missing_reason


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """A running cluster; where it cannot be had the test is left out, but on CI (CI=true) that is a failure."""
    reason = missing_reason(os.environ)
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, TestCluster(Path(folder)) as running:
        yield running
