"""What befalls jobs on a real SLURM: whatever it is, each experiment ends as if nothing had happened.

Each experiment waits in the middle of its second epoch until it was started anew (`faults` of the tiny project), so
a fault always strikes work that is under way.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

HALF = [1, STEPS // 2]
FAULTY: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.5, "faults": 1}


def folders(project: TinyProject, count: int) -> list[Path]:
    return [project.experiment(index=index) for index in range(1, count + 1)]


def is_half_way(folder: Path) -> bool:
    runs = runs_of(folder)
    return bool(runs) and runs[-1]["to"] == HALF


def start_half_way(project: TinyProject, count: int, **slurm: object) -> list[Path]:
    """Launch an array and wait until every experiment is in the middle of its second epoch."""
    project.many(count, slurm=slurm, **FAULTY)
    found = folders(project, count)
    project.wait(lambda: all(is_half_way(folder) for folder in found))
    return found


def is_done(project: TinyProject, count: int) -> bool:
    return project.verdicts(count) == ["COMPLETED"] * count


@pytest.mark.parametrize("partition", ["main", "patient"])
def test_preempted_jobs_go_on_where_they_were(cluster: TestCluster, project: TinyProject, partition: str) -> None:
    """In `patient` SLURM gives a job a minute to leave by itself; it must be queued again nevertheless."""
    found = start_half_way(project, 4, partition=partition)
    ids = [project.job(index=index)["job_id"] for index in range(1, 5)]
    cluster.preempt()
    seen: set[str] = set()

    def is_over() -> bool:
        verdicts = project.verdicts(4)
        seen.update(verdicts)
        return set(verdicts) == {"COMPLETED"}

    project.wait(is_over)
    assert_nothing_lost(project, 4)
    for folder in found:
        runs = runs_of(folder)
        assert len(runs) == 2 and runs[1]["from"] == HALF  # from the checkpoint written on the signal
        assert runs[1]["restart"] == "1"
    assert [project.job(index=index)["job_id"] for index in range(1, 5)] == ids  # queued again, not submitted again
    assert seen <= {"RUNNING", "PENDING", "REQUEUED", "PREEMPTED", "COMPLETED"}
    assert shown_states(project.many(4, "--retry", slurm={"partition": partition}, **FAULTY)) == ["COMPLETED"] * 4


def test_jobs_cancelled_by_hand_are_told_and_retried(cluster: TestCluster, project: TinyProject) -> None:
    project.many(6, **FAULTY)
    found = folders(project, 6)
    project.wait(lambda: sum(is_half_way(folder) for folder in found) == 4)  # the cluster has four cores
    ids = {index: project.job(index=index)["job_id"] for index in range(1, 7)}
    states = cluster.jobs()
    running = next(index for index in ids if states[ids[index]] == "RUNNING")
    pending = next(index for index in ids if states[ids[index]] == "PENDING")
    cluster.run("scancel", ids[running], ids[pending])
    struck = sorted([running, pending])
    expected = ["CANCELLED" if index in struck else "RUNNING" for index in ids]

    def is_told() -> bool:
        return [state.replace("PENDING", "RUNNING") for state in shown_states(project.many(6, **FAULTY))] == expected

    project.wait(is_told)
    verdicts = project.verdicts(6)
    assert [index for index in ids if verdicts[index - 1] == "CANCELLED"] == struck
    assert {index: project.job(index=index)["job_id"] for index in ids} == ids  # not without --retry

    project.many(6, "--retry", **FAULTY)
    again = {index for index in ids if project.job(index=index)["job_id"] != ids[index]}
    assert sorted(again) == struck
    assert runs_of(project.experiment(index=running))[0]["to"] == HALF
    for index in ids:  # the others wait for their fault
        if index != running:
            cluster_stops(cluster, project, index)
    project.wait(lambda: is_done(project, 6))
    assert_nothing_lost(project, 6)
    assert runs_of(project.experiment(index=running))[1]["from"] == HALF


def cluster_stops(cluster: TestCluster, project: TinyProject, index: int) -> None:
    """Have SLURM tell an experiment that its time is up, as soon as it is half-way."""
    folder = project.experiment(index=index)
    project.wait(lambda: is_half_way(folder))
    cluster.run("scancel", "--signal=USR2", project.job(index=index)["job_id"])


def test_a_node_that_falls_over_takes_nothing_along(cluster: TestCluster, project: TinyProject) -> None:
    cluster.change(SlurmdTimeout="5")
    found = start_half_way(project, 4)
    struck = [folder for folder in found if runs_of(folder)[-1]["host"] == "n1"]
    assert len(struck) == 2
    cluster.kill_node("n1")
    project.wait(lambda: any(state.startswith("down") for state in cluster.node_states()))
    cluster.start_node("n1")
    project.wait(lambda: all(len(runs_of(folder)) == 2 for folder in struck))
    for index, folder in enumerate(found, start=1):
        if folder not in struck:
            cluster_stops(cluster, project, index)
    project.wait(lambda: is_done(project, 4))
    assert_nothing_lost(project, 4)
    for folder in struck:
        assert runs_of(folder)[1]["from"] == [1, 0]  # from the last checkpoint: nobody was there to write another
