"""`dora grid` with a SLURM made of fakes: plan, memory, links, moved folders, code of jobs."""

import os
import signal
import subprocess as sp
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiotok.errors import ConfigError
from audiotok.launchers.grid import _write_links, get_explorer, list_grids
from audiotok.launchers.lock import SubmitLock
from tests.fakes.tiny import REPOSITORY, TinyProject


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
    links = list(slurm_project.outputs.glob("grids/fleet/*"))
    assert len(links) == 4 and all(not link.readlink().is_absolute() and link.is_dir() for link in links)
    links[0].unlink()
    links[0].symlink_to(slurm_project.outputs / "xps" / links[0].name)  # as Dora itself makes them
    slurm_project.outputs.rename(tmp_path / "elsewhere")
    environ = {"AUDIOTOK_OUTPUT_DIR": str(tmp_path / "elsewhere")}
    said = slurm_project.dora("grid", "fleet", "--no_monitoring", environ=environ)
    assert said.count("PENDING") >= 4 and len(calls(slurm_project, "sbatch")) == 1
    moved = list((tmp_path / "elsewhere" / "grids" / "fleet").iterdir())
    assert len(moved) == 4 and all(link.resolve().parent == tmp_path / "elsewhere" / "xps" for link in moved)


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
    _write_links(tmp_path / "grids" / "none", "xps", [])
    folder = tmp_path / "grids" / "one"
    folder.mkdir(parents=True)
    (folder / "note").write_text("mine")
    (folder / "abc").symlink_to("/gone/xps/abc")
    _write_links(folder, "xps", [])
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


def test_who_looks_needs_no_login_name(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1", environ={"USER": "", "LOGNAME": ""})
    said = slurm_project.dora("info", "index=1", environ={"USER": "", "LOGNAME": ""})
    assert "state=PENDING" in said and f"-u {os.getuid()}" in calls(slurm_project, "squeue")[-1]


def test_grids_are_listed_by_their_dotted_names(tmp_path: Path) -> None:
    for name in ("__init__.py", "b.py", "_shared.py", "deep/__init__.py", "deep/a.py", "deep/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_grids(tmp_path) == ["b", "deep.a"]


def test_an_unknown_grid_lists_those_there_are() -> None:
    main = SimpleNamespace(dora=SimpleNamespace(grid_package="tests.fakes.tinyproject.tinyxp.grids"), package="x")
    with pytest.raises(ConfigError, match="choose one of: fleet, many, slow"):
        get_explorer(SimpleNamespace(grid="nope"), cast(Any, main))


def test_flags_of_dora_grid_that_show_one_experiment(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--no_monitoring")
    second = slurm_project.experiment(index=2)
    assert f"{second}\n" in slurm_project.dora("grid", "fleet", "--folder", "1")
    assert "has no log yet" in slurm_project.dora("grid", "fleet", "--log", "1", code=1)
    assert "No experiment 9: there are 4" in slurm_project.dora("grid", "fleet", "--tail", "9", code=1)
    log = Path(slurm_project.job(index=2)["log"])
    log.write_text("step 7\n")
    assert "step 7\n" in slurm_project.dora("grid", "fleet", "--log", "1")
    assert f"{second}\n" in slurm_project.dora("grid", "fleet", "index=2", "--folder", "0")
    assert "No experiment of this grid is selected" in slurm_project.dora(
        "grid", "fleet", "index=77", "--no_monitoring"
    )
    assert len(calls(slurm_project, "sbatch")) == 1


def test_patterns_select_and_the_rest_stays(slurm_project: TinyProject) -> None:
    said = slurm_project.dora("grid", "fleet", "!index=1", "0", "--no_monitoring")
    assert said.count("PENDING") >= 1 and slurm_project.job(index=2)["job_id"] == "101"
    assert [path.name for path in slurm_project.outputs.glob("grids/fleet/*")] == [
        slurm_project.experiment(index=2).name
    ]
    assert "(3 new, 1 keep)" in slurm_project.dora("grid", "fleet", "--dry_run")


def test_a_dry_run_may_initialize_and_not_clear(slurm_project: TinyProject) -> None:
    slurm_project.dora("grid", "fleet", "--dry_run", "--init")
    assert slurm_project.experiment(index=3).is_dir() and not calls(slurm_project, "sbatch")
    assert "exclude each other" in slurm_project.dora("grid", "fleet", "--dry_run", "--clear", code=1)
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
    assert command.wait(20) == 130 and "`dora grid fleet -C` cancels" in said and "Traceback" not in said
    assert "\r" not in said and not calls(slurm_project, "scancel")


def test_what_is_not_a_link_stays_in_the_folder_of_a_grid(slurm_project: TinyProject) -> None:
    folder = slurm_project.outputs / "grids" / "fleet"
    folder.mkdir(parents=True)
    (folder / "note").write_text("mine")
    (folder / "0123abcd").symlink_to("../../xps/0123abcd")  # of an experiment that was deleted
    said = slurm_project.dora("grid", "fleet", "--no_monitoring")
    assert "Cannot load experiment 0123abcd" in said
    assert len(list(folder.iterdir())) == 5 and (folder / "note").read_text() == "mine"
