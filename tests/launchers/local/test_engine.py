"""`dora grid`, `launch`, `info` and `run` on a machine without a scheduler, in processes of their own."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.engine import job_of
from audiotok.launchers.local.engine import LocalEngine
from audiotok.status import experiment_state
from tests.fakes.tiny import TinyProject, process_of
from tests.fakes.tinyproject.tinyxp.train import following

pytestmark = pytest.mark.slow


def most_at_once(spans: list[dict[str, Any]]) -> int:
    edges = [(span["began"], 1) for span in spans] + [(span["ended"], -1) for span in spans]
    running = [sum(step for _, step in sorted(edges)[: index + 1]) for index in range(len(edges))]
    return max(running)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def processes_in(folder: Path) -> list[str]:
    """Ids of the processes whose working directory this is."""

    def leads_there(link: Path) -> bool:
        try:
            return link.readlink() == folder
        except OSError:
            return False

    return [link.parent.name for link in Path("/proc").glob("[0-9]*/cwd") if leads_there(link)]


def test_a_grid_runs_a_few_at_once_and_tells_the_truth(project: TinyProject) -> None:
    secret = os.urandom(8).hex()
    first = project.states("fleet", TINY_SECONDS="1.5", TINY_SECRET=secret)
    assert len(first) == 4 and set(first) <= {"PEN", "RUN"}
    keys = [path.stat().st_mode & 0o777 for path in project.store.queue.iterdir()]
    assert keys and set(keys) == {0o600}  # they hold the environment
    assert set(project.states("fleet", TINY_SECONDS="1.5")) <= {"PEN", "RUN", "COM"}
    project.settle()
    assert project.states("fleet", TINY_SECONDS="1.5") == ["COM", "COM", "FAI", "COM"]
    assert list(project.book().values()) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert most_at_once(project.spans()) == 2
    assert [int(span["argv"][0].split("=")[1]) for span in project.spans()][:2] in ([1, 2], [2, 1])
    assert {span["environ"]["WORLD_SIZE"] for span in project.spans()} == {"1"}
    assert not any(secret.encode() in path.read_bytes() for path in project.outputs.rglob("*") if path.is_file())

    failed = project.experiment(index=3)
    said = project.dora("info", "-f", failed.name, "-m")
    assert "state=FAILED (exit code 1: RuntimeError: told to fail)" in said
    assert str(failed / "logs" / f"{project.job(index=3)['job_id']}_0_log.out") in said
    assert any(line.split()[:1] == ["loss"] and "3.5" in line for line in said.splitlines())
    assert f"index 3 here in {project.folder}" in project.dora("info", "-f", failed.name, "-l")
    assert "told to fail" in project.dora("info", "-j", project.job(index=3)["job_id"], "-l")
    assert experiment_state(failed) == ("FAILED", "exit code 1: RuntimeError: told to fail")
    assert experiment_state(project.experiment(index=1)) == ("COMPLETED", "")


def test_only_what_failed_is_retried_and_the_monitor_ends(project: TinyProject) -> None:
    said = project.dora("grid", "fleet", "-i", "0.02")
    assert said.count("COM") >= 3 and "FAI" in said
    project.states("fleet")
    assert len(project.book()) == 4
    project.dora("grid", "fleet", "--dry_run", "--no_monitoring", "--retry")
    assert len(project.book()) == 4
    project.dora("grid", "fleet", "--no_monitoring", "--retry")
    project.settle()
    assert project.book() == {"L1": "COMPLETED", "L2": "COMPLETED", "L3": "FAILED", "L4": "COMPLETED", "L5": "FAILED"}
    assert project.job(index=3)["job_id"] == "L5"
    project.dora("grid", "fleet", "1", "--no_monitoring", "--replace_done")
    project.settle()
    assert project.job(index=2)["job_id"] == "L6"
    (project.experiment(index=4) / "mark").touch()
    project.dora("grid", "fleet", "3", "--no_monitoring", "--clear", answer="y\n")
    project.settle()
    assert project.job(index=4)["state"] == "COMPLETED"
    assert not (project.experiment(index=4) / "mark").exists()


def test_cancel_stops_everything_that_waits_or_runs(project: TinyProject) -> None:
    project.states("slow")
    project.wait(lambda: sorted(project.book().values()) == ["PENDING", "RUNNING", "RUNNING"])
    project.wait(lambda: (project.experiment(index=1) / "status.json").exists())
    pids = [project.job(index=index)["pid"] for index in (1, 2)]
    assert all(is_alive(pid) for pid in pids)
    one = project.experiment(index=2).name
    project.dora("info", "-f", one, "-C")
    assert "state=CANCELLED (cancelled while it was running" in project.dora("info", "-f", one)
    project.wait(lambda: project.book()["L3"] == "RUNNING")  # the next one moves up
    project.dora("grid", "slow", "-C")  # waits for the end, the deaf one's too
    assert set(project.book().values()) == {"CANCELLED"}
    assert not any(is_alive(pid) for pid in [*pids, project.job(index=3)["pid"]])
    assert project.states("slow") == ["CAN"] * 3


def test_a_replaced_job_has_ended_before_its_successor_starts(project: TinyProject) -> None:
    project.dora("launch", "--no_tail", "index=2", "seconds=600")
    project.wait(lambda: project.book() == {"L1": "RUNNING"})
    project.dora("launch", "--no_tail", "--replace", "index=2", "seconds=600")
    assert project.book()["L1"] == "CANCELLED"
    project.wait(lambda: project.book()["L2"] == "RUNNING")
    project.dora("launch", "-C", "index=2", "seconds=600")
    assert project.book()["L2"] == "CANCELLED"


def test_killed_supervisor_leaves_true_states_and_a_queue_that_goes_on(project: TinyProject) -> None:
    project.states("fleet", TINY_SECONDS="2")
    project.wait(lambda: list(project.book().values()).count("RUNNING") == 2)
    os.kill(project.supervisor_pid(), signal.SIGKILL)
    project.wait(lambda: list(project.book().values()).count("RUNNING") == 0)
    assert list(project.book().values()) == ["COMPLETED", "COMPLETED", "PENDING", "PENDING"]
    waiting = project.experiment(index=3).name
    assert "state=PENDING" in project.dora("info", "-f", waiting)
    assert project.store.unfinished() == ["L3", "L4"]  # looking starts nothing
    said = project.dora("grid", "fleet", "--no_monitoring", environ={"TINY_SECONDS": "2"})
    assert f"Starting 2 local jobs that wait here: {waiting}/end=exception index=3 seconds=2.0, " in said
    project.settle()
    assert list(project.book().values()) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]


def test_killed_runner_takes_its_job_along_and_nothing_runs_for_ever(project: TinyProject) -> None:
    project.dora("launch", "--no_tail", "index=5", "seconds=600", "children=1")
    project.wait(lambda: project.book() == {"L1": "RUNNING"})
    record, folder = project.job(index=5), project.experiment(index=5)
    project.wait(lambda: len(processes_in(folder)) == 1)  # a child of the job
    for pid in (project.supervisor_pid(), process_of("audiotok.launchers.local.runner", str(project.store.root), "L1")):
        os.kill(pid, signal.SIGKILL)
    project.wait(lambda: not is_alive(record["pid"]))
    state = experiment_state(folder)
    assert state is not None and state.state == "NODE_FAIL"
    assert "state=NODE_FAIL" in project.dora("info", "-f", record["sig"])
    project.dora("launch", "--no_tail", "index=5", "seconds=600", "children=1")  # not again, but a supervisor comes
    project.settle()
    assert project.job(index=5)["state"] == "NODE_FAIL"
    project.wait(lambda: not processes_in(folder))


def test_at_the_time_limit_a_job_stops_and_goes_on_where_it_was(project: TinyProject) -> None:
    limit = {"time": 1, "signal_s": 48, "max_num_timeout": 1}  # told to stop after 12 s, when it has certainly begun
    runs = [{"index": 1, "faults": 1}, {"index": 2, "faults": 9}, {"index": 3}]
    project.many(runs, slurm=limit, epochs=3, steps=4, seconds=1.2)
    project.settle()
    assert project.verdicts(3) == ["COMPLETED", "TIMEOUT", "COMPLETED"]
    job, value = project.job(index=1), 0
    assert (job["job_id"], job["attempt"], job["timeouts"]) == ("L1", 1, 1)
    for _ in range(12):
        value = following(value, 1)
    progress = json.loads((project.experiment(index=1) / "progress.json").read_text())
    assert (progress["epoch"], progress["value"]) == (3, value)  # no step was done twice or left out
    log = Path(job["log"]).read_text()
    assert "from epoch 0 step 0" in log and "from epoch 1 step 2" in log
    said = project.dora("info", "-f", project.experiment(index=2).name)
    assert "state=TIMEOUT (reached its time limit, after 1 times more time)" in said


def test_a_machine_that_goes_down_leaves_checkpoints(project: TinyProject) -> None:
    project.many(1, faults=1, epochs=2, seconds=0.8)
    project.wait(lambda: (project.experiment(index=1) / "progress.json").exists())
    for pid in (project.supervisor_pid(), process_of("audiotok.launchers.local.runner", str(project.store.root), "L1")):
        os.kill(pid, signal.SIGTERM)
    project.settle()
    assert project.verdicts(1) == ["PREEMPTED"]
    project.many(1, "--retry", faults=1, epochs=2, seconds=0.8)
    project.settle()
    assert project.verdicts(1) == ["COMPLETED"]
    assert ", from epoch 1 step" in Path(project.job(index=1)["log"]).read_text()


def test_a_running_job_can_be_queued_again(project: TinyProject) -> None:
    project.many(2, faults=1, epochs=2, seconds=0.8, environ={"AUDIOTOK_LOCAL_SLOTS": "1"})
    engine = LocalEngine(project.store.root)
    folder = project.experiment(index=1)
    project.wait(lambda: (folder / "progress.json").exists())
    jobs = [job for index in (1, 2) if (job := job_of(project.experiment(index=index))) is not None]
    engine.requeue(jobs)  # the second waits anyway
    project.wait((project.experiment(index=2) / "progress.json").exists)  # its turn, as the first went to the end
    assert engine.store.unfinished() == ["L2", "L1"]
    engine.requeue(jobs[1:])
    project.settle()
    assert project.verdicts(2) == ["COMPLETED", "COMPLETED"]
    engine.refresh()
    assert [engine.verdict(job) for job in jobs] == [("COMPLETED", "")] * 2
    with pytest.raises(LaunchError, match="jobs L1, L2 have ended"):
        engine.requeue(jobs)


def test_jobs_outlive_the_terminal(project: TinyProject) -> None:
    command = project.start("grid", "fleet", environ={"TINY_SECONDS": "1"})  # monitors until it is killed
    project.wait(lambda: "RUNNING" in project.book().values())
    os.killpg(command.pid, signal.SIGHUP)
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    project.settle()
    assert list(project.book().values()) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]


def test_two_commands_at_once_submit_an_experiment_once(project: TinyProject) -> None:
    commands = [project.start("grid", "fleet", "--no_monitoring") for _ in range(3)]
    assert [command.wait() for command in commands] == [0, 0, 0]
    for command in commands:
        command.communicate()
    project.settle()
    assert len(project.book()) == 4
    project.wait(
        lambda: not project.store.is_held(project.store.supervisor)
    )  # which leaves when there is nothing to do


def test_launch_follows_the_log_and_the_job_leaves_no_child(project: TinyProject) -> None:
    project.dora("launch", "--no_tail", "index=7", "end=mistake", "children=1")
    project.settle()
    said = project.dora("launch", "index=7", "end=mistake", "children=1")
    assert "error: no audio in /nowhere; run `audiotok data` first." in said
    assert "finished with state FAILED" in said
    assert "Traceback" not in said
    assert project.job(index=7)["exit_code"] == 2
    assert not processes_in(project.experiment(index=7))


def test_every_gpu_serves_one_job_at_a_time(project: TinyProject) -> None:
    share = {"CUDA_VISIBLE_DEVICES": "4,7", "AUDIOTOK_LOCAL_SLOTS": "", "TINY_GPUS": "1"}
    project.states("fleet", **share)
    project.settle()
    spans = project.spans()
    assert {span["environ"]["CUDA_VISIBLE_DEVICES"] for span in spans} == {"4", "7"}
    for device in "47":
        assert most_at_once([span for span in spans if span["environ"]["CUDA_VISIBLE_DEVICES"] == device]) == 1


def test_several_gpus_start_one_process_each(project: TinyProject) -> None:
    share = {"CUDA_VISIBLE_DEVICES": "0,1", "AUDIOTOK_LOCAL_SLOTS": ""}
    project.dora("launch", "--no_tail", "-g", "2", "index=8", environ=share)
    project.settle()
    assert project.job(index=8)["state"] == "COMPLETED"
    environ = project.spans()[0]["environ"]
    assert (environ["WORLD_SIZE"], environ["CUDA_VISIBLE_DEVICES"]) == ("2", "0,1")
    assert "PLEASE ABORT" not in project.dora("info", "-f", project.experiment(index=8).name, "-l")


def test_experiments_that_left_a_grid_are_cancelled(project: TinyProject) -> None:
    project.states("slow")
    project.wait(lambda: "RUNNING" in project.book().values())
    grid = project.folder / "tinyxp" / "grids" / "slow.py"
    grid.write_text(grid.read_text().replace("range(1, 4)", "range(1, 2)"))
    unloadable = project.experiment(index=3) / ".argv.json"
    unloadable.write_text(json.dumps(["gone=1"]))
    project.dora("grid", "slow", "--no_monitoring")
    assert [state for name, state in project.book().items() if name != "L1"] == ["CANCELLED"] * 2
    project.dora("grid", "slow", "-C")


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (
            ("grid", "flet"),
            {},
            "error: no grid 'flet' in package tinyxp.grids; choose one of: fleet, many, over, slow.",
        ),
        (("grid", "fleet"), {"AUDIOTOK_LAUNCHER": "pbs"}, "error: AUDIOTOK_LAUNCHER='pbs'"),
        (("grid", "fleet"), {"AUDIOTOK_LOCAL_SLOTS": "many"}, "error: AUDIOTOK_LOCAL_SLOTS='many'"),
        (("grid", "fleet"), {"AUDIOTOK_LAUNCHER": "slurm", "PATH": "/nowhere"}, "error: SLURM does not answer"),
    ],
)
def test_a_mistake_is_one_line(
    project: TinyProject, arguments: tuple[str, ...], environ: dict[str, str], words: str
) -> None:
    said = project.dora(*arguments, code=2, environ=environ)
    assert said.startswith(words) and said.count("\n") == 1


def test_a_defect_keeps_its_traceback(project: TinyProject) -> None:
    (project.folder / "tinyxp" / "grids" / "fleet.py").write_text("import json\n\njson.loads('{')\n")
    said = project.dora("grid", "fleet", code=1)
    assert "Traceback" in said and "JSONDecodeError" in said  # raised in another package


def test_a_mistake_in_a_grid_names_its_line(project: TinyProject) -> None:
    (project.folder / "tinyxp" / "grids" / "fleet.py").write_text("raise RuntimeError('defect')\n")
    assert "grids/fleet.py:1: RuntimeError: defect" in project.dora("grid", "fleet", code=2)
    assert "fleet" in project.dora("grid").split()
