"""The book of local jobs: locks, verdicts, the queue."""

import os
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiotok.errors import LaunchError
from audiotok.status import read_json
from launchers.jobs import JobRecord, JobStore
from launchers.supervisor import free_devices, may_start, survey


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "local")
    store.create()
    return store


def queued(store: JobStore, tmp_path: Path, state: str = "PENDING") -> JobRecord:
    job_id = store.new_id()
    folder = tmp_path / job_id
    folder.mkdir()
    record = JobRecord(job_id, "abcd1234", str(folder), str(folder / "log"), str(tmp_path), ["true"], state=state)
    store.add(record, {"TOKEN": "hush"})
    return record


def holder(store: JobStore, name: str) -> "sp.Popen[bytes]":
    """Another process that holds a lock until it is killed."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    process = sp.Popen([sys.executable, "-c", code, str(store.locks / name)], stdin=sp.PIPE, stdout=sp.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_ids_grow_and_the_queue_is_in_order(store: JobStore, tmp_path: Path) -> None:
    ids = [queued(store, tmp_path).job_id for _ in range(11)]
    (store.queue / "notes.txt").touch()
    assert ids == store.unfinished() == [f"L{number}" for number in range(1, 12)]
    assert store.environment("L3") == {"TOKEN": "hush"}


def test_running_without_a_holder_is_node_fail_at_once(store: JobStore, tmp_path: Path) -> None:
    record = queued(store, tmp_path, state="RUNNING")
    process = holder(store, record.job_id)
    judged = store.judge(record.job_id)
    assert judged is not None and judged.state == "RUNNING"
    process.kill()
    process.communicate()
    judged = store.judge(record.job_id)
    assert judged is not None and judged.state == "NODE_FAIL" and judged.is_over
    running, waiting = survey(store)  # a supervisor writes it down
    assert (running, waiting, store.unfinished()) == ([], [], [])
    assert (read_json(Path(record.folder) / "job.json") or {})["state"] == "NODE_FAIL"
    assert not (store.locks / record.job_id).exists()


def test_a_pending_job_that_is_held_counts_as_running(store: JobStore, tmp_path: Path) -> None:
    first, second = queued(store, tmp_path), queued(store, tmp_path)
    process = holder(store, first.job_id)
    try:
        running, waiting = survey(store)
        assert [job.job_id for job in running] == [first.job_id]
        assert [job.job_id for job in waiting] == [second.job_id]
    finally:
        process.kill()
        process.communicate()


def test_a_lock_has_one_holder(store: JobStore) -> None:
    with store.holding("supervisor") as first, store.holding("supervisor", patience_s=0) as second:
        assert (first, second) == (True, False)
        assert store.is_held("supervisor")
    assert not store.is_held("supervisor")


def test_a_later_job_keeps_its_place_in_the_experiment(store: JobStore, tmp_path: Path) -> None:
    old = queued(store, tmp_path)
    new = JobRecord("L2", old.sig, old.folder, old.log, old.cwd, old.command)
    store.add(new, {})
    store.finish(old, "CANCELLED", "replaced")
    assert (read_json(Path(old.folder) / "job.json") or {})["job_id"] == "L2"
    assert store.unfinished() == ["L2"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"launcher": "local", "job_id": "L1"}'])
def test_damaged_records_are_none(store: JobStore, content: str) -> None:
    (store.jobs / "L1.json").write_text(content)
    (store.queue / "L1").touch()
    assert store.read("L1") is None and store.judge("L1") is None
    assert survey(store) == ([], [])
    assert store.unfinished() == []


def test_a_filesystem_without_locks_is_named(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(LaunchError, match="a filesystem with flock"), store.submitting():
        pass


def test_a_job_starts_with_a_free_slot_and_free_gpus() -> None:
    def job(gpus: int, slots: int = 4, devices: tuple[str, ...] = ()) -> JobRecord:
        visible = ["0", "1", "2"]
        return JobRecord("L1", "", "", "", "", [], gpus=gpus, visible=visible, slots=slots, devices=list(devices))

    running = [job(1, devices=("1",)), job(0)]
    assert free_devices(job(1), running) == ["0", "2"]
    assert may_start(job(2), running)
    assert not may_start(job(3), running)
    assert not may_start(job(0, slots=2), running)
    assert may_start(job(0, slots=3), running)
