"""What the SLURM launcher asks of SLURM, held against golden scripts, with fakes for all of SLURM's commands."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dora.conf import SlurmConfig

from audiotok.errors import ConfigError
from audiotok.status import experiment_state
from launchers.slurm import sbatch_parameters
from tests.fakes.tiny import REPOSITORY, TinyProject

GOLDEN = REPOSITORY / "tests" / "golden"


def answers(project: TinyProject) -> Path:
    return Path(project.environ["FAKE_SLURM"])


def calls(project: TinyProject, name: str) -> list[str]:
    lines = (answers(project) / "calls").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def script(project: TinyProject) -> str:
    text = (answers(project) / "script").read_text()
    return text.replace(str(project.outputs), "OUTPUTS").replace(sys.executable, "PYTHON")


def test_script_of_an_array_without_gpus(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert script(slurm_project) == (GOLDEN / "sbatch_array_gpus0.sh").read_text()
    jobs = [slurm_project.job(index=index) for index in range(1, 5)]
    assert [job["job_id"] for job in jobs] == ["101_0", "101_1", "101_2", "101_3"]
    assert {job["launcher"] for job in jobs} == {"slurm"}
    assert experiment_state(slurm_project.experiment(index=1)) == ("PENDING", "")
    assert not list((slurm_project.outputs / "orphans").iterdir())


def test_script_of_a_job_with_gpus(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "-g", "2", "-p", "fast", "index=1")
    assert script(slurm_project) == (GOLDEN / "sbatch_gpus2.sh").read_text()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpus": 0}, {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 10, "mem": "40960M", "gres": None}),
        ({"gpus": 0, "cpus_per_task": 3, "mem_per_gpu": 0.5}, {"cpus_per_task": 3, "mem": "512M"}),
        ({"gpus": 3, "mem_per_gpu": 0.0001}, {"ntasks_per_node": 3, "gres": "gpu:3", "mem": "1M"}),
        ({"gpus": 8}, {"nodes": 1, "ntasks_per_node": 8, "gres": "gpu:8", "mem": "327680M"}),
        ({"gpus": 24}, {"nodes": 3, "ntasks_per_node": 8, "gres": "gpu:8", "mem": "327680M"}),
        ({"gpus": 4, "one_task_per_node": True}, {"ntasks_per_node": 1, "cpus_per_task": 40, "gres": "gpu:4"}),
        ({"mem_per_gpu": 0}, {"mem": None}),
        ({"partition": None, "constraint": "", "setup": []}, {"partition": None, "constraint": None, "setup": None}),
        ({}, {"partition": None, "nodelist": None, "comment": None, "qos": None}),
        ({"partition": "main", "nodelist": ["n1", "n2"], "qos": "low"}, {"partition": "main", "nodelist": "n1,n2"}),
        ({"time": 90.0}, {"time": 90}),
        ({"srun_args": ["--mpi=none"]}, {"srun_args": ["--cpus-per-task=10", "--kill-on-bad-exit=1", "--mpi=none"]}),
    ],
)
def test_parameters(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    parameters = sbatch_parameters(replace(SlurmConfig(), **changes))
    assert {name: parameters.get(name) for name in expected} == expected
    assert None not in parameters.values()


@pytest.mark.parametrize("gpus", [-1, 9, 12])
def test_gpus_that_do_not_fill_nodes_are_refused(gpus: int) -> None:
    with pytest.raises(ConfigError, match=f"gpus={gpus}; give 0 to 8"):
        sbatch_parameters(replace(SlurmConfig(), gpus=gpus))


def test_a_refusal_of_slurm_is_one_line_and_leaves_no_orphan(slurm_project: TinyProject) -> None:
    (answers(slurm_project) / "sbatch.fails").write_text("sbatch: error: invalid partition\n")
    said = slurm_project.dora("launch", "--no_tail", "index=1", code=2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: SLURM refused the job: ") and "invalid partition" in last
    (answers(slurm_project) / "sbatch.fails").unlink()
    slurm_project.dora("launch", "--no_tail", "index=1")
    assert len(calls(slurm_project, "squeue")) == 1  # was there a job after all? no
    assert not (answers(slurm_project) / "calls").read_text().count("scancel")
    assert not list((slurm_project.outputs / "orphans").iterdir())


def test_orphans_are_found_without_a_login(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1")
    token = slurm_project.outputs / "orphans" / "tinyxp_1234"
    token.touch()
    (answers(slurm_project) / "squeue.fails").write_text("slurm_load_jobs error: Unable to contact\n")
    slurm_project.dora("info", "index=1", environ={"USER": "nobody-here", "LOGNAME": ""})
    assert token.exists()  # SLURM did not answer: ask again next time
    (answers(slurm_project) / "squeue.fails").unlink()
    (answers(slurm_project) / "squeue").write_text("55\n55\n61\n")
    slurm_project.dora("info", "index=1", environ={"USER": "nobody-here", "LOGNAME": ""})
    assert not token.exists()
    assert calls(slurm_project, "scancel") == ["55 61"]
    assert "-n tinyxp_1234" in calls(slurm_project, "squeue")[-1]


def test_a_job_that_cannot_be_cancelled_does_not_lose_the_rest(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1")
    (answers(slurm_project) / "sacct").write_text("JobID|State|NodeList\n101|RUNNING|n1\n")
    (answers(slurm_project) / "scancel.fails").write_text("scancel: error: Access denied\n")
    (answers(slurm_project) / "sbatch").write_text("Submitted batch job 102\n")
    said = slurm_project.dora("launch", "--no_tail", "--replace", "index=1")
    assert "Not all jobs could be cancelled: scancel: error: Access denied" in said
    assert slurm_project.job(index=1)["job_id"] == "102"


def test_status_of_an_earlier_job_does_not_count(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1")
    folder = slurm_project.experiment(index=1)
    told = {"state": "FAILED", "reason": "no audio", "job_id": "99", "updated": 1.0}
    (folder / "status.json").write_text(json.dumps(told))
    assert experiment_state(folder) == ("PENDING", "")
    (folder / "status.json").write_text(json.dumps({**told, "job_id": "101"}))
    assert experiment_state(folder) == ("FAILED", "no audio")
    (folder / "status.json").write_text(json.dumps({**told, "job_id": "101", "state": "RUNNING"}))
    state = experiment_state(folder)
    assert state is not None and state.state == "STALE"
