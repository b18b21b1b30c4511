"""One cluster of each kind for all tests, wherever they stand: brought up with the first, ended after the last."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.slurm import Options, TestCluster
from tests.debian import missing_reason

PACKAGES = ("slurm-wlm", "munge", "slurmdbd", "mariadb-server")
DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
KINDS = {
    "full": Options(),
    "limited": Options(name="limited", qos={"MaxSubmitJobsPerUser": 4}),
    "bare": Options(name="bare", accounting=False, max_array_size=11, min_job_age=2),
}
_running: dict[str, tuple[TestCluster, ExitStack]] = {}
_borrowers: dict[str, int] = {}


def missing() -> str | None:
    """Why there can be no cluster on this machine; None if there can be one, whose packages are then installed."""
    return missing_reason(PACKAGES, DAEMONS) if os.geteuid() == 0 else "a test cluster needs root"


@contextmanager
def borrowed(kind: str) -> Iterator[TestCluster]:
    """A running cluster; where it cannot be had the test is left out, but on CI (CI=true) that is a failure."""
    reason = missing()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    if kind not in _running:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
            running = stack.enter_context(TestCluster(Path(folder), KINDS[kind]))
            _running[kind] = running, stack.pop_all()
    _borrowers[kind] = _borrowers.get(kind, 0) + 1
    try:
        yield _running[kind][0]
    finally:
        _borrowers[kind] -= 1
        if not _borrowers[kind]:
            _running.pop(kind)[1].close()
