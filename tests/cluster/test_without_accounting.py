"""A SLURM without sacct that forgets jobs within seconds, and takes small arrays only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiotok.status import State
from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FAILURE_STATES = frozenset(state for state in State if state.failed)
SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.1}


@pytest.fixture
def project(bare_cluster: TestCluster, tmp_path: Path) -> Iterator[TinyProject]:
    tiny = TinyProject(tmp_path / "project", {**bare_cluster.environ, "USER": "", "LOGNAME": ""})
    yield tiny
    bare_cluster.clear()
    tiny.close()


def test_every_end_is_told_and_the_monitor_ends(bare_cluster: TestCluster, project: TinyProject) -> None:
    assert not bare_cluster.output("sacct", "-X")
    ends = ["well", "exception", "kill", "well", "well", "well"]
    runs = [{"index": index, "end": end} for index, end in enumerate(ends, start=1)]
    runs[3]["seconds"] = runs[4]["seconds"] = runs[5]["seconds"] = 600.0
    runs[4]["steps"] = 1000  # it hears the signal before SLURM kills it, so that it can report its end itself
    project.many(runs, slurm={"array_parallelism": 5}, **SHORT)
    watching = project.start(
        "grid",
        "many",
        "--interval",
        "0.02",
        environ=project.grid_environ(runs, slurm={"array_parallelism": 5}, **SHORT),
    )
    project.wait(lambda: project.verdicts(3) == ["COMPLETED", "FAILED", "FAILED"])
    ids = [project.job(index=index)["job_id"] for index in range(1, 7)]
    project.wait(lambda: all(runs_of(project.experiment(index=index)) for index in (4, 5, 6)))
    project.dora("info", "-f", project.experiment(index=4).name, "-C")  # cancelled by us
    bare_cluster.run("scancel", ids[4])  # cancelled by somebody else
    project.wait(lambda: ids[4] not in bare_cluster.jobs("RUNNING", "COMPLETING"))  # not ended by the fall of its node
    node = str(runs_of(project.experiment(index=6))[-1]["host"])
    bare_cluster.run("scontrol", "update", f"JobId={ids[5]}", "Requeue=0")
    bare_cluster.kill_node(node)
    bare_cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    said, _ = watching.communicate(timeout=90)  # it ends, as all jobs have
    assert watching.returncode == 0, said
    bare_cluster.start_node(node)
    project.wait(lambda: not bare_cluster.jobs())  # SLURM knows nothing any more
    expected = ["COMPLETED", "FAILED", "FAILED", "CANCELLED", "CANCELLED", "NODE_FAIL"]
    table = project.many(runs, **SHORT)
    assert shown_states(table) == expected
    assert project.verdicts(6) == expected
    assert "told to fail" in table and "SIGKILL" in table


def test_a_job_that_vanished_is_not_waited_for(bare_cluster: TestCluster, project: TinyProject) -> None:
    """Nobody will ever tell what became of it."""
    project.many(5, seconds=600, epochs=EPOCHS, steps=STEPS)
    folders = [project.experiment(index=index) for index in range(1, 6)]
    project.wait(lambda: sum(bool(runs_of(folder)) for folder in folders) == 4)
    bare_cluster.forget_jobs()
    told: list[str] = []

    def is_told() -> bool:
        told[:] = shown_states(project.many(5, seconds=600, epochs=EPOCHS, steps=STEPS))
        return set(told) <= FAILURE_STATES

    project.wait(is_told)
    assert sorted(told) == ["CANCELLED"] + ["NODE_FAIL"] * 4
    assert project.verdicts(5) == told


def test_an_array_is_split_at_what_the_site_takes(bare_cluster: TestCluster, project: TinyProject) -> None:
    asked = {"array_parallelism": 3}
    project.many(25, slurm=asked, epochs=1, steps=1, seconds=0.01)
    ids = [project.job(index=index)["job_id"].split("_") for index in range(1, 26)]
    arrays = list(dict.fromkeys(array for array, _ in ids))
    sizes = [sum(array == name for array, _ in ids) for name in arrays]
    assert len(arrays) == 3 and sum(sizes) == 25 and max(sizes) == 11
    assert [task for array, task in ids if array == arrays[0]] == [str(task) for task in range(11)]
    assert "ArrayTaskThrottle=3" in bare_cluster.run("scontrol", "show", "job", arrays[0])
    project.wait(lambda: project.verdicts(25) == ["COMPLETED"] * 25)
    assert_nothing_lost(project, 25, epochs=1, steps=1)


def test_more_memory_for_what_ran_out_of_it_once(project: TinyProject) -> None:
    runs = [{"index": 1, "need_mb": 140}, {"index": 2, "need_mb": 10_000}, {"index": 3}]
    asked = {"mem_gb": 0.1, "max_mem_gb": 0.15, "oom_mem_factor": 1.5}
    project.many(runs, slurm=asked, **SHORT)
    project.wait(lambda: project.verdicts(3) == ["OUT_OF_MEMORY", "OUT_OF_MEMORY", "COMPLETED"])
    project.many(runs, slurm=asked, **SHORT)
    assert len(runs_of(project.experiment(index=1))) == 1  # not without --retry
    project.many(runs, "--retry", slurm=asked, **SHORT)
    project.wait(lambda: project.verdicts(3) == ["COMPLETED", "OUT_OF_MEMORY", "COMPLETED"])
    assert [run["memory"] for run in runs_of(project.experiment(index=1))] == ["103", "154"]
    said = project.many(runs, "--retry", slurm=asked, **SHORT)
    assert len(runs_of(project.experiment(index=2))) == 2  # once only
    assert "memory" in said
    assert_nothing_lost(project, 1)


@pytest.mark.parametrize(("end", "state"), [("diverge", "DIVERGED"), ("config", "FAILED")])
def test_what_would_fail_again_is_retried_only_by_force(project: TinyProject, end: str, state: str) -> None:
    runs = [{"index": 1, "end": end}, {"index": 2, "end": "exception"}]
    project.many(runs, **SHORT)
    project.wait(lambda: project.verdicts(2) == [state, "FAILED"])
    said = project.many(runs, "--retry", **SHORT)
    project.wait(lambda: len(runs_of(project.experiment(index=2))) == 2 and project.verdicts(2) == [state, "FAILED"])
    assert len(runs_of(project.experiment(index=1))) == 1
    assert "AUDIOTOK_RETRY=force" in said and ("nan" if end == "diverge" else "choose another") in said
    project.many(runs, "--retry", environ={"AUDIOTOK_RETRY": "force"}, **SHORT)
    project.wait(lambda: len(runs_of(project.experiment(index=1))) == 2)
    project.wait(lambda: project.verdicts(2) == [state, "FAILED"])
