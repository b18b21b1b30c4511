"""What one may do to experiments that wait, run or are over: the same commands, whichever launcher has them."""

import json
import shutil
import time
from typing import Any

import pytest

from audiotok.results import load_grid
from audiotok.status import write_json
from tests.contract.conftest import House
from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import EPOCHS, STEPS, assert_never_two_at_once, assert_nothing_lost, runs_of, uninterrupted

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 0.1}
LONG: dict[str, Any] = {**SHORT, "seconds": 600}


def ids(project: TinyProject, count: int) -> list[str]:
    return [str(project.job(index=index)["job_id"]) for index in range(1, count + 1)]


def has_begun(project: TinyProject, *indices: int) -> bool:
    return all(runs_of(project.experiment(index=index)) for index in indices)


def info(project: TinyProject, index: int, *arguments: str) -> str:
    return project.dora("info", "-f", project.experiment(index=index).name, *arguments)


HELPER = """

def helper_added():
    from tinyxp.helper import ADDED

    return ADDED
"""


def test_cancel_one_that_waits_and_one_that_runs(house: House) -> None:
    project = house.project
    project.many(3, slurm=house.slurm, **LONG)
    project.wait(lambda: has_begun(project, 1, 2))
    assert "state=RUNNING" in info(project, 1) and "state=PENDING" in info(project, 3)
    assert project.verdicts(3) == ["RUNNING", "RUNNING", "PENDING"]
    info(project, 3, "-C")
    info(project, 1, "-C")
    project.wait(lambda: project.verdicts(3) == ["CANCELLED", "RUNNING", "CANCELLED"])
    job, status = project.job(index=2), project.experiment(index=2) / "status.json"
    trainer = {"job_id": job["job_id"], "token": job.get("token"), "state": "RUNNING", "updated": time.time()}
    write_json(status, {**trainer, "started": time.time(), "warning": "codebook 2 collapsed"})
    table = project.many(3, slurm=house.slurm, **LONG)
    assert shown_states(table) == ["CANCELLED", "RUNNING", "CANCELLED"]
    assert "codebook 2 collapsed" in table and "state=RUNNING (codebook 2 collapsed)" in info(project, 2)
    assert "state=CANCELLED" in info(project, 1) and "state=CANCELLED" in info(project, 3)
    project.many(3, "-C", slurm=house.slurm, **LONG)
    project.wait(lambda: project.verdicts(3) == ["CANCELLED"] * 3)
    assert list(load_grid("many", project.outputs).runs["state"]) == ["CANCELLED"] * 3
    assert not runs_of(project.experiment(index=3))


def test_retry_runs_again_what_may_end_otherwise(house: House) -> None:
    project = house.project
    ends = {1: "well", 2: "exception", 3: "config", 4: "well"}
    runs = [{"index": index, "end": end, "seconds": 600 if index == 4 else 0.1} for index, end in ends.items()]
    project.many(runs, **SHORT)
    project.wait(lambda: project.verdicts(3) == ["COMPLETED", "FAILED", "FAILED"] and has_begun(project, 4))
    info(project, 4, "-C")
    project.wait(lambda: project.verdicts(4)[3] == "CANCELLED")
    before = ids(project, 4)
    project.many(runs, **SHORT)
    assert ids(project, 4) == before

    said = project.many(runs, "--retry", **SHORT)
    assert [old == new for old, new in zip(before, ids(project, 4), strict=True)] == [True, False, True, False]
    assert "choose another" in said and "AUDIOTOK_RETRY=force" in said
    project.wait(lambda: len(runs_of(project.experiment(index=4))) == 2)
    assert runs_of(project.experiment(index=4))[1]["from"] == runs_of(project.experiment(index=4))[0]["to"]
    project.wait(lambda: len(runs_of(project.experiment(index=2))) == 2 and project.verdicts(2)[1] == "FAILED")

    project.many(runs, "--retry", environ={"AUDIOTOK_RETRY": "force"}, **SHORT)
    project.wait(lambda: len(runs_of(project.experiment(index=3))) == 2)
    assert ids(project, 1) == before[:1]


def test_what_left_the_grid_is_cancelled_and_what_came_is_submitted(house: House) -> None:
    project = house.project
    project.many(2, **LONG)
    project.wait(lambda: has_begun(project, 1, 2))
    before = ids(project, 1)
    project.many([{"index": 1}, {"index": 3}], **LONG)
    project.wait(lambda: project.verdicts(2)[1] == "CANCELLED")
    project.wait(lambda: has_begun(project, 3))
    assert ids(project, 1) == before and project.verdicts(3) == ["RUNNING", "CANCELLED", "RUNNING"]


