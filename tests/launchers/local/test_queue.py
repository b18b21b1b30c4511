"""The book of local jobs: locks, verdicts, the queue."""

import math
import os
import shutil
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.local.queue import JobRecord, JobStore
from audiotok.launchers.local.supervisor import _IMPORT_ROOT, _free_devices, _may_start, _survey
from audiotok.status import experiment_state, read_json, write_json
from tests.fakes.tiny import REPOSITORY


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "local")
    store.create()
    return store


def queued(store: JobStore, tmp_path: Path, state: str = "PENDING") -> JobRecord:
    job_id = f"L{store.last_number() + 1}"
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
    records = [queued(store, tmp_path) for _ in range(11)]
    ids = [record.job_id for record in records]
    (store.queue / "notes.txt").touch()
    assert ids == store.unfinished() == [f"L{number}" for number in range(1, 12)]
    assert store.environment(records[2]) == {"TOKEN": "hush"}


def test_running_without_a_holder_is_node_fail_at_once(store: JobStore, tmp_path: Path) -> None:
    record = queued(store, tmp_path, state="RUNNING")
    process = holder(store, record.job_id)
    judged = store.checked(record.job_id)
    assert judged is not None and judged.state == "RUNNING"
    process.kill()
    process.communicate()
    judged = store.checked(record.job_id)
    assert judged is not None and judged.state == "NODE_FAIL" and judged.is_over
    running, waiting = _survey(store, {})  # a supervisor writes it down
    assert (running, waiting, store.unfinished()) == ([], None, [])
    assert (read_json(Path(record.folder) / "job.json") or {})["state"] == "NODE_FAIL"
    assert not (store.locks / record.job_id).exists()


def test_what_runs_is_what_was_queued_whatever_the_record_says_since(store: JobStore, tmp_path: Path) -> None:
    record = queued(store, tmp_path)
    write_json(store.jobs / "L1.json", {**record.to_json(), "command": ["false"], "cwd": "/nowhere", "log": "/etc/x"})
    changed = store.read("L1")
    assert changed is not None and changed.command == ["false"]
    assert store.environment(changed) == {"TOKEN": "hush"} and changed == record
    assert (store.queue / "L1").stat().st_mode & 0o777 == 0o600


def test_a_pipe_in_place_of_what_was_queued_starts_nothing_and_holds_nothing_up(
    store: JobStore, tmp_path: Path
) -> None:
    record = queued(store, tmp_path)
    (store.queue / "L1").unlink()
    os.mkfifo(store.queue / "L1")
    with pytest.raises(ValueError, match="Expecting value"):
        store.environment(record)


