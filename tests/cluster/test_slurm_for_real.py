"""Dora's commands with our launcher on a real SLURM of two nodes."""

import re

import pytest

from audiotok.status import experiment_state
from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject

pytestmark = pytest.mark.cluster


def state(cluster: TestCluster, job_id: str) -> str:
    """What accounting says of a job, in one word."""
    return (cluster.output("sacct", "-n", "-X", "-P", "-o", "State", "-j", job_id).split() or ["UNKNOWN"])[0]


def test_an_array_with_one_that_fails(cluster: TestCluster, project: TinyProject) -> None:
    first = project.states("fleet")
    assert len(first) == 4
    ids = [project.job(index=index)["job_id"] for index in range(1, 5)]
    assert [name.partition("_")[2] for name in ids] == ["0", "1", "2", "3"]  # one array
    project.wait(lambda: {state(cluster, name) for name in ids} == {"COMPLETED", "FAILED"})
    assert project.states("fleet") == ["COM", "COM", "FAI", "COM"]
    assert experiment_state(project.experiment(index=4)) == ("COMPLETED", "")
    assert {span["environ"]["SLURM_CPUS_PER_TASK"] for span in project.spans()} == {"1"}
    assert {span["environ"]["CUDA_VISIBLE_DEVICES"] for span in project.spans()} == {None}


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
