"""The runner of one job: environment, stops, verdict."""

import json
import os
import signal
import subprocess as sp
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiotok.launchers.local.queue import JobRecord, JobStore
from audiotok.launchers.local.runner import _environments, _log_of, run
from tests.fakes.tiny import REPOSITORY

STOPS = "trap 'touch checkpoint; exit 143' TERM; touch ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; touch ready; while :; do sleep 0.05; done"


class Job:
    """A queued job, and its runner in a process of its own."""

    def __init__(self, folder: Path, command: list[str], **values: Any) -> None:
        self.folder = folder
        self.store = JobStore(folder / "local")
        self.store.create()
        log = folder / "logs" / "L1_0_log.out"
        values = {"grace_s": 0.3, **values}
        job = JobRecord("L1", "abcd1234", str(folder), str(log), str(folder), command, **values)
        self.store.add(job, {"PATH": "/usr/bin:/bin", "SECRET": "x"})

    def start(self, devices: str = "") -> "sp.Popen[bytes]":
        command = [sys.executable, "-m", "audiotok.launchers.local.runner", str(self.store.root), "L1", devices]
        return sp.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})

    def run(self) -> JobRecord:
        assert self.start().wait(30) == 0
        return self.record

    @property
    def record(self) -> JobRecord:
        record = self.store.read("L1")
        assert record is not None
        return record

    def is_ready(self) -> bool:
        return (self.folder / "ready").exists()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def record(folder: Path, **values: Any) -> JobRecord:
    return JobRecord("L1", "abcd1234", str(folder), str(folder / "L1_0_log.out"), str(folder), ["true"], **values)


def test_environment_of_one_process(tmp_path: Path) -> None:
    submitted = {"PATH": "/bin", "WORLD_SIZE": "7", "OMP_NUM_THREADS": "3"}
    (environ,) = _environments(record(tmp_path, threads=2), submitted)
    assert environ["PATH"] == "/bin"
    assert (environ["AUDIOTOK_LAUNCHER"], environ["AUDIOTOK_JOB_ID"]) == ("local", "L1")  # which StatusWriter looks for
    assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"]) == ("0", "0", "1")
    assert (environ["OMP_NUM_THREADS"], environ["MKL_NUM_THREADS"]) == ("3", "2")  # the user's own word holds
    assert environ["GOMP_SPINCOUNT"] == "10000"  # it shares the machine with other programs
    assert "CUDA_VISIBLE_DEVICES" not in environ and "AUDIOTOK_FROZEN" not in environ
    (tmp_path / "frozen.json").touch()
    assert _environments(record(tmp_path), {})[0]["AUDIOTOK_FROZEN"] == str(tmp_path / "frozen.json")


def test_environment_with_gpus(tmp_path: Path) -> None:
    job = record(tmp_path, gpus=2, ranks=2, visible=["0", "1", "2"], devices=["0", "2"])
    ranks = _environments(job, {"CUDA_VISIBLE_DEVICES": "0,1,2", "RANK": "1"})
    assert {environ["CUDA_VISIBLE_DEVICES"] for environ in ranks} == {"0,2"}
    assert [(environ["RANK"], environ["LOCAL_RANK"]) for environ in ranks] == [("0", "0"), ("1", "1")]
    assert len({environ["MASTER_PORT"] for environ in ranks}) == 1 and int(ranks[0]["MASTER_PORT"]) > 1024
    assert _environments(record(tmp_path, visible=["0"]), {})[0]["CUDA_VISIBLE_DEVICES"] == ""
    assert [_log_of(job, rank).name for rank in (0, 1)] == ["L1_0_log.out", "L1_1_log.out"]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    job = Job(tmp_path, ["/nowhere/python"])
    ended = job.run()
    assert ended.state == "FAILED" and "could not be started" in ended.reason
    assert job.store.unfinished() == []


def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", "echo $SECRET; echo ValueError: wrong >&2; exit 7"])
    ended = job.run()
    assert (ended.state, ended.exit_code, ended.reason) == ("FAILED", 7, "exit code 7: ValueError: wrong")
    assert Path(ended.log).read_text() == "x\nValueError: wrong\n"
    assert not any(path.is_file() for path in (job.store.queue, job.store.locks) for path in path.iterdir())


def test_the_rank_that_failed_tells_the_reason(tmp_path: Path) -> None:
    script = "if [ $RANK = 1 ]; then echo KeyError: mine; exit 4; fi; echo $MASTER_ADDR; exec sleep 0.3"
    ended = Job(tmp_path, ["sh", "-c", script], ranks=2).run()
    assert (ended.state, ended.exit_code, ended.reason) == ("FAILED", 4, "exit code 4: KeyError: mine")
    assert Path(ended.log).read_text() == "127.0.0.1\n"


