"""Who is submitted, in which arrays, and that nobody is submitted twice; with an engine that only takes notes."""

import ast
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from dora.conf import DoraConfig, SubmitRules
from dora.main import DecoratedMain
from dora.xp import XP

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.decide import previous_job
from audiotok.launchers.engine import Check, Job, NoRoomError, Task
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.profile import Profile
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import ENGINES, GridShepherd, detect
from audiotok.status import State, Verdict, write_json
from tests.fakes.tiny import REPOSITORY

RETRY, REPLACE = SubmitRules(retry=True), SubmitRules(replace=True)


class Main(DecoratedMain):
    """An entry point whose arguments are `index=N`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(nothing, DoraConfig(dir=folder))
        self.package, self.main_module, self.name = "tiny", "train", "tiny"

    def get_xp(self, argv: Sequence[str]) -> XP:
        xp = XP(self.dora, None, list(argv), sig="x" + re.sub(r"\W", "", "_".join(argv)))
        xp.delta = [(argument.split("=")[0], argument.split("=")[1]) for argument in argv]
        return xp

    def value_to_argv(self, arg: Any) -> list[str]:
        return [arg] if isinstance(arg, str) else []

    def get_name_parts(self, xp: XP) -> Any:
        return dict(xp.delta or [])

    def init_xp(self, xp: XP) -> XP:
        xp.folder.mkdir(parents=True, exist_ok=True)
        write_json(xp.folder / "init.json", {"argv": xp.argv}, sync=False)
        return xp


def nothing() -> None:
    """What the entry point runs."""


class Engine:
    """Takes notes; keeps the states of its jobs in memory, as SLURM does for all processes."""

    name: ClassVar[str] = "slurm"
    remote: ClassVar[bool] = True
    failure = ""

    def __init__(self, states: dict[str, Verdict]) -> None:
        self.states = states
        self.submitted: list[list[str]] = []
        self.cancelled: list[str] = []
        self.refreshed = self.repaired = self.resumed = 0
        self.stubborn: set[str] = set()
        self.room: dict[str | None, int] = {}  # how many tasks it takes, by partition; no limit if that is not there
        self.tried: list[int] = []

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> Self:
        raise NotImplementedError

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        raise NotImplementedError

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        raise NotImplementedError

    def has_open(self) -> bool:
        return False

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        self.tried.append(len(tasks))
        room = self.room.get(profile.partition, len(tasks))
        fit, rest = tasks[:room], tasks[room:]
        if profile.partition in self.room:
            self.room[profile.partition] = room - len(fit)
        self.submitted += [[task.sig for task in fit]] if fit else []
        self.tasks = list(fit)
        jobs = []
        for task in fit:
            content: dict[str, Any] = {"launcher": "slurm", "job_id": str(100 + len(self.states)), "sig": task.sig}
            content |= {"user": "ada@login", "submitted": time.time(), "mem_factor": task.mem_factor, "log": "nowhere"}
            write_json(task.folder / "job.json", content, sync=False)
            self.states[content["job_id"]] = Verdict(State.PENDING, "")
            jobs.append(Job(task.folder, content))
        if rest:
            raise NoRoomError("SLURM takes no more jobs now: QOSMaxSubmitJobPerUserLimit")
        return jobs

    def refresh(self, *, repair: bool = True) -> None:
        self.refreshed += 1
        self.repaired += repair

    def resume(self) -> None:
        self.resumed += 1

    def verdict(self, job: Job) -> Verdict:
        return self.states[job.job_id]

    def cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.job_id in self.stubborn:
                raise LaunchError(f"not all jobs could be cancelled: {job.job_id}")
            self.cancelled.append(job.job_id)
            self.states[job.job_id] = Verdict(State.CANCELLED, "cancelled by ada@login")

    def requeue(self, jobs: Sequence[Job]) -> None:
        raise NotImplementedError


class House:
    """One Dora folder, its engine, and shepherds of several people."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.states = folder, {"0": Verdict(State.COMPLETED, "")}
        self.said: list[str] = []

    def shepherd(self) -> tuple[GridShepherd, Engine]:
        shepherd = GridShepherd(Main(self.folder), self.said.append)
        engine = Engine(self.states)
        shepherd.engines["slurm"] = engine
        return shepherd, engine

    def launch(
        self, count: int, *, rules: SubmitRules | None = None, profile: Profile | None = None
    ) -> tuple[list[GridSheep], Engine]:
        shepherd, engine = self.shepherd()
        sheeps = [shepherd.get_sheep_from_argv([f"index={index}"]) for index in range(count)]
        shepherd.update()
        for sheep in sheeps:
            shepherd.maybe_submit_lazy(sheep, profile or Profile(), rules or SubmitRules())
        shepherd.commit()
        return sheeps, engine


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("AUDIOTOK_LAUNCHER", "slurm")
    monkeypatch.setenv("AUDIOTOK_RETRY", "")
    return House(tmp_path / "outputs")


