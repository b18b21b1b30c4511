"""`audiotok plan` and `dora grid --dry_run`, as a user runs them in a project of his own."""

import json
import os
import subprocess as sp
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tiny import TinyProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[TinyProject]:
    tiny = TinyProject(tmp_path / "project", {"AUDIOTOK_LAUNCHER": "local", "CUDA_VISIBLE_DEVICES": ""})
    yield tiny
    tiny.close()


def _audiotok(
    project: TinyProject, *arguments: str, code: int = 0, environ: Mapping[str, str] | None = None
) -> "sp.CompletedProcess[str]":
    """Run `audiotok plan` in the project."""
    done = sp.run(
        [sys.executable, "-m", "audiotok.cli", "plan", "-P", "tinyxp", *arguments],
        cwd=project.folder,
        env={**project.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _plan(project: TinyProject, count: int, *arguments: str, **environ: str) -> dict[str, Any]:
    """The plan of `count` experiments, for machines."""
    environ |= project.grid_environ(count, slurm={"gpus": 0, "time": 30})
    told: dict[str, Any] = json.loads(
        _audiotok(project, "many", *arguments, "--format", "json", environ=environ).stdout
    )
    return told


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """All there is, with times and sizes."""
    skipped = {"__pycache__"}
    found = [path for path in folder.rglob("*") if not skipped & set(path.parts)]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in found if path.is_file()}


def _fake(project: TinyProject, plan: dict[str, Any], index: int, state: str, **status: Any) -> None:
    """Have an experiment of a plan be one that was run: by hand if it is done, else by a job that ended so."""
    folder = project.outputs / "xps" / plan["experiments"][index]["sig"]
    folder.mkdir(parents=True)
    job_id = None if state == "COMPLETED" else f"9_{index}"
    told = {"state": state, "job_id": job_id, "started": 1.0, "updated": 3601.0, "epoch": 5, "epochs": 5, **status}
    (folder / "status.json").write_text(json.dumps(told))
    if job_id is not None:
        verdict = {"state": state, "reason": "told so", "time": 3700.0}
        job = {"job_id": job_id, "launcher": "slurm", "sig": folder.name, "submitted": 0.5, "verdict": verdict}
        (folder / "job.json").write_text(json.dumps(job))


def test_a_fresh_grid_is_all_new_and_nothing_is_written(project: TinyProject) -> None:
    before = _files(project.folder)
    plan = _plan(project, 3)
    assert plan["counts"] == {"new": 3} and plan["launcher"] == "local" and plan["changes"] is None
    assert [one["reason"] for one in plan["experiments"]] == [""] * 3
    assert plan["request"]["gpu_hours"] == 0.0
    assert plan["request"]["cpu_hours"] == sum(one["cpus"] for one in plan["experiments"]) * 0.5
    assert _files(project.folder) == before


def test_dry_run_tells_the_same_and_submits_nothing(project: TinyProject) -> None:
    before = _files(project.folder)
    said = project.many(7, "--dry_run")
    assert "Plan of many on local: 7 experiments (7 new)" in said and "since the last submission" in said
    own = _audiotok(project, "many", environ=project.grid_environ(7)).stdout
    assert [line for line in own.splitlines() if not line.startswith("disk")] == [
        line
        for line in said.splitlines()
        if not line.startswith("disk")  # where others write, too
    ]
    assert _files(project.folder) == before


def test_what_has_run_is_reused_retried_or_blocked(project: TinyProject) -> None:
    plan = _plan(project, 4)
    _fake(project, plan, 0, "COMPLETED", epoch_s=720.0)
    _fake(project, plan, 1, "FAILED", kind="data")
    _fake(project, plan, 2, "TIMEOUT")
    actions = [one["action"] for one in _plan(project, 4)["experiments"]]
    assert actions == ["reuse", "keep", "keep", "new"]
    retried = _plan(project, 4, "--retry")
    assert retried["counts"] == {"new": 1, "reuse": 1, "retry": 1, "blocked": 1}
    assert "bad data" in retried["experiments"][1]["reason"]
    assert retried["request"]["finished"] == 1 and retried["request"]["disk_bytes"] > 0
    forced = _plan(project, 4, "--retry", AUDIOTOK_RETRY="force")
    assert forced["counts"] == {"new": 1, "reuse": 1, "retry": 2}
    said = _audiotok(project, "many", "--retry", environ=project.grid_environ(4)).stdout
    assert "AUDIOTOK_RETRY=force dora grid many --retry" in said


def test_what_left_the_grid_is_cancelled_and_what_changed_is_told(project: TinyProject) -> None:
    project.many(2, seconds=600)
    said = _audiotok(project, "many", environ=project.grid_environ([{"index": 1}, {"index": 9}], seconds=600))
    assert "(1 new, 1 keep, 1 cancel)" in said.stdout and "cancelled: no longer in the grid (1)" in said.stdout
    assert "    + seconds=600.0 index=9\n" in said.stdout and "    - seconds=600.0 index=2\n" in said.stdout
    assert "Canceling" not in said.stderr  # it does not
    assert set(project.book().values()) <= {"PENDING", "RUNNING"}


def test_patterns_and_resources_are_those_of_dora_grid(project: TinyProject) -> None:
    one = _plan(project, 3, "index=2")
    assert [entry["name"] for entry in one["experiments"]] == ["index=2"]
    asked = json.loads(_audiotok(project, "slow", "--format", "json", "-g", "2").stdout)
    assert {entry["gpus"] for entry in asked["experiments"]} == {0}  # the grid file has the last word, as in Dora


def test_mistakes_are_one_line(project: TinyProject) -> None:
    assert _audiotok(project).stdout.split() == ["fleet", "many", "over", "slow"]
    failed = _audiotok(project, "none", code=2)
    assert failed.stdout == "" and "choose one of: fleet, many, over, slow" in failed.stderr.splitlines()[-1]
    gone = _audiotok(project, "many", "-P", "gone", code=2)
    assert gone.stderr.startswith("error: no module gone.train") and len(gone.stderr.splitlines()) == 1


def test_no_package_needs_to_be_named_where_audiotok_is_the_project() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DORA", "AUDIOTOK"))}
    command = [sys.executable, "-m", "audiotok.cli", "plan"]
    said = sp.run(command, env=environ, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "compression.encodec_mmd_32khz" in said.split()
