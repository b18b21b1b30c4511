"""The engine for SLURM, with fakes for all of SLURM's commands: what it asks, records, adopts and forgets."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Engine, Job, NoRoomError, Task, job_of
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.engine import SlurmEngine
from audiotok.launchers.slurm.sbatch import Sent
from audiotok.launchers.slurm.submissions import WITHDRAWN, Submission, SubmissionBook, claim
from audiotok.status import experiment_state, read_json, write_json
from tests.fakes.tiny import FAKES


class Cluster:
    """A Dora folder with an engine whose commands are fakes that answer with files; see slurm_command.sh."""

    def __init__(self, folder: Path) -> None:
        self.root, self.answers = folder / "outputs", folder / "answers"
        self.answers.mkdir()
        self.engine = self.another_process()

    def another_process(self) -> SlurmEngine:
        return SlurmEngine("tiny", SubmissionBook(self.root), SubmitLock(self.root / "locks" / "submit"))

    def tasks(self, count: int, *, first: int = 0, mem_factor: float = 1.0) -> list[Task]:
        folders = [self.root / "xps" / f"sig{index}" for index in range(first, first + count)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        command = ("python", "train.py")
        return [Task(one.name, f"name of {one.name}", one, command, self.root, mem_factor) for one in folders]

    def submit(self, count: int, job_id: int = 101, **profile: Any) -> list[Job]:
        self.answer("sbatch", f"Submitted batch job {job_id}\n")
        return self.engine.submit(self.tasks(count), Profile(gpus=0, **{"max_array_size": 1001, **profile}))

    def lose_answer(self, count: int) -> Submission:
        """Let the answer of sbatch to a submission be lost."""
        self.refuse("sbatch", "Socket timed out on send/recv operation\n")
        with pytest.raises(LaunchError):
            self.engine.submit(self.tasks(count), Profile(gpus=0, max_array_size=10))
        (submission,) = (one for one in self.engine.book.open() if not one.recorded)
        return submission

    def answer_per_cluster(self, here: str = "", **others: str | None) -> None:
        """Let squeue answer for this cluster and, by -M, for others; None: there is no such cluster."""
        cases = [f"*'-M {name} '*) echo no such cluster >&2; exit 1;;" for name, text in others.items() if text is None]
        for name, text in others.items():
            (self.answers / f"squeue-{name}").write_text(text or "")
            cases.append(f"*'-M {name} '*) cat {self.answers}/squeue-{name};;")
        (self.answers / "squeue-here").write_text(here)
        script = self.answers.parent / "bin" / "squeue"
        script.unlink()
        script.write_text(f'#!/bin/sh\ncase " $*" in {" ".join(cases)} *) cat {self.answers}/squeue-here;; esac\n')
        script.chmod(0o755)

    def answer(self, command: str, text: str) -> None:
        (self.answers / f"{command}.fails").unlink(missing_ok=True)
        (self.answers / command).write_text(text)

    def refuse(self, command: str, text: str) -> None:
        (self.answers / f"{command}.fails").write_text(text)

    def queue(self, **states: str) -> None:
        """Let squeue tell states, by job id (`_` before it), of the submission that was the last."""
        token = max(self.root.glob("submissions/*"), key=lambda folder: folder.name.split("_")[-1]).name
        lines = (f"{job_id[1:]}|{state}|None|{token}|{token}" for job_id, state in states.items())
        self.answer("squeue", "".join(f"{line}\n" for line in lines))

    def other(self, **changes: Any) -> None:
        """Let everything that is recorded have been submitted elsewhere, or by somebody else."""
        for path in [*self.root.glob("submissions/*/submission.json"), *self.root.glob("xps/*/job.json")]:
            write_json(path, {**(read_json(path) or {}), **changes})
        self.engine = self.another_process()

    def marked(self, jobs: list[Job]) -> list[bool]:
        return ["cancelled" in (read_json(job.folder / "job.json") or {}) for job in jobs]

    def end(self, job: Job, state: str = "COMPLETED", **content: Any) -> None:
        """Let a job write how it ended."""
        own = {name: job.content[name] for name in ("job_id", "token")}
        write_json(job.folder / "task.json", {**own, "state": state, "reason": "", **content})

    def calls(self, command: str) -> list[str]:
        path = self.answers / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{command} ") for line in lines if line.startswith(f"{command} ")]

    def pass_time(self, seconds: float = 60.0) -> None:
        """Let everything that was submitted have been submitted longer ago."""
        for path in [*self.root.glob("submissions/*/submission.json"), *self.root.glob("xps/*/job.json")]:
            content = read_json(path) or {}
            for name in ("time", "recorded", "submitted"):
                if content.get(name):
                    content[name] -= seconds
            write_json(path, content)
        self.engine = self.another_process()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "sacct", "scontrol"):
        (tmp_path / "bin" / name).symlink_to(FAKES / "slurm_command.sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    cluster = Cluster(tmp_path)
    monkeypatch.setenv("FAKE_SLURM", str(cluster.answers))
    monkeypatch.setattr("audiotok.launchers.slurm.engine.AGAIN_S", 0.0)
    return cluster


def replace_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], object]) -> None:
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr("audiotok.launchers.slurm.engine.time", clock)


def states(engine: Engine, jobs: list[Job]) -> list[str]:
    return [engine.verdict(job_of(job.folder) or job).state for job in jobs]


def test_an_array_is_one_call_and_one_job_file_each(slurm: Cluster) -> None:
    jobs = slurm.submit(4)
    assert [job.job_id for job in jobs] == ["101_0", "101_1", "101_2", "101_3"]
    assert [job_of(job.folder) for job in jobs] == jobs
    assert len(slurm.calls("sbatch")) == 1
    script = (slurm.answers / "script").read_text()
    folder = slurm.root / "submissions" / str(jobs[0].content["token"])
    assert "#SBATCH --array=0-3%" in script and f"-m audiotok.launchers.slurm.inside {folder}" in script
    assert f"#SBATCH --job-name={folder.name}" in script
    assert states(slurm.engine, jobs) == ["PENDING"] * 4


def test_only_a_job_that_slurm_lists_here_as_ours_can_be_waited_for(slurm: Cluster) -> None:
    jobs = slurm.submit(1)
    profile = Profile(gpus=0)
    assert slurm.engine.can_wait_for(jobs[0], profile)
    for changes in ({"uid": os.getuid() + 1}, {"cluster": "elsewhere"}, {"launcher": "local"}, {"job_id": "7"}):
        assert not slurm.engine.can_wait_for(Job(jobs[0].folder, {**jobs[0].content, **changes}), profile), changes
    there = Profile(gpus=0, sbatch={"clusters": "elsewhere"})
    job = Job(jobs[0].folder, {**jobs[0].content, "cluster": "here"})
    assert not slurm.engine.can_wait_for(job, there)


def waiting(slurm: Cluster) -> tuple[Job, Job]:
    """A job, and one that depends on it, both submitted a while ago."""
    (needed,) = slurm.submit(1)
    (task,) = slurm.tasks(1, first=1)
    slurm.answer("sbatch", "Submitted batch job 102\n")
    task = dataclasses.replace(task, needs={needed.content["sig"]: needed.job_id})
    (job,) = slurm.engine.submit([task], Profile(gpus=0, max_array_size=10))
    assert "#SBATCH --dependency=afterok:101\n" in (slurm.answers / "script").read_text()
    assert job_of(job.folder) == job and job.content["needs"] == {"sig0": "101"}
    slurm.pass_time()
    return needed, job


def test_a_job_that_slurm_cancelled_for_the_one_it_needs_is_blocked_for_good(slurm: Cluster) -> None:
    needed, job = waiting(slurm)
    slurm.end(needed, "FAILED", reason="no audio")
    slurm.engine.refresh()  # neither is listed any more
    assert states(slurm.engine, [needed, job]) == ["FAILED", "BLOCKED"]
    assert experiment_state(job.folder) == ("BLOCKED", "needs sig0, which is FAILED: no audio")
    slurm.engine = slurm.another_process()
    slurm.engine.refresh()
    assert states(slurm.engine, [job]) == ["BLOCKED"]


def test_a_job_whose_need_was_submitted_again_is_blocked_and_not_stuck(slurm: Cluster) -> None:
    needed, job = waiting(slurm)
    write_json(needed.folder / "job.json", {**needed.content, "job_id": "103", "token": "later"})
    slurm.engine.refresh()
    assert states(slurm.engine, [job]) == ["BLOCKED"]
    found = experiment_state(job.folder)
    assert found is not None and "whose job 101 has ended" in found.reason


@pytest.mark.parametrize("ours", [True, False])
def test_a_job_that_somebody_cancelled_is_not_blocked(slurm: Cluster, ours: bool) -> None:
    needed, job = waiting(slurm)
    if ours:
        slurm.end(needed, "FAILED")
        write_json(job.folder / "job.json", {**job.content, "cancelled": time.time()})
    else:
        slurm.end(needed, "COMPLETED")
    slurm.engine.refresh()
    assert states(slurm.engine, [job]) == ["CANCELLED"]


def test_an_array_is_split_at_the_size_of_the_site(slurm: Cluster) -> None:
    slurm.submit(5, max_array_size=2)
    assert len(slurm.calls("sbatch")) == 3
    assert "--array" not in (slurm.answers / "script").read_text()  # the fifth is alone
    slurm.answer("scontrol", "MaxArraySize            = 3\n")
    slurm.submit(4, max_array_size=None)
    assert len(slurm.calls("sbatch")) == 5


class Site:
    """Takes so many more tasks, and refuses an array that is larger as a whole."""

    def __init__(self, room: int) -> None:
        self.room, self.tried, self.job_id = room, list[int](), 100

    def send(self, *_: object, array: int | None = None, **__: object) -> Sent:
        self.tried.append(array or 1)
        if self.tried[-1] > self.room:
            raise NoRoomError("QOSMaxSubmitJobPerUserLimit")
        self.room -= self.tried[-1]
        self.job_id += 1
        return Sent(str(self.job_id))


@pytest.mark.parametrize(
    ("count", "room", "tried"),
    [
        (10, 4, [10, 5, 2, 1, 1]),
        (10, 9, [10, 5, 2, 1, 1]),
        (7, 0, [7, 3, 1]),
        (1, 0, [1]),
        (64, 63, [64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_what_fits_is_found_in_a_few_tries_and_the_rest_later(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch, count: int, room: int, tried: list[int]
) -> None:
    site = Site(room)
    monkeypatch.setattr("audiotok.launchers.slurm.engine.send", site.send)
    tasks, profile = slurm.tasks(count), Profile(gpus=0, max_array_size=1001)
    with pytest.raises(NoRoomError):
        slurm.engine.submit(tasks, profile)
    jobs = [job_of(task.folder) for task in tasks]
    assert [job is not None for job in jobs] == [True] * room + [False] * (count - room)
    assert len({job.job_id for job in jobs if job}) == room  # each once
    assert site.tried == tried and site.room == 0
    assert len(list(slurm.root.glob("submissions/*_*"))) == site.job_id - 100  # nothing is left of refusals

    with pytest.raises(NoRoomError):
        slurm.engine.submit(tasks[room:], profile)
    assert site.tried == [*tried, 1]  # one call shows that there is no room yet
    site.room = count
    slurm.engine.submit(tasks[room:], profile)
    assert all(job_of(task.folder) for task in tasks) and site.room == room
    site.room = 3
    slurm.engine.submit(slurm.tasks(3, first=count), profile)
    assert site.tried[-1] == 3  # there was room: one array again


def test_a_busy_controller_is_not_tried_again_at_once(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(4)
    monkeypatch.setattr("audiotok.launchers.slurm.engine.send", site.send)
    monkeypatch.setattr("audiotok.launchers.slurm.engine.BUSY_S", -1.0)
    with pytest.raises(NoRoomError):
        slurm.engine.submit(slurm.tasks(10), Profile(gpus=0, max_array_size=1001))
    assert site.tried == [10]


def test_more_memory_after_running_out_of_it(slurm: Cluster) -> None:
    profile = Profile(gpus=0, mem_gb=2, max_mem_gb=8, max_array_size=10)
    slurm.answer("sbatch", "Submitted batch job 7\n")
    (job,) = slurm.engine.submit(slurm.tasks(1, mem_factor=1.5), profile)
    assert "#SBATCH --mem=3072M" in (slurm.answers / "script").read_text()
    assert job.content["mem_factor"] == 1.5 and job.content["profile"]["mem_gb"] == 2


def test_a_refusal_records_nothing_and_closes(slurm: Cluster) -> None:
    slurm.refuse("sbatch", "sbatch: error: invalid partition\n")
    with pytest.raises(LaunchError, match=r"SLURM refused the job: .*invalid partition.*Not submitted: name of sig0"):
        slurm.engine.submit(slurm.tasks(2), Profile(gpus=0, max_array_size=10))
    assert job_of(slurm.root / "xps" / "sig0") is None
    assert not slurm.engine.book.open()


def test_those_that_went_out_before_a_failure_are_recorded(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "sbatch"
    script.unlink()
    script.write_text(
        f'#!/bin/sh\nsh {FAKES}/slurm_command.sh "$@"; n=$(grep -c "^slurm_command" {slurm.answers}/calls)\n'
        'if [ "$n" -ge 2 ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi\necho "10$n"\n'
    )
    script.chmod(0o755)
    with pytest.raises(LaunchError) as caught:
        slurm.engine.submit(slurm.tasks(8), Profile(gpus=0, max_array_size=2))
    named = "Not submitted: name of sig2, name of sig3, name of sig4, name of sig5, name of sig6 and 1 more; 2 others"
    assert named in str(caught.value)
    assert [job_of(task.folder) is not None for task in slurm.tasks(8)] == [True, True] + [False] * 6
    assert len(slurm.engine.book.open()) == 2  # SLURM may have taken the second


@pytest.mark.parametrize("found_by", ["queue", "claim"])
def test_a_job_whose_command_died_is_adopted(slurm: Cluster, found_by: str) -> None:
    submission = slurm.lose_answer(2)
    slurm.pass_time()
    slurm.answer("squeue", "1|RUNNING|None|other|\n")
    if found_by == "queue":
        slurm.answer("squeue", f"55_[0-1%2]|PENDING|Priority|{submission.token[:20]}|{submission.token} of us\n")
    else:  # it has started, and SLURM has forgotten it since
        assert claim(submission.folder, "55;here") == "55;here"
    slurm.engine.refresh()
    jobs = [job for task in slurm.tasks(2) if (job := job_of(task.folder)) is not None]
    assert [job.job_id for job in jobs] == ["55_0", "55_1"]
    assert states(slurm.engine, jobs) == (["PENDING"] if found_by == "queue" else ["UNKNOWN"]) * 2
    assert not slurm.calls("scancel")


def test_a_submission_that_slurm_does_not_have_is_withdrawn(slurm: Cluster) -> None:
    submission = slurm.lose_answer(2)
    slurm.refuse("squeue", "Unable to contact slurm controller\n")
    slurm.engine.refresh()
    assert slurm.engine.failure and slurm.engine.book.has_open()  # nobody knows
    slurm.answer("squeue", "")
    slurm.engine.refresh()
    assert not slurm.engine.failure and slurm.engine.book.has_open()  # who only looks leaves it a while
    with slurm.engine.lock.hold():
        slurm.engine.refresh()
    assert not slurm.engine.book.has_open()
    assert submission.claimed == WITHDRAWN
    other = slurm.lose_answer(2)
    slurm.pass_time(300)
    slurm.engine.refresh()
    assert not slurm.engine.book.has_open() and other.claimed == WITHDRAWN


def test_a_job_that_comes_after_it_was_withdrawn_is_cancelled(slurm: Cluster) -> None:
    late = slurm.lose_answer(1)
    with slurm.engine.lock.hold():
        slurm.engine.refresh()
    (job,) = slurm.submit(1, job_id=61)
    slurm.answer("squeue", f"60|PENDING|None|{late.token}|\n61|PENDING|None|{job.content['token']}|\n")
    slurm.engine.refresh()
    assert slurm.calls("scancel") == ["60"]
    assert job_of(job.folder) == job and states(slurm.engine, [job]) == ["PENDING"]


def test_who_only_looks_writes_nothing(slurm: Cluster) -> None:
    slurm.lose_answer(1)
    slurm.submit(2)
    (slurm.root / "submissions" / ".open" / "damaged").touch()
    slurm.pass_time()
    slurm.queue(_101_0="COMPLETED", _101_1="CANCELLED")

    def contents() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in slurm.root.rglob("*")}

    before = contents()
    slurm.engine.refresh(repair=False)
    jobs = [job for task in slurm.tasks(2) if (job := job_of(task.folder)) is not None]
    assert states(slurm.engine, jobs) == ["FAILED", "CANCELLED"]
    assert contents() == before and not (slurm.root / "locks").exists()


HERE = "ClusterName             = here\n"


def test_a_job_on_another_cluster_is_not_taken_for_cancelled(slurm: Cluster) -> None:
    slurm.answer("scontrol", HERE)
    jobs = slurm.submit(2)
    assert {job.content["cluster"] for job in jobs} == {"here"}
    slurm.pass_time()
    slurm.other(cluster="there")
    slurm.answer_per_cluster(there=None)
    slurm.engine.refresh()
    slurm.end(jobs[1], "RUNNING", updated=time.time() - 100, host="n1")
    verdict = slurm.engine.verdict(job_of(jobs[0].folder) or jobs[0])
    assert verdict == (
        "UNKNOWN",
        "on cluster there, which does not answer here (no such cluster): use the same command there",
    )
    assert states(slurm.engine, jobs) == ["UNKNOWN", "RUNNING"]  # by its heartbeat, though that is not quite fresh
    slurm.end(jobs[1], "RUNNING", updated=time.time() - 10_000, host="n1")
    assert states(slurm.engine, jobs) == ["UNKNOWN", "UNKNOWN"]  # it may be queued again there
    slurm.end(jobs[1], "FAILED")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["UNKNOWN", "FAILED"] and slurm.engine.book.has_open()
    with pytest.raises(LaunchError, match="cancelled: 101_0: on cluster there, which does not answer here"):
        slurm.engine.cancel([job for one in jobs if (job := job_of(one.folder))])
    assert slurm.marked(jobs) == [False, False] and not slurm.calls("scancel")


def test_another_cluster_that_answers_is_queried_and_commanded(slurm: Cluster) -> None:
    slurm.answer("scontrol", HERE)
    jobs = slurm.submit(3, sbatch={"clusters": "there"})
    assert {job.content["cluster"] for job in jobs} == {"there"}
    slurm.pass_time()
    token = jobs[0].content["token"]
    line = "101_{}|RUNNING|None|{}|\n"
    slurm.answer_per_cluster(here=line.format(0, "foreign"), there=line.format(1, token))
    slurm.engine.refresh()
    jobs = [job for one in jobs if (job := job_of(one.folder))]
    assert states(slurm.engine, jobs) == ["CANCELLED", "RUNNING", "CANCELLED"]
    assert [call for call in slurm.calls("sacct") if "-M there" in call]
    slurm.refuse("scancel", "Access denied")
    with pytest.raises(LaunchError, match="101_1: Access denied"):
        slurm.engine.cancel(jobs)
    slurm.engine.requeue(jobs[1:2])
    assert slurm.calls("scancel") == ["-M there 101_1"] and slurm.calls("scontrol")[-1] == "-M there requeue 101_1"


def test_a_job_of_somebody_else_may_be_hidden(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.pass_time()
    slurm.other(uid=os.getuid() + 1, user="bob@login")
    slurm.answer("sacct", "101_1|CANCELLED by 7|x|x\n")  # another job of this id
    slurm.engine.refresh()
    reason = "of bob@login, and not listed to others: they see whether it waits, and can cancel it"
    assert slurm.engine.verdict(job_of(jobs[0].folder) or jobs[0]) == ("UNKNOWN", reason)
    with pytest.raises(LaunchError, match=r"101_\[0-1\]: of bob@login"):
        slurm.engine.cancel([job for one in jobs if (job := job_of(one.folder))])
    slurm.engine = slurm.another_process()
    slurm.answer("sacct", f"101_1|CANCELLED by 7|{jobs[1].content['token']}|x\n")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["UNKNOWN", "CANCELLED"]


def test_an_id_that_came_again_is_neither_believed_nor_cancelled(slurm: Cluster) -> None:
    jobs = slurm.submit(3)
    slurm.end(jobs[0])
    slurm.pass_time()
    slurm.answer("squeue", "".join(f"101_{index}|PENDING|None|theirs|theirs\n" for index in range(3)))
    slurm.answer("sacct", "101_1|COMPLETED|theirs|\n")
    slurm.engine.refresh()
    jobs = [job for one in jobs if (job := job_of(one.folder))]
    assert states(slurm.engine, jobs) == ["COMPLETED", "CANCELLED", "CANCELLED"]
    slurm.engine.cancel(jobs)
    with pytest.raises(LaunchError, match=r"101_0 \(SLURM does not list it"):
        slurm.engine.requeue(jobs[:1])
    assert not slurm.calls("scancel") and "requeue" not in " ".join(slurm.calls("scontrol"))


def test_a_submission_that_was_deleted_ends_in_a_verdict_that_is_written(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.pass_time()
    shutil.rmtree(slurm.root / "submissions" / str(jobs[0].content["token"]))
    slurm.answer("squeue", f"101_1|RUNNING|None|{jobs[1].content['token']}|\n")
    slurm.engine.refresh(repair=False)
    jobs = [job for one in jobs if (job := job_of(one.folder))]
    assert states(slurm.engine, jobs) == ["CANCELLED", "RUNNING"]
    assert experiment_state(jobs[0].folder) == ("PENDING", "")
    slurm.engine.refresh()
    assert not slurm.engine.book.has_open()
    assert [slurm.engine.verdict(job) for job in jobs] == [experiment_state(jobs[0].folder), ("RUNNING", "")]
    assert experiment_state(jobs[0].folder) == ("CANCELLED", "left the queue before it started")


def test_one_empty_answer_ends_nothing(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = slurm.submit(1)
    slurm.pass_time()
    slurm.answer("squeue", "")
    replace_sleep(monkeypatch, lambda _: slurm.queue(_101="RUNNING"))
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["RUNNING"] and slurm.engine.book.has_open()


def test_one_query_tells_all_states_and_writes_down_the_last(slurm: Cluster) -> None:
    jobs = slurm.submit(5)
    slurm.pass_time()
    for index in (1, 4):
        slurm.end(jobs[index])
    slurm.queue(_101_0="RUNNING", _101_1="COMPLETED", _101_2="TIMEOUT", _101_3="CANCELLED", _101_4="SUSPENDED")
    before = len(slurm.calls("squeue"))
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["RUNNING", "COMPLETED", "TIMEOUT", "CANCELLED", "SUSPENDED"]
    assert len(slurm.calls("squeue")) == before + 1 and not slurm.calls("sacct")
    job = job_of(jobs[2].folder)
    assert job is not None and job.content["verdict"]["reason"] == "reached its time limit"
    live = job_of(jobs[0].folder)
    assert live is not None and "verdict" not in live.content
    slurm.engine = slurm.another_process()
    slurm.queue(_101_0="RUNNING", _101_4="COMPLETED")  # SLURM has forgotten the others
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["RUNNING", "COMPLETED", "TIMEOUT", "CANCELLED", "COMPLETED"]


def test_once_every_end_is_known_nobody_is_asked(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.pass_time()
    slurm.end(jobs[0])
    slurm.queue(_101_0="COMPLETED", _101_1="FAILED")
    slurm.engine.refresh()
    assert not slurm.engine.book.has_open()
    slurm.refuse("squeue", "down\n")
    again = slurm.another_process()
    again.refresh()
    assert states(again, jobs) == ["COMPLETED", "FAILED"]


def test_what_slurm_has_forgotten_is_asked_of_the_books_once(slurm: Cluster) -> None:
    jobs = slurm.submit(3)
    slurm.pass_time()
    write_json(jobs[0].folder / "task.json", {"job_id": "101_0", "state": "COMPLETED", "reason": ""})
    write_json(jobs[1].folder / "task.json", {"job_id": "101_1", "state": "RUNNING", "host": "n1", "updated": 1.0})
    slurm.answer("squeue", "")
    token = jobs[0].content["token"]
    slurm.answer("sacct", f"101_1|NODE_FAIL|{token}|\n101_2|CANCELLED by 0|cut short|{token} of us\n")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["COMPLETED", "NODE_FAIL", "CANCELLED"]
    assert len(slurm.calls("sacct")) == 1
    slurm.engine.refresh()
    assert len(slurm.calls("sacct")) == 1


def test_without_accounting_there_is_a_verdict_all_the_same(slurm: Cluster) -> None:
    jobs = slurm.submit(3)
    slurm.pass_time()
    write_json(jobs[1].folder / "task.json", {"job_id": "101_1", "state": "RUNNING", "host": "n1", "updated": 1.0})
    slurm.answer("squeue", "")
    slurm.refuse("sacct", "Slurm accounting storage is disabled\n")
    slurm.engine.refresh()
    told = [slurm.engine.verdict(job) for job in jobs]
    assert told == [
        ("CANCELLED", "left the queue before it started"),
        ("NODE_FAIL", "vanished while it ran on n1"),
        ("CANCELLED", "left the queue before it started"),
    ]
    other = slurm.submit(1, job_id=102)
    slurm.engine.refresh()
    assert len(slurm.calls("sacct")) == 1 and other  # it is not asked again in vain


def test_a_job_that_beats_lives_though_slurm_has_lost_its_memory(slurm: Cluster) -> None:
    jobs = slurm.submit(1)
    slurm.pass_time()
    marker = {"job_id": "101", "state": "RUNNING", "host": "n1", "updated": time.time()}
    write_json(jobs[0].folder / "task.json", marker)
    slurm.answer("squeue", "")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["RUNNING"] and slurm.engine.book.has_open()
    write_json(jobs[0].folder / "task.json", {**marker, "updated": time.time() - 100})
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["NODE_FAIL"] and not slurm.engine.book.has_open()


def test_a_job_that_slurm_does_not_list_yet_waits(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.answer("squeue", "")
    other = slurm.another_process()
    other.refresh()
    assert states(other, jobs) == ["PENDING"] * 2


def test_if_slurm_does_not_answer_only_what_ended_is_known(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    write_json(jobs[0].folder / "task.json", {"job_id": "101_0", "state": "FAILED", "reason": "boom"})
    slurm.pass_time()
    slurm.refuse("squeue", "Unable to contact slurm controller\n")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["FAILED", "UNKNOWN"]
    assert "Unable to contact" in slurm.engine.verdict(jobs[1]).reason
    assert slurm.engine.book.has_open()


def test_a_job_queued_again_by_somebody_lives_again(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    (submission,) = slurm.engine.book.open()
    slurm.pass_time()
    slurm.end(jobs[0])
    slurm.queue(_101_0="COMPLETED", _101_1="FAILED")
    slurm.engine.refresh()
    slurm.engine = slurm.another_process()
    slurm.answer("squeue", f"101_1|PENDING|None|{submission.token}|\n")
    slurm.engine.refresh()
    assert states(slurm.engine, jobs) == ["COMPLETED", "PENDING"]
    job = job_of(jobs[1].folder)
    assert job is not None and "verdict" not in job.content and slurm.engine.book.has_open()


def test_cancel_is_told_before_it_is_done_and_folds_arrays(slurm: Cluster, tmp_path: Path) -> None:
    jobs = slurm.submit(4)
    slurm.queue(_101_0="RUNNING", _101_1="COMPLETED", _101_2="PENDING", _101_3="PENDING")
    script = tmp_path / "bin" / "scancel"
    script.unlink()
    script.write_text(
        f"#!/bin/sh\ngrep -c cancelled_by {jobs[2].folder}/job.json > {slurm.answers}/told\n"
        f'echo "scancel $*" >> {slurm.answers}/calls; sed -Ei "s/RUNNING|PENDING/CANCELLED/" {slurm.answers}/squeue\n'
    )
    script.chmod(0o755)
    slurm.engine.cancel([jobs[0], jobs[2], jobs[3]])
    assert slurm.calls("scancel") == ["101_[0,2-3]"]
    assert (slurm.answers / "told").read_text() == "1\n"
    job = job_of(jobs[2].folder)
    assert job is not None and job.content["cancelled"] <= time.time()
    assert slurm.engine.verdict(job).state == "CANCELLED"


def test_cancel_waits_for_the_end(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = slurm.submit(1)
    slurm.queue(_101="COMPLETING")
    slept: list[float] = []

    def go_on(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            slurm.queue(_101="CANCELLED")

    replace_sleep(monkeypatch, go_on)
    slurm.engine.cancel(jobs)
    assert len(slept) == 3


def test_a_job_that_may_not_be_cancelled_is_named_and_not_marked(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = slurm.submit(3)
    slurm.pass_time()
    slurm.queue(_101_1="RUNNING", _101_2="COMPLETING")
    slurm.refuse("scancel", "scancel: error: Access denied\n")
    replace_sleep(monkeypatch, lambda _: None)
    jobs = [job for one in jobs if (job := job_of(one.folder))]
    with pytest.raises(LaunchError, match=r"could be cancelled: 101_\[1-2\]: scancel: error: Access denied"):
        slurm.engine.cancel(jobs)
    assert slurm.marked(jobs) == [False, False, True]  # what is ending may end for us


def test_nothing_is_cancelled_or_marked_while_slurm_does_not_answer(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.refuse("squeue", "Unable to contact slurm controller\n")
    with pytest.raises(LaunchError, match=r"101_\[0-1\]: SLURM does not answer: Unable to contact"):
        slurm.engine.cancel(jobs)
    assert slurm.marked(jobs) == [False, False] and not slurm.calls("scancel")


def test_requeue_names_those_that_cannot_be(slurm: Cluster) -> None:
    jobs = slurm.submit(2)
    slurm.queue(_101_0="RUNNING", _101_1="RUNNING")
    slurm.engine.requeue(jobs[:1])
    assert slurm.calls("scontrol")[-1] == "requeue 101_0"
    assert slurm.engine.verdict(jobs[0]).state == "PENDING"
    slurm.refuse("scontrol", "Job is no longer pending execution\n")
    with pytest.raises(LaunchError, match=r"101_0 \(Job is no longer .*, 101_1"):
        slurm.engine.requeue(jobs)


def test_a_full_disk_sends_nothing(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("audiotok.launchers.slurm.submissions.write_json", refuse)
    with pytest.raises(LaunchError, match=r"No space left on device.*nothing of this was submitted"):
        slurm.submit(2)
    assert not slurm.calls("sbatch")


def test_a_full_disk_after_sbatch_leaves_a_job_to_be_adopted(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: dict[str, Any], **_: Any) -> None:
        if content.get("job_id"):
            raise OSError(28, "No space left on device")
        write_json(path, content)

    monkeypatch.setattr("audiotok.launchers.slurm.submissions.write_json", refuse)
    with pytest.raises(LaunchError, match="job 101 is submitted but cannot be written down"):
        slurm.submit(2)
    monkeypatch.undo()
    (submission,) = SubmissionBook(slurm.root).open()
    assert submission.job_id is None
