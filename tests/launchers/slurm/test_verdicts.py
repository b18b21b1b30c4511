"""The verdict of the engine on a job of SLURM, from SLURM's word and the job's own."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from audiotok.files import write_json
from audiotok.launchers.engine import Job
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.slurm.commands import Entry
from audiotok.launchers.slurm.engine import SlurmEngine, _beats, _own
from audiotok.launchers.slurm.submissions import SubmissionBook
from audiotok.status import Verdict

OURS = {"job_id": "7_1", "cancelled": 1.0, "cancelled_by": "ada@login"}


def make(folder: Path, *, task: dict[str, Any] | None = None, status: dict[str, Any] | None = None) -> Path:
    for name, content in (("task.json", task), ("status.json", status)):
        if content is not None:
            write_json(folder / name, {"job_id": "7_1", **content})
    return folder


def engine(folder: Path) -> SlurmEngine:
    return SlurmEngine("tiny", SubmissionBook(folder), SubmitLock(folder / "lock"))


def conclude(folder: Path, entry: Entry | None, **job: Any) -> Verdict:
    """What the engine records of a job that has ended; `entry` is SLURM's last word."""
    write_json(folder / "job.json", {"job_id": "7_1", **job})
    slurm = engine(folder)
    slurm._queried = time.time()
    slurm._conclude(Job(folder, {"job_id": "7_1"}), entry, write=False)
    return slurm.verdict(Job(folder, {"job_id": "7_1"}))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"state": "FAILED", "reason": "boom"}, ("FAILED", "boom")),
        ({"state": "COMPLETED"}, ("COMPLETED", "")),
        ({"state": "RUNNING"}, None),
        ({"state": "REQUEUED"}, None),  # it will go on
        ({"state": "CANCELLED"}, None),  # other processes of it may still be about to end
        ({"state": "FAILED", "job_id": "6"}, None),
        (None, None),
    ],
)
def test_a_job_that_slurm_still_cleans_up_after(
    tmp_path: Path, task: dict[str, Any] | None, expected: tuple[str, str] | None
) -> None:
    slurm = engine(tmp_path)
    slurm.queue = {("", "7_1"): Entry("COMPLETING")}
    verdict = slurm.verdict(Job(make(tmp_path, task=task), {"job_id": "7_1"}))
    assert verdict == (expected or ("COMPLETING", ""))


