"""`dora grid` with a SLURM made of fakes: plan, memory, links, moved folders, code of jobs."""

import contextlib
import os
import signal
import subprocess as sp
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dora.conf import SubmitRules
from dora.explore import Explorer, Launcher
from dora.grid import RunGridArgs

from audiotok.errors import ConfigError, LaunchError
from audiotok.files import module_names
from audiotok.launchers.grid import get_explorer, plan_grid, run_grid
from audiotok.launchers.links import linked, write_links
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.needs import set_waiting, waiting_in
from audiotok.launchers.plan import plan_text
from audiotok.launchers.profile import Profile
from audiotok.launchers.shepherd import GridShepherd
from audiotok.status import State, Verdict, read_json, write_json
from tests.fakes.tiny import REPOSITORY, TinyProject
from tests.launchers.test_shepherd import House, Main, house

__all__ = ["house"]


def calls(project: TinyProject, name: str) -> list[str]:
    path = Path(project.environ["FAKE_SLURM"]) / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def test_a_dry_run_tells_its_plan_and_leaves_no_trace(slurm_project: TinyProject) -> None:
    said = slurm_project.dora("grid", "fleet", "--dry_run")
    assert "Plan of fleet on slurm: 4 experiments (4 new)" in said
    assert not calls(slurm_project, "sbatch")
    assert not [path for path in slurm_project.outputs.rglob("*") if path.is_file()]
    assert not list(slurm_project.outputs.glob("grids/*"))


def test_a_grid_is_one_array_and_is_remembered(slurm_project: TinyProject) -> None:
    said = slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert said.count("PENDING") >= 4 and len(calls(slurm_project, "sbatch")) == 1
    jobs = [slurm_project.job(index=index) for index in range(1, 5)]
    assert [job["job_id"] for job in jobs] == ["101_0", "101_1", "101_2", "101_3"]
    said = slurm_project.dora("grid", "fleet", "--dry_run")
    assert "(4 keep)" in said and "since the last submission" in said
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert len(calls(slurm_project, "sbatch")) == 1


def test_experiments_without_an_array_of_their_own_share_one(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "slow", "--no_monitoring")
    assert [slurm_project.job(index=index)["job_id"] for index in (1, 2, 3)] == ["101_0", "101_1", "101_2"]
    assert len(calls(slurm_project, "sbatch")) == 1


def test_links_of_a_grid_survive_a_move(slurm_project: TinyProject, tmp_path: Path) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    folder = slurm_project.outputs / "grids" / "fleet"
    links = [folder / name for name in linked(folder)]
    readable = sorted(path.name for path in folder.iterdir() if path.name not in linked(folder))
    assert readable[0] == f"index=1,end=well-{slurm_project.experiment(index=1).name}" and len(readable) == 4
    assert len(links) == 4 and all(not link.readlink().is_absolute() and link.is_dir() for link in links)
    links[0].unlink()
    links[0].symlink_to(slurm_project.outputs / "xps" / links[0].name)  # as Dora itself makes them
    jobs = [slurm_project.job(index=index) for index in range(1, 5)]
    queue = "".join(f"{job['job_id']}|PENDING|Priority|{job['token']}|{job['token']}\n" for job in jobs)
    (Path(slurm_project.environ["FAKE_SLURM"]) / "squeue").write_text(queue)
    slurm_project.outputs.rename(tmp_path / "elsewhere")
    environ = {"AUDIOTOK_OUTPUT_DIR": str(tmp_path / "elsewhere")}
    said = slurm_project.dora("grid", "fleet", "--no_monitoring", environ=environ)
    assert said.count("PENDING") >= 4 and len(calls(slurm_project, "sbatch")) == 1
    moved = list((tmp_path / "elsewhere" / "grids" / "fleet").iterdir())
    assert len(moved) == 8 and all(link.resolve().parent == tmp_path / "elsewhere" / "xps" for link in moved)


def test_a_grid_is_launched_by_one_command_at_a_time_and_watched_by_many(slurm_project: TinyProject) -> None:
    lock = SubmitLock(slurm_project.outputs / "locks" / "grid.fleet")
    with lock.hold():
        command = slurm_project.start("grid", "fleet")
        assert any("waiting for" in line and str(os.getpid()) in line for line in command.stdout or [])
        assert not list(slurm_project.outputs.glob("grids/fleet/*")) and not calls(slurm_project, "sbatch")
    assert any("Watching grid" in line for line in command.stdout or [])
    slurm_project.wait(lambda: is_free(lock))  # it watches, and lets others launch
    assert command.poll() is None and len(calls(slurm_project, "sbatch")) == 1
    command.terminate()
    command.communicate()


