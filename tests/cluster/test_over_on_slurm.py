"""A grid over a grid on a real SLURM, where commands and people interfere: nothing is lost, and nothing hangs."""

import signal
from typing import Any

import pytest

from audiotok.status import experiment_state
from tests.cluster.slurm import TestCluster
from tests.cluster.test_faults_of_commands import Sbatch, sbatch
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, runs_of

__all__ = ["sbatch"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LONG: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 600}


def over(project: TinyProject, *arguments: str, code: int = 0, environ: dict[str, str] | None = None) -> str:
    grid = project.grid_environ(2, **LONG)
    return project.dora("grid", "over", *arguments, code=code, environ={**grid, **(environ or {})})


def test_a_command_is_killed_while_it_submits_and_the_codec_is_cancelled_from_outside(
    cluster: TestCluster, project: TinyProject, sbatch: Sbatch
) -> None:
    project.many(2, **LONG)
    project.wait(lambda: all(runs_of(project.experiment(index=index)) for index in (1, 2)))
    sbatch.plan("kill-after-1")
    over(project, "--no_monitoring", code=-signal.SIGKILL, environ=sbatch.environ)
    assert shown_states(over(project, "--no_monitoring", environ=sbatch.environ)) == ["WAITING", "WAITING"]
    assert sbatch.calls == 2  # one was adopted, one submitted
    ids = [str(project.job(index=index)["job_id"]) for index in (1, 2, 11, 12)]
    assert sorted(cluster.jobs("PENDING")) == sorted(ids[2:])
    assert project.job(index=11)["needs"] == {project.experiment(index=1).name: ids[0]}  # of one that was adopted
    cluster.run("scancel", ids[0])
    said = over(project, "index=11", "--interval", "0.02")  # ends, though nobody looks after the codec's grid
    assert shown_states(said)[-1] == "BLOCKED"
    found = experiment_state(project.experiment(index=11))
    assert found is not None and (found.state, "which is CANCELLED" in found.reason) == ("BLOCKED", True)
    assert sorted(cluster.jobs("PENDING", "RUNNING")) == sorted([ids[1], ids[3]])
    assert not runs_of(project.experiment(index=11))