def test_equal_resources_share_an_array_and_others_do_not(house: House) -> None:
    shepherd, engine = house.shepherd()
    sheeps = [shepherd.get_sheep_from_argv([f"index={index}"]) for index in range(7)]
    for sheep, gpus in zip(sheeps[:4], (1, 2, 1, 2), strict=True):
        shepherd.maybe_submit_lazy(sheep, Profile(gpus=gpus), SubmitRules())
    with shepherd.job_array(Profile()):
        for sheep in sheeps[4:6]:
            shepherd.maybe_submit_lazy(sheep, Profile(gpus=1), SubmitRules())
    shepherd.maybe_submit_lazy(sheeps[6], Profile(gpus=1), SubmitRules())
    assert engine.submitted == []
    shepherd.commit()
    assert engine.submitted == [["xindex0", "xindex2", "xindex6"], ["xindex1", "xindex3"], ["xindex4", "xindex5"]]
    assert [sheep.current_job_id for sheep in sheeps] == ["101", "104", "102", "105", "106", "107", "103"]
    task = engine.tasks[0]
    assert task.command[1:] == ("-P", "-m", "audiotok.experiments.job", "tiny.train", "index=4")
    assert task.code is not None and task.environ["AUDIOTOK_CODE"] == task.code["path"]
    assert (task.name, task.cwd, task.folder) == ("index=4", Path.cwd(), house.folder / "xps" / "xindex4")


def test_what_ran_out_of_memory_goes_out_by_itself_with_more(house: House) -> None:
    profile = Profile(mem_gb=4, max_mem_gb=16, oom_mem_factor=2.0)
    sheeps, _ = house.launch(3, profile=profile)
    house.states[str(sheeps[1].current_job_id)] = Verdict(State.OUT_OF_MEMORY, "")
    house.states[str(sheeps[2].current_job_id)] = Verdict(State.FAILED, "")
    _, engine = house.launch(3, profile=profile, rules=RETRY)
    assert sorted(engine.submitted) == [["xindex1"], ["xindex2"]]
    factors = {sheep.decision.mem_factor for sheep in sheeps if sheep.decision is not None}
    assert factors == {1.0}
    assert engine.refreshed == 2  # before the decisions, and under the lock


def test_what_is_there_is_not_submitted_again(house: House) -> None:
    sheeps, _ = house.launch(5)
    for sheep, state in zip(sheeps, ("COMPLETED", "FAILED", "RUNNING", "UNKNOWN", "PENDING"), strict=True):
        house.states[str(sheep.current_job_id)] = Verdict(State.of(state), "")
    assert house.launch(5)[1].submitted == []
    assert house.launch(5, rules=RETRY)[1].submitted == [["xindex1"]]


def test_two_people_at_once_get_one_job_each_experiment(house: House) -> None:
    shepherd, engine = house.shepherd()
    sheeps = [shepherd.get_sheep_from_argv([f"index={index}"]) for index in range(3)]
    for sheep in sheeps:
        shepherd.maybe_submit_lazy(sheep, Profile(), REPLACE)  # decided: all are new
    house.launch(2)  # somebody else was faster with two of them
    house.said.clear()
    shepherd.commit()
    assert engine.submitted == [["xindex2"]] and engine.cancelled == []
    assert [line for line in house.said if line.startswith("ada@login has submitted job 101: xindex0")]
    assert [sheep.current_job_id for sheep in sheeps] == ["101", "102", "103"]