def is_free(lock: SubmitLock) -> bool:
    with lock.try_hold() as held:
        return held


def test_mending_leaves_anything_else_alone(tmp_path: Path) -> None:
    write_links(tmp_path / "grids" / "none", "xps", [])
    folder = tmp_path / "grids" / "one"
    folder.mkdir(parents=True)
    (folder / "note").write_text("mine")
    (folder / "abc").symlink_to("/gone/xps/abc")
    write_links(folder, "xps", [])
    assert (folder / "abc").readlink() == Path("../../xps/abc") and (folder / "note").read_text() == "mine"


def test_clones_of_the_code_are_snapshots_now(slurm_project: TinyProject) -> None:
    config = slurm_project.folder / "tinyxp" / "config" / "config.yaml"
    config.write_text(config.read_text().replace("dora:\n", "dora:\n  git_save: true\n"))
    said = slurm_project.dora("grid", "fleet", "--no_monitoring", code=2)
    assert "git_save" in said and "snapshot" in said and not calls(slurm_project, "sbatch")


def test_jobs_run_a_snapshot_of_the_code(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    script, *_ = slurm_project.outputs.glob("submissions/*/*.sh")
    (code,) = (slurm_project.outputs / "code").iterdir()
    exports = dict(line.split("=", 1) for line in script.read_text().splitlines() if line.startswith("export "))
    assert exports["export AUDIOTOK_CODE"] == str(code)
    paths, also = exports["export PYTHONPATH"].split("$", 1)
    assert paths.split(":")[0] == str(code / "project") and str(code / REPOSITORY.name) in paths.split(":")
    assert also == "{PYTHONPATH:+:$PYTHONPATH}"
    assert " -u -P -m audiotok.launchers.slurm.inside " in script.read_text()
    assert slurm_project.job(index=1)["code"] == {"sha": code.name, "path": str(code), "commit": ""}
    said = slurm_project.dora("info", "-f", slurm_project.experiment(index=1).name)
    assert f"Code is {code}" in said


def test_info_names_the_commit_of_a_job(slurm_project: TinyProject) -> None:
    commands = (["init", "-q"], ["add", "tinyxp"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"])
    for command in commands:
        sp.run(["git", *command], cwd=slurm_project.folder, check=True)
    with (slurm_project.folder / "tinyxp" / "train.py").open("a") as file:
        file.write("# edited")
    slurm_project.dora("launch", "--no_tail", "index=1")
    commit = slurm_project.job(index=1)["code"]["commit"].removesuffix("-dirty")
    assert f"(commit {commit} with uncommitted changes)" in slurm_project.dora("info", "index=1")


def test_a_live_job_runs_the_code_as_it_is(slurm_project: TinyProject) -> None:
    slurm_project.many(1, slurm={"code": "live"})
    script, *_ = slurm_project.outputs.glob("submissions/*/*.sh")
    assert "PYTHONPATH" not in script.read_text() and " -u -m audiotok" in script.read_text()
    assert slurm_project.job(index=1)["code"] is None and not (slurm_project.outputs / "code").exists()


def test_a_disk_that_cannot_be_written_is_one_line(slurm_project: TinyProject) -> None:
    slurm_project.outputs.mkdir()
    (slurm_project.outputs / "xps").symlink_to("/proc/self")  # nobody can make a folder there
    said = slurm_project.dora("grid", "fleet", "--no_monitoring", code=2)
    assert said.strip().splitlines()[-1].startswith("error: cannot write")
    assert not calls(slurm_project, "sbatch")


def test_a_refusal_is_one_line_and_names_what_is_left(slurm_project: TinyProject) -> None:
    answers = Path(slurm_project.environ["FAKE_SLURM"])
    (answers / "sbatch.fails").write_text("sbatch: error: invalid partition\n")
    said = slurm_project.dora("grid", "fleet", "--no_monitoring", code=2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: SLURM refused the job: ") and "invalid partition" in last
    assert "index=1" in last and "The same command submits the rest" in last
    (answers / "sbatch.fails").unlink()
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert slurm_project.job(index=4)["job_id"] == "101_3"


def test_a_cancel_that_did_not_cancel_is_one_line_and_exit_code_2(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    answers, folder = Path(slurm_project.environ["FAKE_SLURM"]), slurm_project.experiment(index=1)
    for name in ("squeue", "scancel"):
        (answers / f"{name}.fails").write_text("Unable to contact slurm controller\n")
    for command in (["grid", "fleet", "index=1"], ["info", "-f", folder.name], ["launch", "index=1", "seconds=0.3"]):
        said = slurm_project.dora(*command, "-C", code=2)
        assert said.splitlines()[-1].startswith("error: not all jobs could be cancelled: 101_0")
        assert said.count("could be cancelled") == 1 and "Traceback" not in said
    assert not calls(slurm_project, "scancel")  # an id that squeue does not show to be of this job is left alone


def test_who_looks_needs_no_login_name(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1", environ={"USER": "", "LOGNAME": ""})
    said = slurm_project.dora("info", "index=1", environ={"USER": "", "LOGNAME": ""})
    assert "state=PENDING" in said and f"-u {os.getuid()}" in calls(slurm_project, "squeue")[-1]


def test_grids_are_listed_by_their_dotted_names(tmp_path: Path) -> None:
    for name in ("__init__.py", "b.py", "_shared.py", "deep/__init__.py", "deep/a.py", "deep/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert module_names(tmp_path) == ["b", "deep.a"]


def test_an_unknown_grid_lists_those_there_are() -> None:
    main = SimpleNamespace(dora=SimpleNamespace(grid_package="tests.fakes.tinyproject.tinyxp.grids"), package="x")
    with pytest.raises(ConfigError, match="choose one of: fleet, many, over, slow"):
        get_explorer(SimpleNamespace(grid="nope"), cast(Any, main))


def test_flags_of_dora_grid_that_show_one_experiment(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    second = slurm_project.experiment(index=2)
    assert f"{second}\n" in slurm_project.dora("grid", "fleet", "--folder", "1")
    assert "has no log yet" in slurm_project.dora("grid", "fleet", "--log", "1", code=2)
    assert "--tail 9: there are 4 experiments" in slurm_project.dora("grid", "fleet", "--tail", "9", code=2)
    log = Path(slurm_project.job(index=2)["log"])
    log.write_text("step 7\n")
    assert "step 7\n" in slurm_project.dora("grid", "fleet", "--log", "1")
    assert f"{second}\n" in slurm_project.dora("grid", "fleet", "index=2", "--folder", "0")
    assert len(calls(slurm_project, "sbatch")) == 1


def test_patterns_select_and_the_rest_stays(slurm_project: TinyProject) -> None:
    said = slurm_project.dora("grid", "fleet", "!index=1", "0", "--no_monitoring")
    assert said.count("PENDING") >= 1 and slurm_project.job(index=2)["job_id"] == "101"
    name = slurm_project.experiment(index=2).name
    assert {path.name for path in slurm_project.outputs.glob("grids/fleet/*")} == {name, f"index=2,end=well-{name}"}
    assert "(3 new, 1 keep)" in slurm_project.dora("grid", "fleet", "--dry_run")


def test_a_dry_run_may_initialize_and_not_clear(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--dry_run", "--init")
    assert slurm_project.experiment(index=3).is_dir() and not calls(slurm_project, "sbatch")
    assert "exclude each other" in slurm_project.dora("grid", "fleet", "--dry_run", "--clear", code=2)
    for answer in ("n\n", ""):  # the second is the end of the input
        assert "nothing was changed" in slurm_project.dora("grid", "fleet", "--clear", code=1, answer=answer)
    assert slurm_project.experiment(index=3).is_dir() and not calls(slurm_project, "sbatch")


def test_an_index_beyond_the_grid_is_one_line_and_submits_nothing(slurm_project: TinyProject) -> None:
    for arguments in (("9",), ("--trim", "4")):
        said = slurm_project.dora("grid", "fleet", *arguments, "--no_monitoring", code=2)
        assert said.splitlines()[-1].startswith("error: ") and "count from 0" in said and "Traceback" not in said
    assert not calls(slurm_project, "sbatch")


def test_the_watch_ends_with_a_line_and_leaves_the_jobs(slurm_project: TinyProject) -> None:
    command = slurm_project.start("grid", "fleet", "--interval", "0")
    assert command.stdout is not None
    assert any("4 experiments" in line for line in command.stdout)
    command.send_signal(signal.SIGINT)
    said = command.stdout.read()
    assert command.wait(20) == 130 and "Traceback" not in said
    again = "dora -P tinyxp grid fleet --interval 0"
    assert f"Grid: The jobs go on; `{again}` watches them again, `{again} -C` cancels them.\n" in said
    assert "\r" not in said and not calls(slurm_project, "scancel")


def test_what_is_not_a_link_stays_in_the_folder_of_a_grid(slurm_project: TinyProject) -> None:
    folder = slurm_project.outputs / "grids" / "fleet"
    folder.mkdir(parents=True)
    (folder / "note").write_text("mine")
    (folder / "0123abcd").symlink_to("../../xps/0123abcd")  # of an experiment that was deleted
    said = slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert "Cannot load experiment 0123abcd" in said
    assert len(list(folder.iterdir())) == 9 and (folder / "note").read_text() == "mine"


class Grids:
    """Grids of one Dora folder, each a list of indices, run in this process with an engine that takes notes."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house, self.monkeypatch = house, monkeypatch
        monkeypatch.setattr("audiotok.launchers.grid.log", house.said.append)

    def run(
        self,
        name: str,
        indices: Sequence[int],
        *patterns: str,
        room: int | None = None,
        stubborn: Sequence[int] = (),
        rules: SubmitRules | None = None,
        **args: Any,
    ) -> str:
        """Run `dora grid NAME PATTERN…`; returns what it logs.

        Its engine, `self.engine` from then on, takes `room` jobs, and cannot stop those of the indices in `stubborn`.
        """
        shepherd, self.engine = self.house.shepherd()
        self.engine.room = {} if room is None else {None: room}
        self.engine.stubborn = {self.job_id(index) for index in stubborn}

        def open_shepherd(main: Any, log: Any) -> GridShepherd:
            shepherd.log = log
            return shepherd

        def explore(launcher: Launcher) -> None:
            for index in indices:
                launcher(f"index={index}")

        self.monkeypatch.setattr("audiotok.launchers.grid.GridShepherd", open_shepherd)
        self.house.said.clear()
        self.args = RunGridArgs(**{"patterns": list(patterns), "monitor": False, **args})
        self.explorer = Explorer(explore)
        try:
            run_grid(Main(self.house.folder), self.explorer, name, rules, Profile(), self.args)
        finally:
            for index in indices:
                folder = self.folder(index)
                if folder.is_dir():
                    write_json(folder / "frozen.json", {"argv": [f"index={index}"], "delta": [["index", str(index)]]})
        return "\n".join(self.house.said)

    def plan(self, name: str) -> str:
        """What `audiotok plan` shows of the grid that was run last."""
        return plan_text(plan_grid(Main(self.house.folder), self.explorer, name, SubmitRules(), Profile(), self.args))

    def folder(self, index: int) -> Path:
        return self.house.folder / "xps" / f"xindex{index}"

    def job_id(self, index: int) -> str:
        return str((read_json(self.folder(index) / "job.json") or {})["job_id"])

    def links(self, name: str) -> list[str]:
        return sorted(linked(self.house.folder / "grids" / name))

    def end(self) -> None:
        """Let all jobs that wait complete."""
        for job_id, verdict in self.house.states.items():
            if verdict.state is State.PENDING:
                self.house.states[job_id] = Verdict(State.COMPLETED, "")


@pytest.fixture
def grids(house: House, monkeypatch: pytest.MonkeyPatch) -> Grids:
    return Grids(house, monkeypatch)


def replace_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Have the watch call this in place of sleeping, by a clock after which it is then time for another query."""
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += 60.0
        sleep(seconds)

    monkeypatch.setattr("audiotok.launchers.watch.time", SimpleNamespace(sleep=pass_time, monotonic=lambda: now[0]))


def test_what_another_grid_holds_is_not_cancelled_with_the_first(grids: Grids) -> None:
    grids.run("a", [1, 2, 3])
    grids.run("b", [1, 2])
    said = grids.run("a", [3])
    assert grids.engine.cancelled == [] and grids.links("a") == ["xindex3"]
    assert "Left alone: job 101 is no longer of this grid, but of grid b, too: xindex1/index=1" in said
    grids.run("c", [2])
    said = grids.run("b", [])
    assert grids.engine.cancelled == ["101"] and "Canceling job 101, no longer in the grid: xindex1" in said
    assert "but of grid c, too" in said and grids.links("b") == []
    said = grids.run("c", [2], cancel=True)
    assert grids.engine.cancelled == ["102"]


def test_an_explicit_cancel_names_the_other_grids(grids: Grids) -> None:
    for name in "abc":
        grids.run(name, [1, 2])
    said = grids.run("b", [1, 2], "index=2", cancel=True)
    assert grids.engine.cancelled == ["102"]
    assert said == "Canceling job 102 (also of grids a, c): xindex2/index=2"


def test_what_could_not_be_cancelled_is_an_error_after_the_rest(grids: Grids) -> None:
    grids.run("a", [1, 2, 3])
    with pytest.raises(LaunchError, match="not all jobs could be cancelled: 101"):
        grids.run("a", [2, 3, 4], stubborn=[1])
    assert grids.engine.submitted == [["xindex4"]] and "not all jobs could be cancelled: 101" in grids.house.said
    assert grids.links("a") == ["xindex1", "xindex2", "xindex3", "xindex4"]  # the next launch cancels it
    grids.run("a", [2, 3, 4])
    assert grids.engine.cancelled == ["101"] and grids.links("a") == ["xindex2", "xindex3", "xindex4"]
    with pytest.raises(LaunchError, match="not all jobs could be cancelled: 103"):
        grids.run("a", [2, 3, 4], cancel=True, stubborn=[3])
    grids.end()
    grids.run("a", [2, 3, 4], cancel=True)  # what is over already is no failure
    assert grids.engine.cancelled == []


def test_clear_deletes_neither_what_still_runs_nor_what_another_grid_holds(grids: Grids) -> None:
    grids.run("a", [1, 2, 3])
    grids.run("b", [2])
    with pytest.raises(LaunchError, match="not all jobs could be cancelled: 103"):
        grids.run("a", [1, 2, 3], clear=True, stubborn=[3])
    said = "\n".join(grids.house.said)
    assert "--clear cancels 2 experiments of a" in said and "It leaves what is also of grid b: xindex2" in said
    assert "Not deleted, as job 103 still runs: xindex3/index=3" in said
    assert grids.engine.cancelled == ["101"] and grids.engine.submitted == [["xindex1"]]
    assert [grids.job_id(index) for index in (1, 2, 3)] == ["104", "102", "103"]


def test_a_pattern_that_selects_nothing_is_an_error_and_changes_nothing(grids: Grids) -> None:
    with pytest.raises(ConfigError, match=r"none of the 2 experiments of a matches \['index=7'\]"):
        grids.run("a", [1, 2], "index=7")
    assert not (grids.house.folder / "grids").exists()
    grids.run("a", [1, 2])
    flags: list[dict[str, Any]] = [{}, {"cancel": True}, {"clear": True}, {"dry_run": True}]
    for chosen in flags:
        with pytest.raises(ConfigError, match="none of the 1 experiments"):
            grids.run("a", [2], "index=7", **chosen)
        assert grids.engine.cancelled == [] and grids.links("a") == ["xindex1", "xindex2"]
    with pytest.raises(ConfigError, match="none of the 1 experiments"):
        grids.plan("a")


def test_patterns_select_what_left_the_grid_too(grids: Grids) -> None:
    grids.run("a", [1, 2, 3])
    grids.run("a", [3], "index=3")
    grids.run("a", [3], "0")
    assert grids.engine.cancelled == [] and grids.links("a") == ["xindex1", "xindex2", "xindex3"]
    grids.run("a", [3], "!index=1")
    assert grids.engine.cancelled == ["102"] and grids.links("a") == ["xindex1", "xindex3"]


def test_what_waits_for_room_is_shown_planned_and_sent_later(grids: Grids, capsys: pytest.CaptureFixture[str]) -> None:
    said = grids.run("a", [1, 2, 3, 4, 5], room=2)
    assert "2 of 5 are submitted, 3 wait for room: `dora grid a` sends them as jobs end." in said
    table = capsys.readouterr().out
    assert table.count("not submitted: waits for room") == 3 and "3 WAITING, 2 PENDING" in table
    assert "new (3)\n  not submitted: waits for room\n    xindex3" in grids.plan("a")
    said = grids.run("a", [1, 2, 3, 4, 5], "index=3", cancel=True)
    assert said == "1 that wait are not submitted any more."
    assert waiting_in(grids.house.folder, "a") == {"xindex4", "xindex5"}
    grids.run("a", [1, 2, 3, 4, 5], "index=4")
    assert grids.engine.submitted == [["xindex4"]] and waiting_in(grids.house.folder, "a") == {"xindex5"}
    grids.run("a", [1, 2, 3, 4])
    assert grids.engine.submitted == [["xindex3"]] and not waiting_in(grids.house.folder, "a")


def test_what_was_to_be_retried_and_waits_is_sent_by_the_next_command(grids: Grids) -> None:
    grids.run("a", [1, 2])
    for index in (1, 2):
        grids.house.states[grids.job_id(index)] = Verdict(State.FAILED, "")
    grids.run("a", [1, 2], rules=SubmitRules(retry=True), room=1)
    assert grids.engine.submitted == [["xindex1"]]
    assert "retried (1)\n  FAILED; not submitted: waits for room\n    xindex2" in grids.plan("a")
    grids.house.states[grids.job_id(1)] = Verdict(State.FAILED, "")
    grids.run("a", [1, 2])  # without --retry: only what waits
    assert grids.engine.submitted == [["xindex2"]] and not waiting_in(grids.house.folder, "a")


def test_a_scheduler_is_spared_while_all_of_a_grid_waits_for_room(grids: Grids) -> None:
    grids.run("a", [1], room=0)
    assert grids.engine.submitted == []
    shepherd = GridShepherd(Main(grids.house.folder))
    shepherd.engines = {"slurm": grids.engine}
    assert not shepherd.update()  # there is nothing to query
    grids.monkeypatch.setattr(grids.engine, "has_open", lambda: True)  # jobs of other grids
    before = grids.engine.refreshed
    assert shepherd.update() and grids.engine.refreshed == before + 1


def test_the_watch_sends_what_waits_as_jobs_end(grids: Grids, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def sleep(seconds: float) -> None:
        rounds.append(len(grids.house.states))
        grids.end()
        grids.engine.room = {None: 2}

    replace_sleep(monkeypatch, sleep)
    grids.run("a", [1, 2, 3, 4, 5], room=2, monitor=True, interval=0)
    assert grids.engine.submitted == [["xindex1", "xindex2"], ["xindex3", "xindex4"], ["xindex5"]]
    assert len(rounds) == 3 and not waiting_in(grids.house.folder, "a")


def test_the_watch_leaves_what_another_command_launches_cancels_or_submits(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = SubmitLock(grids.house.folder / "locks" / "grid.a")
    rounds: list[None] = []

    def sleep(seconds: float) -> None:
        rounds.append(None)
        grids.end()
        grids.engine.room = {None: 9}
        if len(rounds) == 1:  # another command launches the grid right now
            stack.enter_context(lock.hold())
        else:  # it has cancelled 3, submitted 4, and left 5 for want of room
            set_waiting(grids.house.folder, "a", ["xindex5"])
            stack.close()

    replace_sleep(monkeypatch, sleep)
    with contextlib.ExitStack() as stack:
        grids.run("a", [1, 2, 3, 4, 5], room=2, monitor=True, interval=0)
    assert grids.engine.submitted == [["xindex1", "xindex2"], ["xindex5"]]
    assert len(rounds) == 3


def test_a_watch_that_ends_early_names_what_is_not_submitted(grids: Grids, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    replace_sleep(monkeypatch, sleep)
    with pytest.raises(SystemExit):
        grids.run("a", [1, 2, 3], room=1, monitor=True)
    assert "2 that are not submitted yet" in grids.house.said[-1] and "`dora grid a`" in grids.house.said[-1]


def test_the_watch_goes_on_though_sending_fails(grids: Grids, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = ["no contact", ""]

    def sleep(seconds: float) -> None:
        grids.end()
        grids.engine.room, grids.engine.failure = {None: 9}, failures.pop(0)

    replace_sleep(monkeypatch, sleep)
    monkeypatch.setattr("audiotok.launchers.shepherd.ROOM_S", -1.0)
    with pytest.raises(IndexError):  # the third round would be the last
        grids.run("a", [1, 2, 3], room=1, monitor=True, interval=0)
    assert any("no contact" in line for line in grids.house.said)
    assert grids.engine.submitted == [["xindex1"], ["xindex2", "xindex3"]]
