"""A grid over a grid: what needs another experiment waits for it, wherever that runs, and is blocked if that fails."""

from typing import Any

import pytest

from audiotok.status import experiment_state
from tests.contract.conftest import House
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, runs_of

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.1}
STUCK: list[dict[str, Any]] = [{"index": 1, "faults": 1}, {"index": 2}]  # the first goes on once it is queued again
ENDLESS: list[dict[str, Any]] = [{"index": 1, "seconds": 600}, {"index": 2, "end": "diverge"}]


def over(project: TinyProject, runs: list[dict[str, Any]], *arguments: str, **environ: str) -> str:
    grid = project.grid_environ(runs, **SHORT)
    return project.dora("grid", "over", *(arguments or ("--no_monitoring",)), environ={**grid, **environ})


def is_stuck(project: TinyProject) -> bool:
    runs = runs_of(project.experiment(index=1))
    return bool(runs) and runs[-1]["to"] == [1, STEPS // 2]


def test_it_waits_for_what_it_needs_and_then_runs_once(house: House) -> None:
    project = house.project
    project.many(STUCK, **SHORT)
    project.wait(lambda: is_stuck(project) and project.verdicts(2)[1] == "COMPLETED")
    needed = project.experiment(index=1).name
    for _ in range(2):
        said = over(project, STUCK)
        assert shown_states(said)[0] == "WAITING" and f"for {needed} (RUNNING)" in said
    assert not project.job(index=12).get("needs")  # what has completed is waited for no more
    before = project.job(index=11) if house.waits_in_queue else {}
    if house.waits_in_queue:
        assert before["needs"] == {needed: project.job(index=1)["job_id"]}
    assert not runs_of(project.experiment(index=1).with_name(str(before.get("sig"))))
    project.requeue(1)
    over(project, STUCK, "--interval", "0.02")  # watches it to its end
    first, second = project.experiment(index=1), project.experiment(index=11)
    assert [len(runs_of(folder)) for folder in (first, second)] == [2, 1]
    assert runs_of(first)[-1]["beat"] <= runs_of(second)[0]["began"]
    assert project.job(index=11)["job_id"] == before.get("job_id", project.job(index=11)["job_id"])
    assert shown_states(over(project, STUCK)) == ["COMPLETED"] * 2


def test_it_is_blocked_where_what_it_needs_fails_and_waits_again_when_that_is_retried(house: House) -> None:
    project = house.project
    said = over(project, ENDLESS, "--interval", "0.02")  # and the watch ends
    assert shown_states(said) == ["BLOCKED"] * 2 and "and 1 more: needs `dora grid many` first" in said
    assert not list(project.outputs.glob("xps/*/job.json"))
    project.many(ENDLESS, **SHORT)
    assert shown_states(over(project, ENDLESS))[0] == "WAITING"
    first, second = project.experiment(index=1), project.experiment(index=2)
    before = project.job(index=1)["job_id"]
    project.dora("info", "-f", first.name, "-C")
    project.wait(lambda: project.verdicts(2) == ["CANCELLED", "DIVERGED"])
    said = over(project, ENDLESS, "--interval", "0.02")
    assert shown_states(said)[-2:] == ["BLOCKED"] * 2
    assert f"needs {first.name}, which is CANCELLED" in said and f"needs {second.name}, which is DIVERGED" in said
    if house.waits_in_queue:
        found = experiment_state(project.experiment(index=11))
        assert found is not None and found.state == "BLOCKED" and first.name in found.reason  # from its files, too
    project.many(ENDLESS, "--retry", **SHORT)
    assert shown_states(over(project, ENDLESS)) == ["WAITING", "BLOCKED"]
    again = project.job(index=1)["job_id"]
    assert again != before
    if house.waits_in_queue:
        waiting = project.job(index=11)
        assert waiting["needs"] == {first.name: again}
        assert shown_states(over(project, ENDLESS, "--no_monitoring", "--retry")) == ["WAITING", "BLOCKED"]
        assert project.job(index=11)["job_id"] == waiting["job_id"]
        over(project, ENDLESS, "--no_monitoring", "-C")
        assert shown_states(over(project, ENDLESS)) == ["CANCELLED", "BLOCKED"]
