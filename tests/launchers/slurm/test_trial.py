"""`audiotok doctor --try` with an engine that is a fake; the real one is in tests/cluster."""

import json
import signal
import subprocess as sp
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Check, Job, Task
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import trial
from audiotok.status import State, Verdict
from tests.fakes.tiny import REPOSITORY

REPORT = {"python": "/opt/python3", "host": "n1", "gpus": 1, "scontrol": "/usr/bin/scontrol"}


class Engine:
    """Goes through these states, a query each; writes what the job would have written with the last."""

    def __init__(self, states: Sequence[str], log: str | None = "", **files: Any) -> None:
        self.states, self.log, self.files = list(states), log, files
        self.cancelled, self.failure = 0, ""

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        if not self.states:
            raise LaunchError("SLURM refused the job")
        self.task, self.profile = tasks[0], profile
        return [Job(self.task.folder, {"job_id": "7", "log": str(self.task.folder / "log")})]

    def refresh(self) -> None:
        self.states = self.states[1:] or self.states
        if len(self.states) == 1:
            for name, content in self.files.items():
                (self.task.folder / f"{name}.json").write_text(json.dumps(content))
            if self.log is not None:
                (self.task.folder / "log").write_text(self.log)

    def verdict(self, job: Job) -> Verdict:
        return Verdict(State(self.states[0]), "Resources" if self.states[0] == "PENDING" else "")

    def cancel(self, jobs: Sequence[Job]) -> None:
        self.cancelled += len(jobs)


def run(monkeypatch: pytest.MonkeyPatch, root: Path, engine: Engine, **values: Any) -> dict[str, Check]:
    opened: Any = lambda _: engine  # noqa: E731
    monkeypatch.setattr(trial, "POLL_S", 0.0)
    monkeypatch.setattr(trial, "QUEUE_S", 0.2)
    return {check.name: check for check in trial.try_job(opened, Profile.from_mapping({"gpus": 1, **values}), root)}


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ["PENDING", "PENDING", "RUNNING", "TIMEOUT"]
    engine = Engine(states, trial=REPORT, task={"state": "TIMEOUT"})
    found = run(monkeypatch, tmp_path / "new", engine, time=1440, partition="gpu")
    assert list(found) == [f"try:{step}" for step in ("submit", "queue", "start", "output", "torch", "signal")]
    assert {check.verdict for check in found.values()} == {"ok"}
    assert "/opt/python3 on n1" in found["try:start"].found and "by the job itself" in found["try:signal"].found
    assert (engine.profile.time, engine.profile.signal_s, engine.profile.partition) == (5, 299, "gpu")
    assert not list((tmp_path / "new").iterdir()) and not engine.cancelled


@pytest.mark.parametrize(
    ("engine", "step", "verdict", "said"),
    [
        (Engine([]), "submit", "fail", "SLURM refused the job"),
        (Engine(["PENDING"]), "queue", "warn", "not started within 0 s (Resources); it is cancelled"),
        (Engine(["RUNNING", "FAILED"], "hi\nerror: setup line failed: cd\n"), "start", "fail", "setup line failed: cd"),
        (Engine(["RUNNING", "FAILED"], ""), "start", "fail", "the log is empty"),
        (Engine(["RUNNING", "COMPLETED"], None), "output", "fail", "the nodes do not see this folder"),
        (Engine(["RUNNING", "TIMEOUT"], trial={**REPORT, "gpus": 0}), "torch", "fail", "torch sees none there"),
        (Engine(["RUNNING", "FAILED"], trial=REPORT, task={"state": "FAILED"}), "signal", "fail", "ended FAILED"),
    ],
)  # fmt: skip
def test_the_step_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, step: str, verdict: str, said: str
) -> None:
    found = run(monkeypatch, tmp_path, engine)
    check = found[f"try:{step}"]
    assert check.verdict == verdict and said in check.found and check.advice
    assert engine.cancelled == (step == "queue")
    assert bool(list(tmp_path.iterdir())) == (step != "submit")  # its log stays


def test_it_is_cancelled_when_the_command_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(["RUNNING"])

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiotok.launchers.slurm.trial.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, engine)
    assert engine.cancelled == 1


def test_the_job_reports_and_waits_for_the_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiotok.launchers.slurm.trial", str(tmp_path)]
    path = f"{REPOSITORY / 'tests' / 'fakes' / 'torch_stub'}:{REPOSITORY}"
    process = sp.Popen(command, env={"PYTHONPATH": path, "PATH": "/nowhere"}, cwd=REPOSITORY)
    try:
        while not (tmp_path / "trial.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
    report = json.loads((tmp_path / "trial.json").read_text())
    assert (report["python"], report["gpus"], report["scontrol"]) == (sys.executable, 0, None)
