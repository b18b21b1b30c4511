"""What a profile says, on a real SLURM: its setup lines, its container, its options against the environment's."""

import json
import os
import shutil
import subprocess as sp
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import assert_nothing_lost, runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FAULTY: dict[str, Any] = {"epochs": 2, "steps": 4, "seconds": 0.5, "faults": 1}
# Stands in for apptainer: the Python of the "image" has a path of its own, and there are no commands of SLURM.
CONTAINER = """#!/bin/sh
echo "$@" >>{calls}
while [ "$1" != image.sif ]; do shift; done
shift
exec env PATH={image}/bin PYTHONPATH="$PYTHONPATH:{path}" "$@"
"""


@pytest.fixture
def container(tmp_path: Path, project: TinyProject) -> Path:
    """Folder of the image; its `calls` has the arguments of the stand-in, which is on PATH."""
    image, commands = tmp_path / "image", tmp_path / "commands"
    (image / "bin").mkdir(parents=True)
    commands.mkdir()
    (image / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    for name in ("env", "sh", "sleep"):
        (image / "bin" / name).symlink_to(str(shutil.which(name)))
    path = os.pathsep.join([project.environ["PYTHONPATH"], *filter(None, sys.path)])
    (commands / "apptainer").write_text(CONTAINER.format(calls=image / "calls", image=image, path=path))
    (commands / "apptainer").chmod(0o755)
    (project.folder / "image.sif").touch()
    project.environ["PATH"] = os.pathsep.join([str(commands), os.environ["PATH"]])
    return image


def doctor(project: TinyProject, *overrides: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run `audiotok doctor --try`; returns its exit code, and its verdict and findings by the names of checks."""
    command = [sys.executable, "-m", "audiotok.cli", "doctor", "--try", *overrides]
    run = sp.run(command, cwd=project.folder, env=project.environ, capture_output=True, text=True, timeout=300)
    lines = [line.split(maxsplit=2) for line in run.stdout.splitlines() if line[:4].strip()]
    assert lines, run.stderr
    return run.returncode, {name: (verdict, found) for verdict, name, found in lines}


def shown_job(cluster: TestCluster, job_id: str) -> dict[str, str]:
    """What `scontrol show job` shows, by name."""
    words = cluster.run("scontrol", "show", "job", "-o", job_id).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_setup_lines_that_fail_and_the_environment(cluster: TestCluster, project: TinyProject, tmp_path: Path) -> None:
    """One launch: three jobs fail in their setup, one keeps what its profile says; sbatch prints a banner."""
    (project.folder / "leave.sh").write_text("exit 0\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(
        f'#!/bin/sh\necho "Welcome, 7 of us"\n{shutil.which("sbatch")} "$@"\necho\n'
    )
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    setups = ["module load cuda", "cd /nowhere", "source leave.sh"]
    runs = [{"index": index, "slurm": {"setup": ["true", line]}} for index, line in enumerate(setups, 1)]
    runs.append({"index": 4, "slurm": {"partition": "main", "time": 5, "setup": ["if true; then", "true", "fi"]}})
    environ = {
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_MEM_PER_CPU": "7",
    }
    environ |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SBATCH_COMMENT": "x", "SBATCH_WCKEY": "mine"}
    project.many(runs, array=False, environ=environ, seconds=0.2)
    first, fourth = (shown_job(cluster, project.job(index=index)["job_id"]) for index in (1, 4))
    expected = {"Partition": "main", "TimeLimit": "00:05:00", "Requeue": "1", "MinMemoryNode": "103M"}
    assert {name: fourth[name] for name in expected} == expected
    assert first["Partition"] == "urgent"  # left open
    project.wait(lambda: project.verdicts(4)[3] == "COMPLETED")
    said = [
        "failed (exit code 127): module load cuda",
        "failed (exit code 1): cd /nowhere",
        "ended the script before the training (exit code 0): source leave.sh",
    ]
    project.wait(lambda: shown_states(project.many(runs, array=False, seconds=0.2))[:3] == ["FAILED"] * 3)
    for index, problem in enumerate(said, 1):
        log = Path(project.job(index=index)["log"]).read_text()
        assert log.splitlines()[-1] == f"error: setup line {problem}"
        assert not runs_of(project.experiment(index=index))


def test_a_job_in_a_container_goes_on_after_its_time_limit(
    cluster: TestCluster, project: TinyProject, container: Path
) -> None:
    project.many(1, slurm={"container": {"image": "image.sif", "mounts": ["/usr"]}}, array=True, **FAULTY)
    folder = project.experiment(index=1)
    project.wait(lambda: bool(runs_of(folder)) and runs_of(folder)[-1]["to"] == [1, 2])
    job_id = project.job(index=1)["job_id"]
    cluster.run("scancel", "--signal=USR2", job_id)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    assert_nothing_lost(project, 1, epochs=2, steps=4)
    runs = runs_of(folder)
    assert [run["restart"] for run in runs] == ["0", "1"] and runs[1]["from"] == [1, 2]
    assert project.job(index=1)["job_id"] == job_id
    task = json.loads((folder / "task.json").read_text())
    assert task["timeouts"] == 1 and task["attempt"] == 1
    assert {run["python"] for run in runs} == {str(container / "bin" / "python3")}
    words = (container / "calls").read_text().splitlines()[0].split()
    binds = [there for word, there in pairwise(words) if word == "--bind"]
    assert binds == [str(project.folder), str(project.outputs), "/usr"]


def test_doctor_tries_the_profile(cluster: TestCluster, project: TinyProject, container: Path) -> None:
    code, found = doctor(project, "+slurm.container={image: image.sif, runtime: apptainer}")
    steps = ["submit", "queue", "start", "output", "torch", "signal"]
    assert [found[f"try:{step}"][0] for step in steps] == ["ok"] * 6, found
    assert not [name for name, (verdict, _) in found.items() if verdict == "fail"], found
    assert code == 0 and found["container"] == ("ok", "here: image.sif")
    assert str(container / "bin" / "python3") in found["try:start"][1]
    assert "by its script" in found["try:signal"][1]
    assert not list(project.outputs.glob(".doctor-*")) and not cluster.jobs("PENDING", "RUNNING")

    code, found = doctor(project, "+slurm.setup=[echo here, module load cuda]")
    assert code == 1
    assert found["try:start"] == ("fail", "setup line failed (exit code 127): module load cuda")
    code, found = doctor(project, "+slurm.setup=[source /nowhere/x.sh]", "+slurm.partition=nowhere")
    assert code == 1 and found["setup"] == ("fail", "not here: /nowhere/x.sh")
    assert found["try:submit"][0] == "fail" and "partition" in found["try:submit"][1]
