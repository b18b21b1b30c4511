"""Dora's commands with our launcher on a real SLURM of two nodes."""

import re
from pathlib import Path

import pytest

from audiotok.status import experiment_state
from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject

pytestmark = pytest.mark.cluster


@pytest.fixture
def project(cluster: TestCluster, tmp_path: Path) -> TinyProject:
    """The tiny project, which finds SLURM by its commands; without a login name, as on a machine of CI."""
    return TinyProject(tmp_path / "project", {**cluster.environ, "USER": "", "LOGNAME": ""})


def state(cluster: TestCluster, job_id: str) -> str:
    """What accounting says of a job, in one word."""
    return (cluster.output("sacct", "-n", "-X", "-P", "-o", "State", "-j", job_id).split() or ["UNKNOWN"])[0]


def info_state(project: TinyProject, folder: Path) -> str:
    said = project.dora("info", "-f", folder.name)
    found = re.search(r"state=(\w+)", said)
    assert found is not None, said
    return found.group(1)


def test_an_array_with_one_that_fails(cluster: TestCluster, project: TinyProject) -> None:
    first = project.states("fleet")
    assert len(first) == 4
    ids = [project.job(index=index)["job_id"] for index in range(1, 5)]
    assert [name.partition("_")[2] for name in ids] == ["0", "1", "2", "3"]  # one array
    project.wait(lambda: {state(cluster, name) for name in ids} == {"COMPLETED", "FAILED"})
    assert project.states("fleet") == ["COM", "COM", "FAI", "COM"]
    assert [project.job(index=index)["job_id"] for index in range(1, 5)] == ids  # nothing is submitted twice
    failed = project.experiment(index=3)
    assert info_state(project, failed) == "FAILED"
    assert "told to fail" in project.dora("info", "-f", failed.name, "-l")
    assert experiment_state(failed) == ("FAILED", "RuntimeError: told to fail")
    assert experiment_state(project.experiment(index=4)) == ("COMPLETED", "")
    assert {span["environ"]["SLURM_CPUS_PER_TASK"] for span in project.spans()} == {"1"}
    assert {span["environ"]["CUDA_VISIBLE_DEVICES"] for span in project.spans()} == {None}

    project.dora("grid", "fleet", "--no_monitoring", "--retry")
    again = project.job(index=3)["job_id"]
    assert again not in ids
    project.wait(lambda: state(cluster, again) == "FAILED")


def test_cancel_a_running_job(cluster: TestCluster, project: TinyProject) -> None:
    project.dora("launch", "--no_tail", "index=5", "seconds=600")
    folder, job_id = project.experiment(index=5), project.job(index=5)["job_id"]
    project.wait(lambda: (folder / "status.json").exists())
    project.wait(lambda: state(cluster, job_id) == "RUNNING")
    assert info_state(project, folder) == "RUNNING"
    assert experiment_state(folder) == ("RUNNING", "")
    project.dora("info", "-f", folder.name, "-C")
    project.wait(lambda: state(cluster, job_id) == "CANCELLED")
    assert info_state(project, folder) == "CANCELLED"
    assert experiment_state(folder) == ("CANCELLED", "")


def test_gpus_cpus_and_memory_reach_the_job(cluster: TestCluster, project: TinyProject) -> None:
    project.dora("launch", "--no_tail", "-g", "1", "index=6")
    project.dora("launch", "--no_tail", "-g", "2", "index=7")
    project.dora("launch", "--no_tail", "index=8")
    for index, gpus in ((6, 1), (7, 2), (8, 0)):
        job_id = project.job(index=index)["job_id"]
        project.wait(lambda job_id=job_id: state(cluster, job_id) == "COMPLETED")  # type: ignore[misc]
        granted = cluster.run("sacct", "-n", "-X", "-P", "-o", "AllocTRES%60", "-j", job_id).strip().split(",")
        assert ("gres/gpu=" + str(gpus) in granted) == (gpus > 0)
        assert f"cpu={max(1, gpus)}" in granted and "node=1" in granted
        assert f"mem={ {0: 103, 1: 103, 2: 205}[gpus] }M" in granted  # 0.1 GB for each GPU
    devices = {span["argv"][0]: span["environ"]["CUDA_VISIBLE_DEVICES"] for span in project.spans()}
    assert devices["index=7"] == "0,1" and devices["index=6"] in ("0", "1") and devices["index=8"] is None


def test_both_nodes_serve_one_job(cluster: TestCluster) -> None:
    assert sorted(cluster.run("srun", "-N2", "-n2", "sh", "-c", "echo $SLURMD_NODENAME").split()) == ["n1", "n2"]


def test_a_partition_that_is_not_there_is_one_line(project: TinyProject) -> None:
    said = project.dora("launch", "--no_tail", "-p", "learn", "index=9", code=2)
    assert re.fullmatch(r"error: SLURM refused the job: .*partition.*", said.strip().splitlines()[-1])


def test_orphans_are_cancelled(cluster: TestCluster, project: TinyProject) -> None:
    submitted = cluster.run("sbatch", "-J", "tinyxp_feed", "-o", "/dev/null", "--array=0-3", "--wrap", "sleep 600")
    job_id = submitted.split()[-1]
    project.dora("info", "index=1")
    (project.outputs / "orphans" / "tinyxp_feed").touch()
    assert f"cancelling orphaned jobs {job_id}" in project.dora("info", "index=1")
    project.wait(lambda: not cluster.output("squeue", "-h", "-j", job_id, "-t", "PENDING,RUNNING"))
    assert not list((project.outputs / "orphans").iterdir())