def test_a_job_is_replaced_once_it_has_ended(house: House) -> None:
    sheeps, _ = house.launch(2)
    shepherd, engine = house.shepherd()
    engine.stubborn = {str(sheeps[0].current_job_id)}
    for index in range(2):
        shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv([f"index={index}"]), Profile(), REPLACE)
    with pytest.raises(LaunchError, match="not all jobs could be cancelled: 101"):
        shepherd.commit()
    assert engine.submitted == []  # the engine stopped at the first, and both go on
    assert any("Not submitted, as job 101 is still running" in line for line in house.said)
    engine.stubborn = set()
    _, engine = house.launch(2, rules=REPLACE)
    assert engine.cancelled == ["101", "102"] and engine.submitted == [["xindex0", "xindex1"]]


def test_a_cancellation_that_fails_does_not_lose_the_rest(house: House) -> None:
    (sheep,), _ = house.launch(1)
    shepherd, engine = house.shepherd()
    engine.stubborn = {str(sheep.current_job_id)}
    shepherd.cancel_lazy(sheep=shepherd.get_sheep_from_argv(["index=0"]))
    shepherd.cancel_lazy(sheep=shepherd.get_sheep_from_argv(["index=9"]))  # has no job
    shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv(["index=1"]), Profile(), SubmitRules())
    with pytest.raises(LaunchError, match="not all jobs could be cancelled: 101"):
        shepherd.commit()  # at its end
    assert engine.submitted == [["xindex1"]]
    job = shepherd.get_sheep_from_argv(["index=0"]).job
    assert job is not None
    with pytest.raises(LaunchError):
        job.cancel()


def test_nothing_is_submitted_while_the_scheduler_is_silent(house: House) -> None:
    shepherd, engine = house.shepherd()
    engine.failure = "Unable to contact slurm controller"
    shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv(["index=0"]), Profile(), SubmitRules())
    with pytest.raises(LaunchError, match=r"SLURM does not answer.*nothing was submitted: .*AUDIOTOK_LAUNCHER=local"):
        shepherd.commit()
    assert not engine.submitted


def test_what_finds_no_room_waits_and_goes_out_as_room_appears(house: House) -> None:
    shepherd, engine = house.shepherd()
    engine.room[None] = 4
    sheeps = [shepherd.get_sheep_from_argv([f"index={index}"]) for index in range(10)]
    for sheep in sheeps:
        shepherd.maybe_submit_lazy(sheep, Profile(), SubmitRules())
    assert shepherd.carry_out() == []
    assert engine.submitted == [[f"xindex{index}" for index in range(4)]]
    assert [sheep.held() for sheep in sheeps] == [None] * 4 + [("WAITING", "not submitted: waits for room")] * 6
    assert shepherd.no_room.endswith("QOSMaxSubmitJobPerUserLimit. 4 of 10 are submitted, 6 wait for room")
    assert not shepherd.may_have_room()  # no job has ended

    for job_id in ("101", "102"):
        house.states[job_id] = Verdict(State.COMPLETED, "")
    assert shepherd.may_have_room()
    engine.room[None] = 2
    assert shepherd.submit_rest({sheep.xp.sig for sheep in sheeps if sheep is not sheeps[4]}) == []
    assert engine.submitted[1:] == [["xindex5", "xindex6"]] and not sheeps[4].held()
    assert list(shepherd.rest) == ["xindex7", "xindex8", "xindex9"] and not shepherd.may_have_room()

    house.launch(8)  # somebody else submits two more of them
    engine.room[None] = 10
    shepherd.submit_rest(set(shepherd.rest))
    assert engine.submitted[2:] == [["xindex8", "xindex9"]] and not shepherd.rest
    assert [sheep.current_job_id is not None for sheep in sheeps] == [True] * 10  # index 4 is of the other command


def test_there_may_be_room_after_a_while_and_none_without_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    shepherd, engine = house.shepherd()
    engine.room[None] = 0
    shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv(["index=1"]), Profile(), SubmitRules())
    monkeypatch.setattr("audiotok.launchers.shepherd.ROOM_S", -1.0)
    assert not shepherd.may_have_room()
    with pytest.raises(NoRoomError, match=r"0 of 1 are submitted, 1 wait for room; the same command"):
        shepherd.commit()
    assert shepherd.may_have_room()
    engine.failure = "no contact"
    with pytest.raises(LaunchError, match="does not answer"):
        shepherd.submit_rest({"xindex1"})
    assert list(shepherd.rest) == ["xindex1"]  # it waits on


