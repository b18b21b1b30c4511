"""What a job says about itself, and the verdict on an experiment folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest

from audiotok.status import StatusWriter, experiment_state, job_identity, read_status, write_json


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    began = time.time()
    status = StatusWriter(tmp_path, epochs=3, beat_s=100.0)
    status.start(epoch=1)
    status.beat(epoch=2)
    told = read_status(tmp_path)
    assert told is not None
    assert (told["state"], told["epoch"], told["epochs"], told["pid"]) == ("RUNNING", 2, 3, os.getpid())
    assert began <= told["started"] <= told["updated"] <= time.time() and told["ended"] is None
    status.end("DIVERGED", "loss is nan at epoch 3", "diverged")
    told = read_status(tmp_path)
    assert told is not None and told["ended"] >= told["started"] and told["kind"] == "diverged"
    assert experiment_state(tmp_path) == ("DIVERGED", "loss is nan at epoch 3")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_heartbeats_within_an_epoch_are_rare(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, beat_s=3600.0)
    status.start(epoch=0)
    first = (tmp_path / "status.json").stat().st_ino
    for _ in range(100):
        status.beat(epoch=0)
    assert (tmp_path / "status.json").stat().st_ino == first
    status.beat_s = 0.0
    status.beat(epoch=0)
    assert (tmp_path / "status.json").stat().st_ino != first


def test_progress_within_an_epoch_is_told(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, epochs=9, beat_s=0.0)
    status.start()
    status.beat(epoch=2, update=30, updates_per_epoch=100, epoch_s=12.5)
    status.beat(update=31)
    told = read_status(tmp_path)
    assert told is not None
    assert [told[name] for name in ("epoch", "update", "updates_per_epoch", "epoch_s")] == [2, 31, 100, 12.5]
    status.beat(epoch=3, update=0)
    told = read_status(tmp_path)
    assert told is not None and (told["epoch"], told["update"], told["updates_per_epoch"]) == (3, 0, 100)


def test_a_silent_writer_leaves_nothing(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, silent=True)
    status.start()
    status.beat(epoch=1)
    status.end("FAILED", "no audio", "data")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    status = StatusWriter(tmp_path)
    status.start()
    before = (tmp_path / "status.json").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    status.end("COMPLETED")
    assert "No space left on device" in caplog.text
    assert (tmp_path / "status.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", [b"", b'{"state": "RUN', b"[1]", b"\xff\xfe", b"null"])
def test_damaged_files_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) is None
    assert experiment_state(tmp_path) is None
    assert read_status(tmp_path / "nowhere") is None


def test_a_run_without_a_launcher_goes_stale(tmp_path: Path) -> None:
    StatusWriter(tmp_path).start()
    assert experiment_state(tmp_path) == ("RUNNING", "")
    state = experiment_state(tmp_path, stale_s=-1.0)
    assert state is not None and state.state == "STALE"


def test_local_jobs_are_judged_by_their_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    job = {"launcher": "local", "job_id": "L4", "state": "RUNNING", "reason": "", "lock": str(lock)}
    write_json(tmp_path / "job.json", job)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert experiment_state(tmp_path) == ("RUNNING", "")
    assert experiment_state(tmp_path) == ("NODE_FAIL", "its process vanished")
    write_json(tmp_path / "job.json", {**job, "state": "FAILED", "reason": "exit code 1"})
    assert experiment_state(tmp_path) == ("FAILED", "exit code 1")
    write_json(tmp_path / "status.json", {"job_id": "L4", "state": "DIVERGED", "reason": "loss is nan"})
    assert experiment_state(tmp_path) == ("DIVERGED", "loss is nan")
    write_json(tmp_path / "job.json", {**job, "job_id": "L5", "state": "PENDING"})
    assert experiment_state(tmp_path) == ("PENDING", "")


def test_a_run_by_hand_after_the_last_job_counts(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"launcher": "local", "job_id": "L1", "state": "FAILED", "submitted": 100.0})
    write_json(tmp_path / "status.json", {"job_id": None, "state": "COMPLETED", "started": 50.0})
    state = experiment_state(tmp_path)
    assert state is not None and state.state == "FAILED"
    write_json(tmp_path / "status.json", {"job_id": None, "state": "COMPLETED", "started": 150.0})
    assert experiment_state(tmp_path) == ("COMPLETED", "")


NOW = 1_000_000.0
JOB: dict[str, Any] = {"launcher": "slurm", "job_id": "7_2", "submitted": NOW - 1000}
TASK: dict[str, Any] = {"job_id": "7_2", "attempt": 0, "started": NOW - 900, "updated": NOW - 10, "state": "RUNNING"}
STATUS: dict[str, Any] = {"job_id": "7_2", "started": NOW - 890, "updated": NOW - 20, "state": "RUNNING"}
SILENT = TASK | {"updated": NOW - 700}
TASK_FAILED = TASK | {"state": "FAILED", "reason": "exit code 1"}
DIVERGED = STATUS | {"state": "DIVERGED", "reason": "loss is nan"}
OVER = STATUS | {"state": "INTERRUPTED", "reason": "stopped by SIGTERM", "updated": NOW - 900.5, "started": NOW - 950}
NODE_FAIL = {"state": "NODE_FAIL", "reason": "vanished"}
Files = dict[str, Any] | None


@pytest.mark.parametrize(
    ("job", "task", "status", "expected"),
    [
        # What comes later.
        (JOB, None, None, ("PENDING", "")),
        (JOB, TASK | {"job_id": "6"}, STATUS | {"job_id": "6", "state": "FAILED"}, ("PENDING", "")),
        (JOB, TASK, STATUS | {"job_id": None}, ("RUNNING", "")),
        (JOB, TASK_FAILED, STATUS | {"job_id": None, "started": NOW - 5, "state": "COMPLETED"}, ("COMPLETED", "")),
        (JOB, TASK, STATUS | {"job_id": None, "started": NOW - 950, "state": "COMPLETED"}, ("RUNNING", "")),
        # What the parent process saw.
        (JOB, TASK, None, ("RUNNING", "")),
        (JOB, TASK, STATUS, ("RUNNING", "")),
        (JOB, TASK_FAILED, STATUS, ("FAILED", "exit code 1")),
        (JOB, TASK_FAILED, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB, TASK | {"state": "PREEMPTED", "reason": "by another"}, OVER, ("PREEMPTED", "by another")),
        (JOB, TASK | {"state": "REQUEUED", "reason": "time limit"}, OVER, ("REQUEUED", "time limit")),
        (JOB, TASK | {"state": "REQUEUED", "updated": NOW - 90_000}, OVER, ("REQUEUED", "")),
        (JOB, SILENT, STATUS, ("STALE", "no sign of life for 12 minutes")),
        (None, TASK | {"state": "COMPLETED"}, STATUS, ("COMPLETED", "")),
        # What an earlier attempt of the same job said.
        (JOB, TASK, OVER, ("RUNNING", "")),
        (JOB, SILENT, OVER, ("STALE", "no sign of life for 12 minutes")),
        (JOB, TASK_FAILED, DIVERGED | {"updated": NOW - 901}, ("FAILED", "exit code 1")),
        # What the trainer alone could tell before its parent vanished.
        (JOB, SILENT, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB, SILENT, STATUS | {"state": "COMPLETED"}, ("COMPLETED", "")),
        # What our commands and the scheduler said.
        (JOB | {"cancelled": NOW}, None, None, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK, STATUS, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK | {"state": "REQUEUED"}, STATUS, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK | {"state": "COMPLETED"}, STATUS, ("COMPLETED", "")),
        (JOB | {"verdict": NODE_FAIL}, TASK, STATUS, ("NODE_FAIL", "vanished")),
        (JOB | {"verdict": NODE_FAIL | {"time": NOW}}, TASK, STATUS, ("NODE_FAIL", "vanished")),
        (JOB | {"verdict": NODE_FAIL | {"time": NOW - 60}}, TASK, STATUS, ("RUNNING", "")),  # it was queued again
        (JOB | {"verdict": {"state": "FAILED", "reason": ""}}, TASK, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB | {"verdict": "damaged"}, TASK, STATUS, ("RUNNING", "")),
        # A local job has the same files.
        (JOB | {"launcher": "local", "cancelled": NOW}, TASK, STATUS, ("CANCELLED", "")),
        (JOB | {"launcher": "local"}, TASK, STATUS, ("RUNNING", "")),
        # A run by hand beats less often.
        (None, None, STATUS | {"job_id": None, "updated": NOW - 3000}, ("RUNNING", "")),
        (None, None, STATUS | {"job_id": None, "updated": NOW - 3900}, ("STALE", "no sign of life for 65 minutes")),
    ],
)
def test_the_verdict_of_the_files(
    job: Files, task: Files, status: Files, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    for name, content in (("job.json", job), ("task.json", task), ("status.json", status)):
        if content is not None:
            write_json(tmp_path / name, content)
    assert experiment_state(tmp_path) == expected


def test_a_cancelled_slurm_job_cannot_tell_so_itself(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"launcher": "slurm", "job_id": "7", "cancelled": 100.0})
    assert experiment_state(tmp_path) == ("CANCELLED", "")
    write_json(tmp_path / "status.json", {"job_id": "7", "state": "RUNNING", "updated": time.time()})
    assert experiment_state(tmp_path) == ("CANCELLED", "")
    write_json(tmp_path / "status.json", {"job_id": "7", "state": "COMPLETED"})
    assert experiment_state(tmp_path) == ("COMPLETED", "")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("none", None)),
        ({"SLURM_JOB_ID": "7"}, ("none", None)),  # by hand within an allocation
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}, ("slurm", "7")),
        (
            {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            ("slurm", "7_2"),
        ),
        ({"AUDIOTOK_JOB_ID": "7_2", "AUDIOTOK_LAUNCHER": "slurm", "SLURM_JOB_ID": "9"}, ("slurm", "7_2")),
        ({"AUDIOTOK_JOB_ID": "L3", "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}, ("local", "L3")),
    ],
)
def test_identity(environ: dict[str, str], expected: tuple[str, str | None]) -> None:
    assert job_identity(environ) == expected
