"""One command at a time submits, and who waits is told for whom."""

import errno
import fcntl
import os
import re
import signal
import subprocess as sp
import sys
import time
from pathlib import Path

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.lock import SubmitLock, user_and_host, user_name
from tests.fakes.tiny import REPOSITORY

HOLDER = (
    "import sys, time; from pathlib import Path; from audiotok.launchers.lock import SubmitLock\n"
    "with SubmitLock(Path(sys.argv[1])).hold():\n"
    "    print('held', flush=True); time.sleep(60)"
)


def start_holder(path: Path, user: str) -> "sp.Popen[str]":
    environ = {**os.environ, "USER": user, "LOGNAME": user}
    holder = sp.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=REPOSITORY, env=environ, stdout=sp.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_who_waits_is_told_for_whom_and_gives_up_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "submit"
    said: list[str] = []
    holder = start_holder(path, "ada")
    try:
        lock = SubmitLock(path, patience_s=0.5, log=said.append)
        with (
            pytest.raises(
                LaunchError, match=rf"ada@\S+ \(process {holder.pid}, since [\d:]+\) .* nothing was submitted"
            ),
            lock.hold(),
        ):
            pass
        assert len(said) == 1 and re.match(rf"waiting for ada@\S+ \(process {holder.pid}, ", said[0])
        with lock.try_hold() as held:
            assert not held and not lock.held
    finally:
        holder.kill()
        holder.wait()


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "submit"
    holder = start_holder(path, "ada")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert path.read_text().startswith("ada@")  # what it wrote stays, its lock does not
    before = time.monotonic()
    with SubmitLock(path).hold():
        assert path.read_text().startswith(f"{user_and_host()} {os.getpid()} ")
    assert time.monotonic() - before < 5
    assert path.read_text() == ""


def test_the_process_that_holds_it_may_take_it_again(tmp_path: Path) -> None:
    lock, other = SubmitLock(tmp_path / "submit"), SubmitLock(tmp_path / "submit", patience_s=0.0)
    with lock.hold():
        with lock.hold(), lock.try_hold() as held:
            assert held
        assert lock.held
        with other.try_hold() as held:
            assert not held
    assert not lock.held
    with other.try_hold() as held:
        assert held


def test_a_filesystem_without_locks_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with SubmitLock(tmp_path / "submit").hold():
        pass
    assert "without locks" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()  # not a folder
    lock = SubmitLock(tmp_path / "locks" / "submit")
    with pytest.raises(LaunchError, match="it is needed to submit"), lock.hold():
        pass
    with lock.try_hold() as held:
        assert not held


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o000, 0o666)])
def test_those_may_lock_our_file_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with SubmitLock(tmp_path / "submit").hold():
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "submit").stat().st_mode & 0o777 == mode


def test_a_user_without_a_name_or_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no terminal")

    monkeypatch.setattr(os, "getlogin", fail)
    assert user_name()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_111)
    assert user_name() == "4000111"
