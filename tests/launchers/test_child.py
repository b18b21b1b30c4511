"""Children of a job: how they are started and stopped, and how they ended."""

import json
import os
import signal
import subprocess as sp
import sys
import time
from pathlib import Path

import pytest

from audiotok.launchers.child import (
    Outcome,
    Signals,
    at_time_limit,
    attend,
    frozen_environment,
    last_error,
    oom_kills,
    outcome,
    rank_environment,
    start,
)
from tests.fakes.tiny import REPOSITORY

DEAF = "trap '' TERM; touch ready; while :; do sleep 0.05; done"
POLITE = "trap 'echo TERM >> heard; exit 143' TERM; touch ready; while :; do sleep 0.05; done"


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Signals:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("signal.set_wakeup_fd", lambda *_, **__: None)
    return Signals({})


def shell(folder: Path, script: str) -> "sp.Popen[bytes]":
    return start(["sh", "-c", script], environ=os.environ, cwd=str(folder), log=folder / "log")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_child_shares_nothing_with_its_parent_but_its_end(tmp_path: Path) -> None:
    code = "import os, signal; print(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGUSR2).name)"
    child = start([sys.executable, "-c", code], environ={"A": "b"}, cwd=str(tmp_path), log=tmp_path / "log")
    assert child.wait() == 0
    assert (tmp_path / "log").read_text() == "True SIG_IGN\n"
    shell(tmp_path, "echo again").wait()
    assert (tmp_path / "log").read_text() == "True SIG_IGN\nagain\n"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from audiotok.launchers.child import start\n"
        "print(start(['sleep', '600'], environ=os.environ).pid, flush=True); time.sleep(600)"
    )
    parent = sp.Popen([sys.executable, "-c", code], stdout=sp.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("script", "code", "terms"), [(POLITE, 143, 1), (DEAF, -9, 0)])
def test_a_stop_is_one_sigterm_then_sigkill(
    tmp_path: Path, signals: Signals, script: str, code: int, terms: int
) -> None:
    child = shell(tmp_path, script)

    def look() -> str | None:
        return "TIMEOUT" if (tmp_path / "ready").exists() else None

    assert attend([child], signals, poll=look, poll_s=0.02, grace_s=lambda _: 0.5) == "TIMEOUT"
    assert child.returncode == code
    heard = tmp_path / "heard"
    assert (heard.read_text().count("TERM") if heard.exists() else 0) == terms


def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path, signals: Signals) -> None:
    child = shell(tmp_path, "sleep 600 & echo $! > pid; exit 3")
    assert attend([child], signals, poll=lambda: None, poll_s=0.02, grace_s=lambda _: 0.0) is None
    assert child.returncode == 3
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_several_children_none_outlives_one_that_failed(
    tmp_path: Path, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiotok.launchers.child.PEERS_S", 0.2)
    children = [shell(tmp_path, "sleep 600"), shell(tmp_path, "exit 4")]
    assert attend(children, signals, poll=lambda: None, poll_s=0.02, grace_s=lambda _: 0.0) is None
    assert [child.returncode for child in children] == [-9, 4]


@pytest.mark.parametrize("script", [POLITE, "touch ready; sleep 600"])
def test_a_signal_to_parent_and_child_is_a_stop_in_either_order(tmp_path: Path, script: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from audiotok.launchers.child import *\n"
        "signals = Signals({signal.SIGTERM: 'PREEMPTED'})\n"
        "child = start(['sh', '-c', sys.argv[1]], environ=os.environ)\n"
        "Path('pid').write_text(str(child.pid)); Path('pid').rename('child')\n"
        "print(attend([child], signals, poll=lambda: None, poll_s=0.5, grace_s=lambda _: 9.0), child.returncode)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    parent = sp.Popen([sys.executable, "-c", code, script], cwd=tmp_path, env=environ, stdout=sp.PIPE, text=True)
    while not (tmp_path / "ready").exists() or not (tmp_path / "child").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGTERM)  # the child hears of it first
    time.sleep(0.2)
    parent.send_signal(signal.SIGTERM)
    said, _ = parent.communicate(timeout=20)
    assert said.split() == ["PREEMPTED", "143" if script == POLITE else "-15"]


def test_environments(tmp_path: Path) -> None:
    assert rank_environment(3, 4, 1, "n1", 12345) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "12345",
    }
    assert frozen_environment(tmp_path) == {}
    (tmp_path / "frozen.json").touch()
    assert frozen_environment(tmp_path) == {"AUDIOTOK_FROZEN": str(tmp_path / "frozen.json")}


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
    ended = outcome(code, cause, folder=tmp_path, log=tmp_path / "log", began=0.0)
    assert ended == (*expected, code)


def test_the_reason_is_what_the_job_says_else_its_log(tmp_path: Path) -> None:
    def reason(code: int = 1, cause: str | None = None) -> str:
        return outcome(code, cause, folder=tmp_path, log=tmp_path / "log", began=100.0).reason

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
    ended = outcome(code, None, folder=tmp_path, log=tmp_path / "log", began=0.0, oom_killed=oom_killed)
    assert ended.state == state


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


def test_the_time_limit_requeues_so_many_times() -> None:
    ended = Outcome("TIMEOUT", "reached its time limit", 143)
    assert at_time_limit(ended, 0, 0) == ended
    assert at_time_limit(ended, 1, 2) == ("REQUEUED", "reached its time limit (2 of 2); queued again to go on", 143)
    assert at_time_limit(ended, 2, 2) == ("TIMEOUT", "reached its time limit, after 2 times more time", 143)


def test_it_needs_the_standard_library_alone() -> None:
    heavy = "{'torch', 'dora', 'submitit', 'omegaconf', 'numpy'}"
    code = f"import sys, audiotok.launchers.child; print({heavy} & set(sys.modules))"
    process = sp.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
