"""How jobs end and how it is told: the same words, whichever launcher runs them."""

import os
import re
import signal
from typing import Any

import pytest

from audiotok.results import load_grid
from tests.contract.conftest import House
from tests.fakes.tiny import shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_nothing_lost, runs_of

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.1}
ENDS = ["well", "exception", "mistake", "kill", "diverge", "oom"]
STATES = ["COMPLETED", "FAILED", "FAILED", "FAILED", "DIVERGED", "OUT_OF_MEMORY"]
REASONS = ["", "RuntimeError: told to fail", "no audio in /nowhere", "SIGKILL", "loss is nan", "MemoryError"]


def test_every_end_is_told_with_its_reason(house: House) -> None:
    project = house.project
    runs = [{"index": index, "end": end} for index, end in enumerate(ENDS, start=1)]
    first = project.many(runs, **SHORT)
    assert set(shown_states(first)) <= {"PENDING", "RUNNING", "CONFIGURING", "COMPLETED", "COMPLETING", *STATES}
    project.wait(lambda: project.verdicts(6) == STATES)
    ids = [project.job(index=index)["job_id"] for index in range(1, 7)]
    table = project.many(runs, **SHORT)
    assert shown_states(table) == STATES
    for reason in REASONS:
        assert reason in table
    assert [project.job(index=index)["job_id"] for index in range(1, 7)] == ids  # nothing is submitted twice
    results = load_grid("many", project.outputs).runs.set_index("index")
    assert [results["state"][index] for index in range(1, 7)] == STATES
    for index, reason in enumerate(REASONS, start=1):
        folder = project.experiment(index=index)
        said = project.dora("info", "-f", folder.name, "-l")
        assert f"state={STATES[index - 1]}" in said and reason in said
        assert str(folder) in said and str(project.job(index=index)["log"]) in said
        assert f"index {index} here in {project.folder}" in said
        assert len(runs_of(folder)) == 1
    assert_nothing_lost(project, 1)


def test_a_process_killed_by_somebody_fails(house: House) -> None:
    project = house.project
    project.many(1, seconds=600)
    folder = project.experiment(index=1)
    project.wait(lambda: bool(runs_of(folder)))
    os.kill(runs_of(folder)[0]["pid"], signal.SIGKILL)
    project.wait(lambda: project.verdicts(1) == ["FAILED"])
    table = project.many(1, seconds=600)
    assert shown_states(table) == ["FAILED"] and "SIGKILL" in table


def test_a_time_limit_queues_again_until_it_may_no_more(house: House) -> None:
    project = house.project
    often, never = house.limit, {**house.limit, "max_num_timeout": 0}
    runs = [{"index": 1, "slurm": often}, {"index": 2, "slurm": never}]
    slow = {**SHORT, "faults": 1}
    project.many(runs, array=False, **slow)
    project.wait(lambda: project.verdicts(2) == ["COMPLETED", "TIMEOUT"])
    first, second = (project.experiment(index=index) for index in (1, 2))
    assert runs_of(first)[1]["from"] == [1, STEPS // 2] and len(runs_of(second)) == 1
    assert runs_of(first)[1]["restart"] == house.restarted
    table = project.many(runs, array=False, **slow)
    assert shown_states(table) == ["COMPLETED", "TIMEOUT"] and "time limit" in table
    project.many(runs, "--retry", array=False, **slow)
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)
    assert_nothing_lost(project, 2)
    assert runs_of(second)[1]["from"] == [1, STEPS // 2]


def test_the_log_can_be_followed(house: House) -> None:
    project = house.project
    project.many(1, seconds=600)
    folder = project.experiment(index=1)
    project.wait(lambda: bool(runs_of(folder)))
    tail = project.start("info", "-f", folder.name, "-t")
    assert tail.stdout is not None
    assert any(re.search("index 1 here", line) for line in tail.stdout)
    tail.terminate()
    assert tail.wait(10) == -signal.SIGTERM