def test_what_another_grid_holds_goes_on_until_no_grid_holds_it(house: House) -> None:
    project = house.project
    grids = project.folder / "tinyxp" / "grids"
    shutil.copy(grids / "many.py", grids / "other.py")
    project.many(2, **LONG)
    project.dora("grid", "other", "--no_monitoring", environ=project.grid_environ(2, **LONG))
    project.wait(lambda: has_begun(project, 1, 2))
    said = project.many(1, **LONG)
    assert "but of grid other, too" in said and project.verdicts(2) == ["RUNNING", "RUNNING"]
    project.dora("grid", "other", "--no_monitoring", environ=project.grid_environ(1, **LONG))
    project.wait(lambda: project.verdicts(2) == ["RUNNING", "CANCELLED"])
    assert "(also of grid other)" in project.many(1, "-C", **LONG)
    project.wait(lambda: project.verdicts(1) == ["CANCELLED"])


def test_a_replaced_job_has_ended_before_the_next_begins(house: House) -> None:
    project = house.project
    project.many(1, **LONG)
    project.wait(lambda: has_begun(project, 1))
    before = ids(project, 1)
    project.many(1, "--replace", **LONG)
    folder = project.experiment(index=1)
    project.wait(lambda: len(runs_of(folder)) == 2)
    assert ids(project, 1) != before
    assert_never_two_at_once(folder)
    project.wait(lambda: project.verdicts(1) == ["RUNNING"])


