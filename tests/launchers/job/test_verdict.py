"""How a job is said to have ended, and why."""

import json
from pathlib import Path

import pytest

from audiotok.launchers.job.verdict import last_error, oom_kills, verdict


@pytest.mark.parametrize(
    ("code", "cause", "expected"),
    [
        (0, None, ("COMPLETED", "")),
        (0, "CANCELLED", ("COMPLETED", "")),  # it was done before the signal came
        (-9, None, ("FAILED", "killed by SIGKILL (out of memory?)")),
        (137, None, ("FAILED", "killed by SIGKILL (out of memory?)")),
        (-11, None, ("FAILED", "killed by SIGSEGV")),
        (-15, "CANCELLED", ("CANCELLED", "cancelled while it was running")),
        (143, "TIMEOUT", ("TIMEOUT", "reached its time limit")),
        (-9, "TIMEOUT", ("TIMEOUT", "reached its time limit (killed, as it did not end in time)")),
        (143, None, ("FAILED", "exit code 143")),
        (3, None, ("FAILED", "exit code 3")),
    ],
)
def test_verdict(tmp_path: Path, code: int, cause: str | None, expected: tuple[str, str]) -> None:
    said = verdict(code, cause, folder=tmp_path, log=tmp_path / "log", began=0.0)
    assert said == (*expected, code)


def test_the_reason_is_what_the_job_says_else_its_log(tmp_path: Path) -> None:
    def reason(code: int = 1, cause: str | None = None) -> str:
        return verdict(code, cause, folder=tmp_path, log=tmp_path / "log", began=100.0).reason

    (tmp_path / "log").write_text("epoch 1\nTraceback\n  torch.OutOfMemoryError: deep\nKeyError: no\nbye\n")
    assert reason() == "exit code 1: KeyError: no"
    assert reason(1, "TIMEOUT") == "reached its time limit (exit code 1: KeyError: no)"
    (tmp_path / "status.json").write_text(json.dumps({"reason": "loss is nan", "updated": 99.0}))
    assert reason() == "exit code 1: KeyError: no"  # an earlier attempt said that
    (tmp_path / "status.json").write_text(json.dumps({"reason": "loss is nan", "updated": 101.0}))
    assert reason(2) == "exit code 2: loss is nan"


@pytest.mark.parametrize(
    ("code", "oom_killed", "log", "state"),
    [
        (-9, True, "", "OUT_OF_MEMORY"),
        (1, True, "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", "OUT_OF_MEMORY"),
        (1, True, "ValueError: of our own", "FAILED"),  # another job of the group ran out of memory
        (1, False, "MemoryError", "OUT_OF_MEMORY"),
        (1, False, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "OUT_OF_MEMORY"),
        (1, False, "torch.OutOfMemoryError: CUDA out of memory.", "FAILED"),  # more memory of the node does not help
    ],
)
def test_out_of_memory(tmp_path: Path, code: int, oom_killed: bool, log: str, state: str) -> None:
    (tmp_path / "log").write_text(log)
    said = verdict(code, None, folder=tmp_path, log=tmp_path / "log", began=0.0, oom_killed=oom_killed)
    assert said.state == state


def test_the_kernel_tells_how_often_it_ran_out_of_memory(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    (tmp_path / "proc/self").mkdir(parents=True)
    group = tmp_path / "sys/fs/cgroup/job_7"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/\n0::/job_7\n")
    assert oom_kills(tmp_path) == 0
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/elsewhere\n")  # version 1, in a container
    (tmp_path / "sys/fs/cgroup/memory").mkdir()
    (tmp_path / "sys/fs/cgroup/memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert oom_kills(tmp_path) == 5


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
    assert last_error(tmp_path / "nowhere") == last_error(None) == ""
