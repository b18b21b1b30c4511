"""The runner of one job: environment, verdict, reason."""

import json
import threading
from pathlib import Path

import pytest

from launchers.jobs import JobRecord, JobStore
from launchers.runner import job_environment, last_error, run, verdict


def record(folder: Path, command: list[str] | None = None, **values: object) -> JobRecord:
    job = JobRecord("L1", "abcd1234", str(folder), str(folder / "log"), str(folder), command or ["true"])
    for name, value in values.items():
        setattr(job, name, value)
    return job


def test_environment_of_one_process(tmp_path: Path) -> None:
    submitted = {"PATH": "/bin", "WORLD_SIZE": "7", "OMP_NUM_THREADS": "3"}
    environ = job_environment(record(tmp_path, threads=2), submitted)
    assert environ["PATH"] == "/bin" and environ["AUDIOTOK_JOB_ID"] == "L1"  # which StatusWriter looks for
    assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"]) == ("0", "0", "1")
    assert (environ["OMP_NUM_THREADS"], environ["MKL_NUM_THREADS"]) == ("3", "2")  # the user's own word holds
    assert "CUDA_VISIBLE_DEVICES" not in environ


def test_environment_with_gpus(tmp_path: Path) -> None:
    job = record(tmp_path, gpus=2, visible=["0", "1", "2"], devices=["0", "2"])
    environ = job_environment(job, {"CUDA_VISIBLE_DEVICES": "0,1,2", "RANK": "1"})
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert not {"RANK", "WORLD_SIZE"} & set(environ)  # Dora starts the processes and tells each its own
    assert job_environment(record(tmp_path, visible=["0"]), {})["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("code", "cancelled", "expected"),
    [
        (0, False, ("COMPLETED", "")),
        (0, True, ("COMPLETED", "")),  # it was done before the signal came
        (-9, False, ("FAILED", "killed by SIGKILL")),
        (-15, True, ("CANCELLED", "cancelled while it was running")),
        (3, False, ("FAILED", "exit code 3")),
    ],
)
def test_verdict(tmp_path: Path, code: int, cancelled: bool, expected: tuple[str, str]) -> None:
    assert verdict(record(tmp_path), code, cancelled=cancelled) == expected


def test_the_reason_is_what_the_job_says_else_its_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        "epoch 1\nTraceback\n  torch.OutOfMemoryError: deep\ntorch.OutOfMemoryError: no\nbye\n"
    )
    assert verdict(record(tmp_path), 1, cancelled=False)[1] == "exit code 1: torch.OutOfMemoryError: no"
    (tmp_path / "status.json").write_text(json.dumps({"reason": "loss is nan"}))
    assert verdict(record(tmp_path), 1, cancelled=False)[1] == "exit code 1: loss is nan"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("error: no audio; run it", "no audio; run it"),
        ("torch.OutOfMemoryError: 3 GB", "torch.OutOfMemoryError: 3 GB"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("\x1b[36m[12:00]\x1b[0m[audiotok.train][\x1b[31mERROR\x1b[0m] - manifest is gone", "manifest is gone"),
    ],
)
def test_lines_that_read_as_errors(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "log").write_text(f"ValueError: earlier\n{line}\n[12:00][x][INFO] - bye\nerrors: 3\n")
    assert last_error(tmp_path / "log") == says


def test_last_line_of_a_log_without_errors(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 20000 + b"\n" + b"y" * 300 + b"\xff\n\n")
    assert last_error(tmp_path / "log") == "y" * 200
    assert last_error(tmp_path / "nowhere") == ""


def start(tmp_path: Path, command: list[str]) -> tuple[JobStore, JobRecord]:
    store = JobStore(tmp_path / "local")
    store.create()
    job = record(tmp_path, command, grace_s=0.2)
    store.add(job, {"PATH": "/usr/bin:/bin"})
    run(store.root, "L1", [])
    ended = store.read("L1")
    assert ended is not None
    return store, ended


@pytest.fixture(autouse=True)
def signals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    store, job = start(tmp_path, ["/nowhere/python"])
    assert job.state == "FAILED" and "could not be started" in job.reason
    assert store.unfinished() == []


def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    _, job = start(tmp_path, ["sh", "-c", "echo out; echo ValueError: wrong >&2; exit 7"])
    assert (job.state, job.exit_code, job.reason) == ("FAILED", 7, "exit code 7: ValueError: wrong")
    assert (tmp_path / "log").read_text() == "out\nValueError: wrong\n"


def test_a_cancel_mark_ends_even_the_deaf(tmp_path: Path) -> None:
    mark = JobStore(tmp_path / "local").cancel_mark("L1")
    ready = tmp_path / "ready"

    def mark_when_ready() -> None:
        while not ready.exists():
            threading.Event().wait(0.02)
        mark.touch()

    thread = threading.Thread(target=mark_when_ready)
    thread.start()
    _, job = start(tmp_path, ["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"])
    thread.join()
    assert (job.state, job.exit_code) == ("CANCELLED", -9)
    assert not mark.exists()


def test_a_job_that_was_cancelled_does_not_start(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "local")
    store.create()
    job = record(tmp_path, ["touch", str(tmp_path / "ran")])
    store.add(job, {})
    with store.holding("L1"):
        store.finish(job, "CANCELLED", "")
    run(store.root, "L1", [])
    assert not (tmp_path / "ran").exists()