@pytest.mark.parametrize(
    ("said", "task", "job", "expected"),
    [
        (Entry("COMPLETED"), {"state": "COMPLETED"}, {}, ("COMPLETED", "")),
        (Entry("TIMEOUT"), {"state": "RUNNING"}, {}, ("TIMEOUT", "reached its time limit")),
        (Entry("TIMEOUT"), {"state": "TIMEOUT", "reason": "after 3 times"}, {}, ("TIMEOUT", "after 3 times")),
        (Entry("NODE_FAIL"), {"state": "RUNNING"}, {}, ("NODE_FAIL", "its node failed")),
        (Entry("BOOT_FAIL"), None, {}, ("BOOT_FAIL", "its node did not boot")),
        (Entry("DEADLINE"), None, {}, ("DEADLINE", "could not end before its deadline")),
        (Entry("REVOKED"), None, {}, ("CANCELLED", "cancelled: another cluster of the federation ran it")),
        (Entry("OUT_OF_MEMORY"), {"state": "FAILED", "reason": "x"}, {}, ("OUT_OF_MEMORY", "killed: out of memory")),
        (Entry("CANCELLED"), {"state": "PREEMPTED", "reason": "x"}, {}, ("CANCELLED", "cancelled with scancel")),
        (Entry("CANCELLED", "by bob"), None, {}, ("CANCELLED", "cancelled with scancel by bob")),
        (Entry("CANCELLED"), None, OURS, ("CANCELLED", "cancelled by ada@login")),
        (Entry("FAILED", "NonZeroExitCode"), {"state": "RUNNING"}, {}, ("FAILED", "its script failed; see the log")),
        (Entry("COMPLETED"), {"state": "RUNNING"}, {}, ("FAILED", "ended without reporting its result; see the log")),
        (Entry("FAILED", "x"), {"state": "FAILED", "reason": "exit code 1: no"}, {}, ("FAILED", "exit code 1: no")),
        (Entry("FAILED"), {"state": "OUT_OF_MEMORY", "reason": "oom"}, {}, ("OUT_OF_MEMORY", "oom")),
        (Entry("FAILED", "OutOfMemory"), {"state": "RUNNING"}, {}, ("OUT_OF_MEMORY", "killed: out of memory")),
        (Entry("FAILED"), {"state": "TIMEOUT", "reason": "no more"}, {}, ("TIMEOUT", "no more")),
        # SLURM has forgotten it, or says something that cannot be:
        (None, {"state": "COMPLETED", "reason": ""}, {}, ("COMPLETED", "")),
        (None, {"state": "FAILED", "reason": "boom"}, OURS, ("FAILED", "boom")),
        (None, {"state": "PREEMPTED", "reason": "told to"}, {}, ("PREEMPTED", "told to")),
        (None, {"state": "PREEMPTED", "reason": "told to"}, OURS, ("CANCELLED", "cancelled by ada@login")),
        (None, {"state": "REQUEUED", "reason": "x"}, {}, ("CANCELLED", "left the queue before it started again")),
        (None, {"state": "RUNNING", "host": "n3"}, {}, ("NODE_FAIL", "vanished while it ran on n3")),
        (None, {"state": "RUNNING"}, OURS, ("CANCELLED", "cancelled by ada@login")),
        (None, {"state": "COMPLETED", "job_id": "6"}, {}, ("CANCELLED", "left the queue before it started")),
        (None, None, {}, ("CANCELLED", "left the queue before it started")),
    ],
)  # fmt: skip
def test_verdict(
    tmp_path: Path, said: Entry | None, task: dict[str, Any] | None, job: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert conclude(make(tmp_path, task=task), said, **job) == expected


@pytest.mark.parametrize("said", [Entry("COMPLETED"), Entry("FAILED", "NonZeroExitCode")])
@pytest.mark.parametrize("task", [None, {"state": "COMPLETED", "token": "another"}])
def test_a_job_that_ended_before_python_started_has_failed(
    tmp_path: Path, said: Entry, task: dict[str, Any] | None
) -> None:
    """A setup line that ends the script with 0, for SLURM COMPLETED, is no result; nor is that of another job."""
    make(tmp_path, task=task)
    log = tmp_path / "submissions" / "tiny_1" / "7_1_0_log.out"
    job = {"token": "tiny_1", "log": f"/before/it/moved/{log.name}"}
    slurm = engine(tmp_path)
    write_json(tmp_path / "job.json", {"job_id": "7_1", **job})
    slurm.queue = {("tiny_1", "7_1"): said}
    verdict = slurm.verdict(Job(tmp_path, {"job_id": "7_1", **job}))
    assert verdict == ("FAILED", f"ended before Python started: {log} is empty or gone")
    log.parent.mkdir(parents=True)
    log.write_text("loading\nmodule: command not found\n")
    verdict = slurm.verdict(Job(tmp_path, {"job_id": "7_1", **job}))
    assert verdict == ("FAILED", "ended before Python started: module: command not found")


@pytest.mark.parametrize("said", [Entry("FAILED", "NonZeroExitCode"), None])
def test_only_the_trainer_knows_that_it_diverged(tmp_path: Path, said: Entry | None) -> None:
    status = {"state": "DIVERGED", "reason": "loss is nan"}
    folder = make(tmp_path, task={"state": "FAILED", "reason": "exit code 1: loss is nan"}, status=status)
    assert conclude(folder, said) == ("DIVERGED", "loss is nan")
    make(tmp_path, status={**status, "job_id": "6"})  # an earlier job did
    assert conclude(folder, said).state == "FAILED"


def test_the_trainer_counts_where_its_parent_could_not_write(tmp_path: Path) -> None:
    make(tmp_path, status={"state": "COMPLETED", "reason": ""})
    assert conclude(tmp_path, None) == ("COMPLETED", "")
    make(tmp_path, status={"state": "RUNNING", "host": "n1"})
    assert conclude(tmp_path, None) == ("NODE_FAIL", "vanished while it ran on n1")


@pytest.mark.parametrize(
    ("state", "open_question"),
    [("COMPLETED", False), ("FAILED", False), ("PREEMPTED", True), ("RUNNING", True), (None, True)],
)
def test_the_books_are_asked_where_the_job_leaves_a_question(
    tmp_path: Path, state: str | None, open_question: bool
) -> None:
    make(tmp_path, task=None if state is None else {"state": state})
    assert engine(tmp_path)._is_unclear(Job(tmp_path, {"job_id": "7_1"})) == open_question


def test_a_fresh_heartbeat_is_life(tmp_path: Path) -> None:
    def says(**task: Any) -> bool:
        make(tmp_path, task={"state": "RUNNING", "host": "n1", "updated": time.time(), **task})
        return _beats(_own(tmp_path / "task.json", {"job_id": "7_1"}))

    assert not _beats({})
    assert says()
    assert not says(updated=time.time() - 60)
    assert not says(state="COMPLETED")
    assert not says(job_id="7_2")
    assert not says(updated=None)
    here = socket.gethostname()
    assert says(host=here, pid=os.getpid(), updated=time.time() - 60)  # its process tells better
    assert not says(host=here, pid=2**30)