def test_what_is_retried_or_replaced_waits_for_room_as_it_is(house: House) -> None:
    profile = Profile(mem_gb=4, max_mem_gb=16, oom_mem_factor=2.0)
    sheeps, _ = house.launch(3, profile=profile)
    house.states[str(sheeps[0].current_job_id)] = Verdict(State.OUT_OF_MEMORY, "")
    shepherd, engine = house.shepherd()
    engine.room[None] = 0
    for index, rules in enumerate((RETRY, REPLACE)):
        shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv([f"index={index}"]), profile, rules)
    shepherd.carry_out()
    assert engine.cancelled == ["102"] and list(shepherd.rest) == ["xindex0", "xindex1"]
    engine.room[None] = 2
    shepherd.submit_rest(set(shepherd.rest))
    assert sorted(engine.submitted) == [["xindex0"], ["xindex1"]]
    factors = [previous_job(house.folder / "xps" / f"xindex{index}")["mem_factor"] for index in range(2)]
    assert factors == [2.0, 1.0]


def test_nothing_is_stopped_for_code_that_cannot_be_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.launch(2)

    def refuse(main: object, log: object) -> None:
        raise LaunchError("more than code")

    monkeypatch.setattr("audiotok.launchers.shepherd.take_snapshot", refuse)
    shepherd, engine = house.shepherd()
    for index in range(2):
        shepherd.maybe_submit_lazy(shepherd.get_sheep_from_argv([f"index={index}"]), Profile(), REPLACE)
    with pytest.raises(LaunchError, match="more than code"):
        shepherd.commit()
    assert not engine.cancelled and not engine.submitted


def test_a_full_queue_is_tried_once_and_another_one_too(house: House) -> None:
    shepherd, engine = house.shepherd()
    engine.room = {"small": 1, "large": 5}
    kinds = [("small", 1), ("small", 2), ("small", 4), ("large", 2)]
    for index, (partition, gpus) in enumerate(kinds):
        for number in range(2):
            sheep = shepherd.get_sheep_from_argv([f"index={10 * index + number}"])
            shepherd.maybe_submit_lazy(sheep, Profile(partition=partition, gpus=gpus), SubmitRules())
    shepherd.carry_out()
    assert engine.tried == [2, 2] and engine.submitted == [["xindex0"], ["xindex30", "xindex31"]]
    assert list(shepherd.rest) == ["xindex1", "xindex10", "xindex11", "xindex20", "xindex21"]


def test_a_thousand_experiments_are_a_few_queries(house: House) -> None:
    sheeps, engine = house.launch(1000)
    assert (len(engine.submitted), engine.refreshed) == (1, 1)
    sheeps, engine = house.launch(1000)
    shepherd = sheeps[0].shepherd
    assert (engine.submitted, engine.refreshed) == ([], 1)
    shepherd.update()
    assert {sheep.state() for sheep in sheeps} == {"PENDING"} and not any(sheep.is_done() for sheep in sheeps)
    assert engine.refreshed == 2
    assert 0 < len([line for line in house.said if line.startswith("Submitted")]) < 20


def test_only_a_launch_repairs_and_starts(house: House) -> None:
    house.launch(1)
    shepherd, engine = house.shepherd()
    sheep = shepherd.get_sheep_from_argv(["index=0"])
    shepherd.update()
    assert sheep.state("force") == "PENDING"
    shepherd.cancel_lazy(sheep=sheep)
    shepherd.commit()
    assert engine.cancelled and (engine.repaired, engine.resumed) == (0, 0)
    shepherd.update(repair=True)
    assert (engine.repaired, engine.resumed) == (1, 0)
    shepherd.maybe_submit_lazy(sheep, Profile(), SubmitRules())  # kept, as it has failed
    shepherd.commit()
    assert (engine.submitted, engine.repaired, engine.resumed) == ([], 1, 1)
    shepherd.update()  # while a grid is watched
    assert (engine.repaired, engine.resumed) == (2, 2)


def test_states_are_asked_for_if_nobody_has(house: House) -> None:
    house.launch(1)
    shepherd, engine = house.shepherd()
    sheep = shepherd.get_sheep_from_argv(["index=0"])
    assert "state=PENDING" in repr(sheep) and "sid=101" in repr(sheep) and engine.refreshed == 1
    assert sheep.is_done("force") is False and engine.refreshed == 2
    house.states["101"] = Verdict(State.FAILED, "boom")
    assert sheep.state("force") == "FAILED" and "FAILED (boom)" in repr(sheep)
    assert sheep.is_done() and sheep.job is not None and sheep.job.state == "FAILED"


