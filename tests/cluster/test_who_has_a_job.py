"""Two clusters, two people, ids that come again, on a real SLURM: a job is never taken for another's, nor for gone."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiotok.status import experiment_state, read_json, write_json
from tests.cluster.slurm import TestCluster
from tests.cluster.test_faults_of_commands import Sbatch, job_ids
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_never_two_at_once, assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NOBODY = "65534"
SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.3}
LONG: dict[str, Any] = {**SHORT, "seconds": 600}
HELD: dict[str, Any] = {"sbatch": {"hold": True}}


def run_and_wait(project: TinyProject, slurm: dict[str, Any]) -> list[str]:
    """Launch one experiment that runs and one that waits; return their job ids."""
    runs = [{"index": 1, "slurm": slurm}, {"index": 2, "slurm": {"sbatch": {**slurm.get("sbatch", {}), "hold": True}}}]
    project.many(runs, array=False, **LONG)
    project.wait(lambda: bool(runs_of(project.experiment(index=1))))
    return job_ids(project, 2)


def retry(project: TinyProject, *arguments: str, environ: dict[str, str]) -> str:
    return project.many(2, "--retry", *arguments, array=False, environ=environ, **LONG)


def test_the_clusters_of_one_folder_know_of_each_other(
    cluster: TestCluster, second_cluster: TestCluster, project: TinyProject
) -> None:
    ids = run_and_wait(project, {})
    assert {project.job(index=index)["cluster"] for index in (1, 2)} == {"audiotok"}
    there = dict(second_cluster.environ)
    said = retry(project, environ=there)
    assert shown_states(said) == ["RUNNING", "PENDING"] and job_ids(project, 2) == ids
    assert not second_cluster.jobs("PENDING", "RUNNING")
    retry(project, "-C", environ=there)  # from there, too
    assert not cluster.jobs("PENDING", "RUNNING")
    assert project.verdicts(2) == ["CANCELLED", "CANCELLED"]


def test_a_cluster_that_cannot_see_the_other_leaves_its_jobs(
    cluster: TestCluster, bare_cluster: TestCluster, project: TinyProject
) -> None:
    ids = run_and_wait(project, {})
    there = dict(bare_cluster.environ)
    said = retry(project, environ=there)
    assert shown_states(said) == ["RUNNING", "UNKNOWN"] and "on cluster audiotok, which does not answer here" in said
    said = project.dora("info", "-f", project.experiment(index=2).name, "-C", code=None, environ=there)
    assert f"not all jobs could be cancelled: {ids[1]}: on cluster audiotok" in said
    assert job_ids(project, 2) == ids and not bare_cluster.jobs("PENDING", "RUNNING")
    assert set(cluster.jobs("PENDING", "RUNNING")) == set(ids)
    assert "cancelled" not in project.job(index=2)
    project.many(2, "-C", array=False, **LONG)
    assert set(shown_states(retry(project, environ=there))) <= {"PENDING", "RUNNING"}  # their end is recorded
    assert {project.job(index=index)["cluster"] for index in (1, 2)} == {"bare"}


def test_a_profile_may_name_another_cluster(
    cluster: TestCluster, second_cluster: TestCluster, project: TinyProject
) -> None:
    ids = run_and_wait(project, {"sbatch": {"clusters": "second"}})
    assert {project.job(index=index)["cluster"] for index in (1, 2)} == {"second"}
    assert not cluster.jobs("PENDING", "RUNNING") and set(second_cluster.jobs("PENDING", "RUNNING")) == set(ids)
    said = retry(project, environ={})
    assert shown_states(said) == ["RUNNING", "PENDING"] and "`scontrol release ID`" in said
    assert job_ids(project, 2) == ids
    project.requeue(1)
    project.wait(lambda: len(runs_of(project.experiment(index=1))) == 2)
    project.many(2, "-C", array=False, **LONG)
    assert not second_cluster.jobs("PENDING", "RUNNING")
    assert project.verdicts(2) == ["CANCELLED", "CANCELLED"]


@pytest.fixture
def partner(cluster: TestCluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody to whom SLURM shows no jobs but his own."""
    cluster.change(PrivateData="jobs")
    folder, squeue = tmp_path / "partner", shutil.which("squeue")
    folder.mkdir()
    command = f'exec setpriv --reuid={NOBODY} --clear-groups {squeue} "$@"'
    (folder / "squeue").write_text(f"#!/bin/sh\n{command}\n")
    (folder / "squeue").chmod(0o755)
    cluster.root.chmod(0o755)
    (cluster.root / "slurm.conf").chmod(0o644)
    yield {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    cluster.root.chmod(0o700)


def test_jobs_of_others_may_be_hidden(cluster: TestCluster, project: TinyProject, partner: dict[str, str]) -> None:
    ids = run_and_wait(project, {})
    # SLURM hides them from nobody; what makes them another person's for our command is the user that is recorded.
    for path in [*project.outputs.glob("submissions/*/submission.json"), *project.outputs.glob("xps/*/job.json")]:
        write_json(path, {**(read_json(path) or {}), "uid": 4711, "user": "ada@login"})
    said = retry(project, environ=partner)
    assert shown_states(said) == ["RUNNING", "UNKNOWN"] and "of ada@login, and not listed to others" in said
    assert job_ids(project, 2) == ids and set(cluster.jobs("PENDING", "RUNNING")) == set(ids)
    cluster.run("scancel", ids[0])
    project.wait(lambda: not cluster.jobs("RUNNING", "COMPLETING"))
    assert shown_states(retry(project, environ=partner))[0] != "UNKNOWN"  # it wrote itself how it ended


def test_ids_that_come_again_are_other_jobs(cluster: TestCluster, project: TinyProject) -> None:
    cluster.reset_ids()  # so that ids count from 1 before and after
    project.many(2, **SHORT)
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)
    project.many([{"index": 3}, {"index": 4}], slurm=HELD, **SHORT)
    ours = {*job_ids(project, 2), str(project.job(index=3)["job_id"]), str(project.job(index=4)["job_id"])}
    cluster.reset_ids()
    for _ in range(4):
        cluster.run("sbatch", "--hold", "--array=0-1", "-o", "/dev/null", "--wrap", "sleep 600")
    theirs = cluster.jobs("PENDING")
    assert ours <= theirs.keys()
    # Seconds after its submission a job may not be listed yet, and counts as PENDING.
    project.wait(lambda: shown_states(project.many(4, **SHORT)) == ["COMPLETED"] * 2 + ["CANCELLED"] * 2)
    project.many(4, "-C", **SHORT)
    for index in (1, 3):
        project.dora("info", "-f", project.experiment(index=index).name, "-C")
    assert cluster.jobs("PENDING") == theirs