def test_jobs_of_another_user_are_seen_and_left_alone(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting, vanished = queued(store, tmp_path), queued(store, tmp_path), queued(store, tmp_path, "RUNNING")
    (store.queue / "L2").rename(store.drafts / "L2")
    process = holder(store, running.job_id)
    try:
        monkeypatch.setattr(os, "getuid", lambda: waiting.uid + 1)
        theirs = JobStore(store.root)
        assert theirs.supervisor != store.supervisor
        theirs.mend()
        mine = queued(theirs, tmp_path)
        found, first = _survey(theirs, {})
        assert ([job.job_id for job in found], first) == (["L1"], None)  # its own file is not its own user's here
        assert theirs.own() == [] and (theirs.drafts / "L2").exists() and mine.job_id in theirs.unfinished()
        with pytest.raises(PermissionError, match="another user"):
            theirs.environment(running)
    finally:
        process.kill()
        process.communicate()
    assert (store.read(vanished.job_id) or vanished).state == "RUNNING"  # not theirs to bury


def test_a_pending_job_that_is_held_counts_as_running(store: JobStore, tmp_path: Path) -> None:
    first, second = queued(store, tmp_path), queued(store, tmp_path)
    process = holder(store, first.job_id)
    try:
        running, waiting = _survey(store, {})
        assert [job.job_id for job in running] == [first.job_id]
        assert waiting is not None and waiting.job_id == second.job_id
    finally:
        process.kill()
        process.communicate()


def test_a_job_that_needs_others_leaves_its_place_to_those_behind_until_they_have_completed(
    store: JobStore, tmp_path: Path
) -> None:
    first, second, third = (queued(store, tmp_path) for _ in range(3))
    for record, name in ((first, "codec"), (third, "lost")):
        record.needs = {name: "L9"}
        store.write(record)
    looks: dict[str, float] = {}

    def survey(state: str) -> JobRecord | None:
        (tmp_path / "codec").mkdir(exist_ok=True)
        write_json(
            tmp_path / "codec" / "job.json", {"job_id": "L9", "launcher": "local", "state": state, "reason": "x"}
        )
        return _survey(store, looks)[1]

    found = survey("SUSPENDED")
    assert found is not None and found.job_id == second.job_id
    assert experiment_state(tmp_path / third.job_id) == ("BLOCKED", "needs lost, which is not submitted")
    assert looks[first.job_id] < looks[second.job_id] == math.inf
    found = survey("COMPLETED")
    assert found is not None and found.job_id == second.job_id  # it is not looked at yet
    looks[first.job_id] = 0.0
    found = survey("COMPLETED")
    assert found is not None and found.job_id == first.job_id
    looks.clear()
    found = survey("DIVERGED")
    assert found is not None and found.job_id == second.job_id
    assert experiment_state(tmp_path / first.job_id) == ("BLOCKED", "needs codec, which is DIVERGED: x")
    assert store.unfinished() == [second.job_id]


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


@pytest.mark.parametrize("interrupted", ["write_json", "replace"])
def test_a_submission_that_died_is_nowhere_or_completed(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    queued(store, tmp_path)
    (tmp_path / "L2").mkdir()
    record = JobRecord("L2", "b", str(tmp_path / "L2"), "log", "/", ["true"])

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            "audiotok.launchers.local.queue.write_json" if interrupted == "write_json" else "pathlib.Path.replace", die
        )
        with pytest.raises(KeyboardInterrupt):
            store.add(record, {"TOKEN": "hush"})
    assert store.unfinished() == ["L1"] and not (tmp_path / "L2" / "job.json").exists()
    store.mend()
    assert store.unfinished() == ["L1"]


def test_a_draft_that_is_whole_is_submitted(store: JobStore, tmp_path: Path) -> None:
    record = queued(store, tmp_path)
    (store.queue / "L1").rename(store.drafts / "L1")  # died just before the last step, or before job.json
    (Path(record.folder) / "job.json").unlink()
    (store.drafts / "L9").write_text("{}")  # of no job
    store.mend()
    assert store.unfinished() == ["L1"] and store.environment(record) == {"TOKEN": "hush"}
    assert (read_json(Path(record.folder) / "job.json") or {})["job_id"] == "L1"
    assert not list(store.drafts.iterdir())
    (store.drafts / "L1").write_text('{"TOK')
    store.mend()
    assert not list(store.drafts.iterdir())


def test_a_lock_that_was_taken_away_is_not_held(store: JobStore, tmp_path: Path) -> None:
    with store.holding("L1") as first:
        (store.locks / "L1").unlink()  # as the end of a job does
        with store.holding("L1", patience_s=0) as second:
            assert first and second and (store.locks / "L1").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"launcher": "local", "job_id": "L1"}'])
def test_damaged_records_are_none(store: JobStore, content: str) -> None:
    (store.jobs / "L1.json").write_text(content)
    (store.queue / "L1").touch()
    assert store.read("L1") is None and store.checked("L1") is None
    assert _survey(store, {}) == ([], None)
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
    assert _free_devices(job(1), running) == ["0", "2"]
    assert _may_start(job(2), running)
    assert not _may_start(job(3), running)
    assert not _may_start(job(0, slots=2), running)
    assert _may_start(job(0, slots=3), running)


def test_what_a_supervisor_starts_is_imported_from_where_it_was(tmp_path: Path) -> None:
    assert _IMPORT_ROOT == REPOSITORY  # though the checkout has its launchers behind a symlink
    site = tmp_path / "site-packages"  # as of a wheel
    shutil.copytree(REPOSITORY / "audiotok", site / "audiotok", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from pathlib import Path\n"
        "from audiotok.launchers.local import queue, supervisor\n"
        f"store = queue.JobStore(Path({str(tmp_path)!r})); store.create()\n"
        "process = supervisor._spawn(['audiotok.launchers.local.runner', str(store.root), 'L1', ''], store)\n"
        "print(supervisor._IMPORT_ROOT, process.wait())"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", code]
    done = sp.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{site} 0\n" and (tmp_path / f"supervisor.{os.getuid()}.log").read_text() == ""


def test_a_lock_in_the_folder_of_another_user_says_how_it_is_shared(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = os.open

    def reading_only(file: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opening(file, flags, *mode)

    monkeypatch.setattr(os, "open", reading_only)
    with pytest.raises(LaunchError, match=r"another user's.* umask 002"), store.holding("L1"):
        pass