def test_a_job_queued_again_on_demand_goes_on_where_it_was(house: House) -> None:
    project = house.project
    project.many(1, **SHORT, faults=1)
    folder = project.experiment(index=1)
    project.wait(lambda: bool(runs_of(folder)) and runs_of(folder)[-1]["to"] == [1, STEPS // 2])
    before = ids(project, 1)
    project.requeue(1)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    assert ids(project, 1) == before
    assert runs_of(folder)[1]["from"] == [1, STEPS // 2]
    assert_nothing_lost(project, 1)


def test_clear_starts_from_nothing(house: House) -> None:
    project = house.project
    project.many(1, **SHORT)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    began = runs_of(project.experiment(index=1))[0]["began"]
    environ = project.grid_environ(1, **SHORT)
    project.dora("grid", "many", "--no_monitoring", "--clear", answer="y\n", environ=environ)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    (run,) = runs_of(project.experiment(index=1))
    assert run["began"] > began and run["from"] == [0, 0]
    assert_nothing_lost(project, 1)


def test_a_dry_run_touches_nothing(house: House) -> None:
    project = house.project
    project.many(2, "--dry_run", **SHORT)
    assert not list(project.outputs.glob("xps/*/job.json"))
    project.many(1, **SHORT)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    said = project.many(2, "--dry_run", **SHORT)
    assert not list(project.outputs.glob("xps/*/job.json"))[1:]
    assert "1 new" in said and "1 reuse" in said


def test_a_configuration_edited_while_a_job_waits_does_not_reach_it(house: House) -> None:
    project = house.project
    project.many([{"index": 1, **LONG}, {"index": 2, **LONG}, {"index": 3}], slurm=house.slurm, **SHORT)
    project.wait(lambda: has_begun(project, 1, 2))
    assert not has_begun(project, 3)
    config = project.folder / "tinyxp" / "config" / "config.yaml"
    config.write_text(config.read_text().replace("children: 0", "children: 1\nnew: 7"))
    info(project, 1, "-C")
    project.wait(lambda: project.verdicts(3)[2] == "COMPLETED")
    folder = project.experiment(index=3)
    frozen = json.loads((folder / "frozen.json").read_text())
    assert frozen["cfg"]["children"] == 0 and "new" not in frozen["cfg"]


@pytest.mark.parametrize("code", ["snapshot", "live"])
def test_code_edited_while_a_job_waits(house: House, code: str) -> None:
    """With a snapshot the job runs what was submitted; `live` what is there when it starts."""
    project, slurm = house.project, {**house.slurm, "code": code}
    train = project.folder / "tinyxp" / "train.py"
    helper = project.folder / "tinyxp" / "helper.py"
    helper.write_text("ADDED = 0\n")
    train.write_text(train.read_text().replace("value * 1103515245", "helper_added() + value * 1103515245"))
    train.write_text(train.read_text() + HELPER)
    project.many([{"index": 1, **LONG}, {"index": 2, **LONG}, {"index": 3}], slurm=slurm, **SHORT)
    project.wait(lambda: has_begun(project, 1, 2))
    assert not has_begun(project, 3)
    helper.write_text("ADDED = 1\n")  # imported late, in the middle of the training
    train.write_text(train.read_text().replace("index {self.cfg.index} here", "index {self.cfg.index} edited"))
    (project.folder / "tinyxp" / "__init__.py").write_text("")
    info(project, 1, "-C")
    project.wait(lambda: project.verdicts(3)[2] == "COMPLETED")
    folder = project.experiment(index=3)
    changed = json.loads((folder / "history.json").read_text()) != uninterrupted(3)
    said = project.dora("info", "-f", folder.name, "-l")
    assert ("index 3 edited in" in said, "index 3 here in" in said) == (code == "live", code == "snapshot")
    assert f"in {project.folder}, from" in said  # the current folder stays the user's
    assert changed is (code == "live")
    assert ("Code is" in said) is (code == "snapshot")
    assert len(list(project.outputs.glob("code/*"))) == (code == "snapshot")


def test_a_mistake_that_was_frozen_can_be_mended(house: House) -> None:
    """Experiment 1 has not trained when the configuration is right again, experiment 2 has."""
    project = house.project
    config = project.folder / "tinyxp" / "config" / "config.yaml"
    right = config.read_text()
    config.write_text(right.replace("data: there", "data: nowhere"))
    project.many(1, **SHORT)
    project.wait(lambda: project.verdicts(1) == ["FAILED"])
    assert "bad data" in project.many(1, "--retry", "--dry_run", **SHORT)  # nothing has changed
    config.write_text(right)
    runs = [{"index": 1}, {"index": 2, "faults": 1}]
    project.many(runs, **SHORT)
    project.wait(lambda: has_begun(project, 2) and runs_of(project.experiment(index=2))[0]["to"][0] == 1)
    info(project, 2, "-C")
    project.wait(lambda: project.verdicts(2) == ["FAILED", "CANCELLED"])
    config.write_text(right.replace("children: 0", "children: 1"))
    first, second = (project.experiment(index=index) for index in (1, 2))
    before = (first / "frozen.json").read_text()

    said = project.many(runs, "--retry", "--dry_run", **SHORT)
    assert "2 retry" in said and (first / "frozen.json").read_text() == before
    assert 'children: 0 → 1, data: "nowhere" → "there"; freezes anew' in said
    assert "children: 0 → 1; it has trained" in said and "AUDIOTOK_RETRY=today" in said
    said = project.many(runs, "--retry", **SHORT)
    assert 'data: "nowhere" → "there"; freezes anew (1 experiment)' in said and "it has trained" in said
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)
    assert (first / "frozen.1.json").read_text() == before and not (second / "frozen.1.json").exists()
    frozen = [json.loads((folder / "frozen.json").read_text())["cfg"] for folder in (first, second)]
    assert [cfg["children"] for cfg in frozen] == [1, 0] and frozen[0]["data"] == "there"

    said = project.many(runs, "--replace_done", environ={"AUDIOTOK_RETRY": "today"}, **SHORT)
    assert "children: 0 → 1; freezes anew (1 experiment)" in said
    assert json.loads((second / "frozen.json").read_text())["cfg"]["children"] == 1
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)


def test_the_daemon_of_the_queue_is_killed(house: House) -> None:
    """Jobs that run go on, those that wait wait, and nothing is told that is not so."""
    project = house.project
    slow = {**SHORT, "seconds": 2.0}
    project.many(4, slurm=house.slurm, **slow)
    project.wait(lambda: has_begun(project, 1, 2))
    house.kill_daemon()
    assert set(project.verdicts(4)) <= {"RUNNING", "PENDING", "COMPLETED"}
    project.wait(lambda: project.verdicts(2) == ["COMPLETED"] * 2)
    house.revive_daemon()
    # A controller that comes back has its jobs running until the nodes have reported to it.
    project.wait(lambda: shown_states(project.many(4, slurm=house.slurm, **slow))[:2] == ["COMPLETED"] * 2)
    project.wait(lambda: project.verdicts(4) == ["COMPLETED"] * 4)
    assert_nothing_lost(project, 4)
    assert all(len(runs_of(project.experiment(index=index))) == 1 for index in range(1, 5))


def test_one_experiment_by_hand(house: House) -> None:
    project = house.project
    words = ["index=1", *(f"{name}={value}" for name, value in SHORT.items())]
    project.dora("launch", "--no_tail", *words)
    project.wait(lambda: project.verdicts(1) == ["COMPLETED"])
    before = ids(project, 1)
    project.dora("launch", "--no_tail", *words)
    assert ids(project, 1) == before
    said = project.dora("info", *words, "-m")
    assert "state=COMPLETED" in said and "\n  loss " in said
    assert_nothing_lost(project, 1)