def test_a_job_that_asks_about_itself_does_not_wait_for_itself(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (sheep,), _ = house.launch(1)
    monkeypatch.setenv("AUDIOTOK_LAUNCHER", "slurm")
    monkeypatch.setenv("AUDIOTOK_JOB_ID", "101")
    assert sheep.is_done()


def test_what_was_completed_by_hand_is_not_submitted(house: House) -> None:
    sheeps, _ = house.launch(2)
    house.states[str(sheeps[0].current_job_id)] = Verdict(State.FAILED, "")
    now = time.time()
    status = {"state": "COMPLETED", "job_id": None, "started": now, "updated": now, "ended": now}
    for name in ("xindex0", "xindex7"):
        (house.folder / "xps" / name).mkdir(exist_ok=True)
        write_json(house.folder / "xps" / name / "status.json", status)
    _, engine = house.launch(8, rules=RETRY)
    assert engine.submitted == [[f"xindex{index}" for index in range(2, 7)]]


def test_an_experiment_is_found_though_it_cannot_be_composed_any_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.launch(2)
    write_json(house.folder / "xps" / "xindex0" / "frozen.json", {"argv": ["index=0"], "delta": [["index", "0"]]})

    def fail(*_: object) -> XP:
        raise ValueError("no such key")

    monkeypatch.setattr(Main, "get_xp_from_sig", fail)
    shepherd, engine = house.shepherd()
    sheeps = [shepherd.get_sheep_from_sig(sig) for sig in ("xindex0", "xindex1")]
    assert [sheep.current_job_id for sheep in sheeps] == ["101", "102"]
    assert [shepherd.main.get_name(sheep.xp) for sheep in sheeps] == ["index=0", ""]
    for sheep in sheeps:
        shepherd.cancel_lazy(sheep=sheep)
    shepherd.commit()
    assert engine.cancelled == ["101", "102"]
    with pytest.raises(ValueError, match="no such key"):
        shepherd.get_sheep_from_sig("xindex9")


def test_jobs_are_found_by_their_id_after_a_move(house: House) -> None:
    house.launch(2)
    log = house.folder / "submissions" / "token" / "101_0_log.out"
    log.parent.mkdir(parents=True)
    log.touch()
    house.folder.rename(house.folder.with_name("moved"))
    shepherd = GridShepherd(Main(house.folder.with_name("moved")))
    shepherd.engines["slurm"] = Engine(house.states)
    write_json(house.folder.with_name("moved") / "xps/xindex0/frozen.json", {"argv": ["index=0"], "delta": []})
    found = shepherd.get_sheep_from_job_id("101")
    assert found is not None and found.xp.sig == "xindex0" and found.xp.folder.is_dir()
    assert shepherd.get_sheep_from_job_id("999") is None
    assert shepherd.find_moved(log) == house.folder.with_name("moved") / "submissions" / "token" / log.name
    assert shepherd.find_moved(Path("/elsewhere/x.out")) == Path("/elsewhere/x.out")


def test_a_pipe_in_place_of_a_log_is_refused_at_once(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (sheep,), _ = house.launch(1)
    assert sheep.log == Path("nowhere")  # not written yet
    os.mkfifo("nowhere")
    with pytest.raises(LaunchError, match=r"nowhere, a log, is no file but a pipe"):
        _ = sheep.log


def test_slurm_is_found_by_sbatch_on_path(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}) == "local"
    (tmp_path / "sbatch").touch(mode=0o755)
    assert detect({"PATH": str(tmp_path)}) == "slurm"
    assert detect({"PATH": str(tmp_path), "AUDIOTOK_LAUNCHER": "local"}) == "local"
    assert detect({"PATH": "", "AUDIOTOK_LAUNCHER": "slurm"}) == "slurm"
    with pytest.raises(ConfigError, match="choose one of: local, slurm"):
        detect({"PATH": "", "AUDIOTOK_LAUNCHER": "kubernetes"})


def test_engines_are_named_in_their_folders_only() -> None:
    for path in (REPOSITORY / "launchers").glob("*.py"):
        constants = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        named = {one.value for one in constants if isinstance(one.value, str) and one.value in ENGINES}
        assert named <= ({"slurm"} if path.name == "profile.py" else set()), path  # there a key of the configuration
