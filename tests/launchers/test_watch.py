"""Watching a grid: when a scheduler is queried, when the table is written, and what Ctrl-C says."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dora.grid import RunGridArgs

from audiotok.launchers import watch as module
from audiotok.launchers.watch import LOG_S, QUERY_S, _given_s, again, watch
from tests.fakes.tiny import TinyProject


class _Clock:
    """A clock that only sleeping moves; after each second an experiment may change."""

    def __init__(self, steps: dict[float, Callable[[], Any]]) -> None:
        self.now, self.steps = 0.0, steps

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in sorted(when for when in self.steps if when <= self.now):
            self.steps.pop(when)()


class _Watched:
    """An experiment whose state is as its scheduler last said, and whose status file has a time."""

    def __init__(self, folder: Path, *, spare: bool) -> None:
        self.xp, self.spare, self.queries, self.shown = (
            SimpleNamespace(folder=folder),
            spare,
            list[float](),
            list[float](),
        )
        self.true, self.known = "RUNNING", "RUNNING"
        self.takes_s = 0.0  # a query
        self.status = folder / "status.json"

    def touch(self, moment: int) -> None:
        self.status.touch()
        os.utime(self.status, (moment, moment))

    def end(self) -> None:
        self.true = "COMPLETED"

    def is_done(self) -> bool:
        return self.known == "COMPLETED"

    def state(self) -> str:
        return self.known

    def run(self, monkeypatch: pytest.MonkeyPatch, args: RunGridArgs, steps: dict[float, Callable[[], Any]]) -> None:
        clock = _Clock(steps)
        monkeypatch.setattr(module, "time", clock)

        def update() -> bool:
            self.queries.append(clock.now)
            self.known = self.true
            clock.now += self.takes_s
            return self.spare

        def table(show: Callable[..., None]) -> bool:
            show(f"table at {clock.now:g}", self.known)
            return self.is_done()

        watch(args, [self], update, table)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dora", "grid", "x"])


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_a_scheduler_is_queried_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _Watched(tmp_path, spare=True)
    one.run(monkeypatch, RunGridArgs(), {3.0: lambda: one.touch(7), 34.0: one.end})
    assert one.queries == [0.0, QUERY_S, 2 * QUERY_S, 3 * QUERY_S, 4 * QUERY_S]
    assert shown(capsys) == ["table at 0 RUNNING", "table at 40 COMPLETED"]  # in a pipe: when a state has changed


def test_an_interval_is_kept_though_a_look_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _Watched(tmp_path, spare=True)
    one.takes_s = 1.5
    one.run(monkeypatch, RunGridArgs(interval=0.05), {9.0: one.end})
    assert one.queries == [0.0, 4.5, 9.0]  # 3 s after the end of the one before


def test_local_jobs_are_looked_at_every_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _Watched(tmp_path, spare=False)
    one.run(monkeypatch, RunGridArgs(), {3.0: one.end})
    assert one.queries == [0.0, 1.0, 2.0, 3.0] and shown(capsys) == ["table at 0 RUNNING", "table at 3 COMPLETED"]


def test_a_terminal_shows_changes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "in_colour", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    one = _Watched(tmp_path, spare=True)
    one.run(monkeypatch, RunGridArgs(), {3.0: lambda: one.touch(7), 5.0: lambda: one.touch(8), 9.0: one.end})
    assert one.queries == [0.0, QUERY_S]
    tables = ["table at 0 RUNNING", "table at 3 RUNNING", "table at 5 RUNNING", "table at 10 COMPLETED"]
    assert shown(capsys) == [tables[0], *(f"\033[1A\033[J{text}" for text in tables[1:])]


def test_a_log_gets_a_table_every_few_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _Watched(tmp_path, spare=True)
    one.run(monkeypatch, RunGridArgs(), {LOG_S + 15.0: one.end})
    assert shown(capsys) == ["table at 0 RUNNING", "table at 300 RUNNING", "table at 320 COMPLETED"]


def test_an_interval_that_is_given_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _Watched(tmp_path, spare=True)
    one.run(monkeypatch, RunGridArgs(interval=1.0), {100.0: one.end})
    assert one.queries == [0.0, 60.0, 120.0]
    assert shown(capsys) == ["table at 0 RUNNING", "table at 60 RUNNING", "table at 120 COMPLETED"]
    for words, seconds in ((["-i", "5"], 300.0), (["--interval=5"], 300.0), (["--init"], None), ([], None)):
        monkeypatch.setattr(sys, "argv", ["dora", "grid", "x", *words])
        assert _given_s(RunGridArgs(_from_commandline=True)) == seconds
    assert _given_s(RunGridArgs(interval=0.0)) == 1.0


def test_once_is_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = _Watched(tmp_path, spare=True)
    one.run(monkeypatch, RunGridArgs(monitor=False), {})
    assert one.queries == [0.0] and shown(capsys) == ["table at 0 RUNNING"]


def test_the_command_to_watch_again_submits_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-P", "my codec", "grid", "x", "!seed=1", "-r", "-rD", "--retry", "--clear", "--replace_done", "-i", "1"]
    monkeypatch.setattr(sys, "argv", ["/bin/dora", *words])
    assert again() == "dora -P 'my codec' grid x '!seed=1' -i 1"


@pytest.fixture
def running(project: TinyProject) -> Iterator[tuple[TinyProject, str]]:
    """A project whose experiment runs, and its signature."""
    project.dora("launch", "--no_tail", "index=1", "seconds=600")
    project.wait(lambda: project.book().get("L1") == "RUNNING" and Path(project.job(index=1)["log"]).exists())
    yield project, project.experiment(index=1).name
    project.dora("info", "index=1", "seconds=600", "-C")


def interrupted(project: TinyProject, *arguments: str, code: int) -> str:
    """What a command says after Ctrl-C, once it follows the log."""
    command = project.start(*arguments)
    assert command.stdout is not None
    assert any("index 1 here" in line for line in command.stdout)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does, to `tail` as well
    said = command.stdout.read()
    assert command.wait(30) == code, said
    return str(said)


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(running: tuple[TinyProject, str]) -> None:
    project, sig = running
    line = f"the job goes on; `dora info -f {sig} -t` follows its log again, `dora info -f {sig} -C` cancels it.\n"
    assert interrupted(project, "info", "-f", sig, "-t", code=130) == f"Log: {line}"
    assert interrupted(project, "launch", "index=1", "seconds=600", code=0) == f"Launch: {line}"
    assert project.book() == {"L1": "RUNNING"}
