"""A finished experiment that is extended: a plain `dora grid` has it go on, alone, from where it was."""

import json
import subprocess
import sys

import pytest

from audiotok.status import experiment_state, read_json
from tests.fakes.tiny import TinyProject

pytestmark = pytest.mark.slow


def audiotok(project: TinyProject, *words: str) -> str:
    """Run a command of ours as a user does; returns all it says."""
    command = [sys.executable, "-m", "audiotok.cli", *words]
    done = subprocess.run(command, cwd=project.folder, env=project.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_extended_experiment_goes_on_by_itself(project: TinyProject) -> None:
    project.many(2)
    project.settle()
    one, other = (project.experiment(index=index) for index in (1, 2))
    before = (other / "progress.json").read_bytes()
    found = audiotok(project, "extend", "-P", "tinyxp", one.name, "optim.epochs=3")
    assert f"{one.name}: optim.epochs 2 → 3; 2 epochs are done" in found
    assert experiment_state(one) == ("EXTENDED", "2 of 3 epochs are done")
    plan = project.many(2, "--dry_run")
    assert "1 reuse, 1 retry" in plan and "goes on: 2 of 3 epochs are done" in plan
    project.many(2)
    project.settle()
    assert len(project.book()) == 3 and experiment_state(one) == ("COMPLETED", "")
    progress = read_json(one / "progress.json")
    assert progress is not None and (progress["epoch"], len(progress["history"])) == (3, 3)
    assert [json.loads(path.read_text())["from"] for path in sorted((one / "runs").iterdir())] == [[0, 0], [2, 0]]
    assert (other / "progress.json").read_bytes() == before
    assert "after 2 epochs: optim.epochs 2 → 3" in project.dora("info", "-f", one.name)
    project.many(2)
    assert len(project.book()) == 3  # it is done