def test_a_cancelled_job_ends_even_if_it_is_deaf(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", DEAF])
    runner = job.start()
    until(job.is_ready)
    job.store.stop_mark("L1").write_text("CANCELLED")
    assert runner.wait(20) == 0
    assert (job.record.state, job.record.exit_code) == ("CANCELLED", -9)
    assert not job.store.stop_mark("L1").exists()
    copy = json.loads((tmp_path / "job.json").read_text())
    assert copy["state"] == "CANCELLED" and abs(copy["cancelled"] - time.time()) < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_machine_that_goes_down_preempts(tmp_path: Path, number: signal.Signals) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    runner = job.start()
    until(job.is_ready)
    runner.send_signal(number)
    assert runner.wait(20) == 0
    assert (job.record.state, job.record.exit_code) == ("PREEMPTED", 143)
    assert (tmp_path / "checkpoint").exists() and job.store.unfinished() == []
    assert "cancelled" not in json.loads((tmp_path / "job.json").read_text())


def test_at_the_time_limit_it_waits_again_so_many_times(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS], time_s=0.8, checkpoint_s=0.3, max_num_timeout=1)
    began = time.monotonic()
    again = job.run()
    assert time.monotonic() - began >= 0.5  # told to stop a checkpoint before the limit
    assert (again.state, again.timeouts, again.attempt, again.devices) == ("PENDING", 1, 1, [])
    assert again.reason == "reached its time limit (1 of 1); queued again to go on"
    assert job.store.unfinished() == ["L1"] and not job.store.is_held("L1")
    assert job.store.environment(job.record)["SECRET"] == "x"
    ended = job.run()
    assert (ended.state, ended.reason) == ("TIMEOUT", "reached its time limit, after 1 times more time")
    assert job.store.unfinished() == []


def test_requeue_puts_a_job_behind_the_others(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    runner = job.start()
    until(job.is_ready)
    job.store.add(JobRecord("L2", "b", str(tmp_path / "local"), "log", "/", ["true"]), {})
    job.store.stop_mark("L1").write_text("REQUEUED")
    assert runner.wait(20) == 0
    assert (job.record.state, job.record.attempt, job.record.timeouts) == ("PENDING", 1, 0)
    assert job.store.unfinished() == ["L2", "L1"]
    assert not list(job.store.locks.iterdir())


def test_cancelled_while_it_stops_for_another_reason(tmp_path: Path) -> None:
    slow = "trap 'touch stopping; sleep 1; exit 143' TERM; touch ready; while :; do sleep 0.05; done"
    job = Job(tmp_path, ["sh", "-c", slow], checkpoint_s=10)
    runner = job.start()
    until(job.is_ready)
    job.store.stop_mark("L1").write_text("REQUEUED")
    until((tmp_path / "stopping").exists)
    job.store.stop_mark("L1").write_text("CANCELLED")
    assert runner.wait(20) == 0
    assert job.record.state == "CANCELLED" and job.store.unfinished() == []


def test_a_disk_that_is_full_for_a_while_does_not_lose_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, ["sh", "-c", "exit 6"])
    refusals = iter([OSError(28, "No space left on device")] * 2)
    write = JobStore.write

    def refuse(self: JobStore, record: JobRecord) -> None:
        error = next(refusals, None)
        if error is not None:
            raise error
        write(self, record)

    monkeypatch.setattr(JobStore, "write", refuse)
    monkeypatch.setattr("audiotok.launchers.local.runner.time.sleep", lambda _: None)
    monkeypatch.setattr("audiotok.launchers.child.signal.signal", lambda *_: None)
    monkeypatch.setattr("audiotok.launchers.child.signal.set_wakeup_fd", lambda *_, **__: None)
    run(job.store.root, "L1", [])
    assert (job.record.state, job.record.exit_code) == ("FAILED", 6)


def test_a_supervisor_of_an_earlier_version_starts_a_runner(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", "exit 5"])
    command = [sys.executable, "-P", "-m", "launchers.local.runner", str(job.store.root), "L1", ""]
    assert sp.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=30).returncode == 0
    assert (job.record.state, job.record.exit_code) == ("FAILED", 5)


def test_a_job_that_was_cancelled_does_not_start(tmp_path: Path) -> None:
    job = Job(tmp_path, ["touch", "ran"])
    with job.store.holding("L1"):
        job.store.finish(job.record, "CANCELLED", "")
    job.run()
    assert not (tmp_path / "ran").exists()