@pytest.mark.parametrize("arrives", ["before", "after"])
def test_a_job_that_reaches_slurm_late_never_runs_beside_another(
    cluster: TestCluster, project: TinyProject, tmp_path: Path, arrives: str
) -> None:
    """sbatch outlives the command that started it, and gets through after the experiments were submitted again."""
    sbatch = Sbatch(tmp_path)
    sbatch.plan("late-1")
    runs = {**SHORT, "faults": 1 if arrives == "after" else 0}  # with a fault they wait half-way until they start again
    project.many(2, code=-signal.SIGKILL, environ=sbatch.environ, **runs)
    if arrives == "before":
        sbatch.plan("go")
        project.wait(lambda: bool(sbatch.went))
    project.many(2, environ=sbatch.environ, **runs)
    ids = job_ids(project, 2)
    if arrives == "after":
        project.wait(lambda: all(runs_of(project.experiment(index=index)) for index in (1, 2)))
        sbatch.plan("go")
        project.wait(lambda: bool(sbatch.went))
        # Whether the late ones are cancelled while they wait, or start: they do nothing.
        project.wait(lambda: set(cluster.jobs("PENDING", "RUNNING", "COMPLETING")) <= set(ids))
        late = {state for job_id, state in cluster.jobs().items() if job_id.split("_")[0] == sbatch.went}
        assert late and late <= {"FAILED", "CANCELLED"}
        assert job_ids(project, 2) == ids and project.verdicts(2) == ["RUNNING"] * 2
        project.many(2, "-C", environ=sbatch.environ, **runs)
        assert not cluster.jobs("PENDING", "RUNNING")
        project.many(2, "--retry", environ=sbatch.environ, **runs)
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)
    assert_nothing_lost(project, 2)
    for index in (1, 2):
        assert_never_two_at_once(project.experiment(index=index))
    assert sbatch.calls == (1 if arrives == "before" else 3)


def test_a_late_job_that_waits_is_cancelled(cluster: TestCluster, project: TinyProject, tmp_path: Path) -> None:
    sbatch = Sbatch(tmp_path)
    sbatch.plan("late-1")
    project.many(1, code=-signal.SIGKILL, environ=sbatch.environ, slurm=HELD, **LONG)
    project.many(1, environ=sbatch.environ, **LONG)
    (job_id,) = job_ids(project, 1)
    sbatch.plan("go")
    project.wait(lambda: bool(sbatch.went))
    project.many(1, environ=sbatch.environ, **LONG)
    assert list(cluster.jobs("PENDING", "RUNNING", "COMPLETING")) == [job_id] == job_ids(project, 1)


def test_a_script_that_ends_before_python_is_no_result(cluster: TestCluster, project: TinyProject) -> None:
    quits, dummy = {"setup": ["echo there is no such module", "exit 0"]}, {"python": "true"}
    runs: list[dict[str, Any]] = [{"index": 1, "slurm": quits}, {"index": 2, "slurm": dummy}]
    project.many(runs, array=False, **SHORT)
    project.wait(lambda: not cluster.jobs("PENDING", "RUNNING", "COMPLETING"))
    said = project.many(runs, array=False, **SHORT)
    assert shown_states(said) == ["FAILED", "FAILED"] and project.verdicts(2) == ["FAILED", "FAILED"]
    line = "setup line ended the script before the training (exit code 0): exit 0"
    reason = f"ended before Python started: {line}"
    assert experiment_state(project.experiment(index=1)) == ("FAILED", reason)
    project.many(2, "--retry", array=False, **SHORT)
    project.wait(lambda: project.verdicts(2) == ["COMPLETED", "COMPLETED"])


def test_a_submission_that_was_purged_has_one_verdict(cluster: TestCluster, project: TinyProject) -> None:
    project.many(1, slurm=HELD, **LONG)
    shutil.rmtree(next(project.outputs.glob("submissions/*_*")))
    cluster.run("scancel", *job_ids(project, 1))
    assert project.verdicts(1) == ["PENDING"]
    said = project.many(1, slurm=HELD, **LONG)
    assert shown_states(said) == project.verdicts(1) == ["CANCELLED"]
