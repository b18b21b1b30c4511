"""Children of a job: how they are started and stopped."""

import os
import signal
import subprocess as sp
import sys
import time
from pathlib import Path

import pytest

from audiotok.launchers.job.process import Signals, attend, frozen_environment, rank_environment, start

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
        "import os, sys, time; from audiotok.launchers.job.process import start\n"
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

    assert attend([child], signals, look=look, poll_s=0.02, grace_s=lambda _: 0.5) == "TIMEOUT"
    assert child.returncode == code
    heard = tmp_path / "heard"
    assert (heard.read_text().count("TERM") if heard.exists() else 0) == terms


def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path, signals: Signals) -> None:
    child = shell(tmp_path, "sleep 600 & echo $! > pid; exit 3")
    assert attend([child], signals, look=lambda: None, poll_s=0.02, grace_s=lambda _: 0.0) is None
    assert child.returncode == 3
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_several_children_none_outlives_one_that_failed(
    tmp_path: Path, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiotok.launchers.job.process.PEERS_S", 0.2)
    children = [shell(tmp_path, "sleep 600"), shell(tmp_path, "exit 4")]
    assert attend(children, signals, look=lambda: None, poll_s=0.02, grace_s=lambda _: 0.0) is None
    assert [child.returncode for child in children] == [-9, 4]


@pytest.mark.parametrize("script", [POLITE, "touch ready; sleep 600"])
def test_a_signal_to_parent_and_child_is_a_stop_in_either_order(tmp_path: Path, script: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from audiotok.launchers.job.process import *\n"
        "signals = Signals({signal.SIGTERM: 'PREEMPTED'})\n"
        "child = start(['sh', '-c', sys.argv[1]], environ=os.environ)\n"
        "Path('pid').write_text(str(child.pid)); Path('pid').rename('child')\n"
        "print(attend([child], signals, look=lambda: None, poll_s=0.5, grace_s=lambda _: 9.0), child.returncode)"
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
