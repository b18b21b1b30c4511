"""Commands that read start nothing and write nothing; a queue of somebody else, or of another folder, never runs."""

import ctypes
import json
import os
import shutil
import subprocess as sp
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiotok.launchers.local.queue import JobRecord
from audiotok.status import read_json, write_json
from tests.fakes.tiny import TinyProject

pytestmark = pytest.mark.slow

COMMANDS = [
    ["audiotok.cli", "plan", "many"],
    ["audiotok.cli", "plan", "many", "--retry", "--format", "json"],
    ["audiotok.cli", "plan", "many", "-C"],
    ["audiotok.cli", "requeue", "SIG"],
    ["audiotok.cli", "results"],
    ["audiotok.cli", "results", "many", "--columns", "sig,state,reason"],
    ["audiotok.cli", "doctor"],
    ["dora", "grid", "many", "--dry_run"],
    ["dora", "grid", "many", "--dry_run", "--retry"],
    ["dora", "grid", "many", "-C", "--dry_run"],
    ["dora", "info", "-f", "SIG"],
    ["dora", "info", "-f", "SIG", "-m"],
    ["dora", "info", "-j", "L1"],
    ["dora", "info", "index=1"],
]


class Queue:
    """Experiments of a grid that wait in a queue which no supervisor looks after; each would leave a mark."""

    def __init__(self, project: TinyProject) -> None:
        self.project, self.store = project, project.store
        project.environ |= {"PYTHONDONTWRITEBYTECODE": "1", **project.grid_environ(4)}
        project.dora("grid", "many", "--dry_run", "--init")
        self.folders = [project.experiment(index=index) for index in range(1, 5)]
        self.mark = project.folder / "ran"
        (project.outputs / "grids" / "many").mkdir(parents=True)
        (project.outputs / "by_id").mkdir()
        self.store.create()
        for number, folder in enumerate(self.folders, start=1):
            (project.outputs / "grids" / "many" / folder.name).symlink_to(f"../../xps/{folder.name}")
            (project.outputs / "by_id" / f"L{number}").symlink_to(f"../xps/{folder.name}")
            log, command = str(folder / "log"), ["touch", str(self.mark)]
            record = JobRecord(f"L{number}", folder.name, str(folder), log, "/", command, user="ada@here")
            self.store.add(record, dict(os.environ))

    def forge(self, number: int, **words: Any) -> None:
        """Change the words of a record, as somebody may who sends a folder; its files get new inodes."""
        for path in (self.store.jobs / f"L{number}.json", self.folders[number - 1] / "job.json"):
            write_json(path, {**(read_json(path) or {}), **words})

    def run(self, *command: str, code: int | None = 0) -> str:
        words = [self.folders[0].name if word == "SIG" else word for word in command]
        if words[1] != "results" and words[1] != "doctor":
            words[1:1] = ["-P", "tinyxp"] if words[0] == "dora" else []
            words += ["-P", "tinyxp"] if words[0] == "audiotok.cli" else []
        done = sp.run(
            [sys.executable, "-m", *words],
            cwd=self.project.folder,
            env={**self.project.environ, **({"DORA_PACKAGE": "audiotok"} if "doctor" in words else {})},
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=obey_permissions,
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said and done.returncode in ((0, 1) if code is None else (code,)), said
        return said


def obey_permissions() -> None:
    """Have root, too, write only where permissions allow it: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.getuid() == 0:
        for capability in (1, 2):
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0


def listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All there is below a folder, with contents and times; without the cache of `audiotok results`."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if ".cache" not in path.parts:
            about = path.lstat()
            content = (about.st_mtime_ns, path.read_bytes()) if path.is_file() and not path.is_symlink() else ()
            found[str(path.relative_to(folder))] = (about.st_mode, about.st_uid, *content)
    return found


@pytest.fixture
def queue(project: TinyProject) -> Iterator[Queue]:
    made = Queue(project)
    yield made
    for folder, _, _ in os.walk(project.outputs):
        Path(folder).chmod(0o755)


def test_reading_starts_and_writes_nothing(queue: Queue) -> None:
    queue.forge(2, root="/home/eve/outputs/local", host="elsewhere", uid=os.getuid() + 1)  # received
    queue.forge(3, inode=7)  # a copy that was made to look as if it had been queued here
    (queue.store.queue / "L4").rename(queue.store.drafts / "L4")  # a command that died
    before = listing(queue.project.folder)
    for command in COMMANDS:
        queue.run(*command, code=None if "doctor" in command else 0)
        assert listing(queue.project.folder) == before, command
    assert not queue.store.is_held(queue.store.supervisor)


def test_reading_a_tree_that_cannot_be_written(queue: Queue) -> None:
    for folder, _, files in os.walk(queue.project.outputs):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
    before = listing(queue.project.outputs)
    for command in COMMANDS:
        queue.run(*command, code=None if "doctor" in command else 0)
    said = queue.run("dora", "grid", "many", "--no_monitoring", code=2)
    assert said.count("\n") == 1 and said.startswith("error: cannot open ") and "ermission" in said
    said = queue.run("dora", "launch", "--no_tail", "index=7", code=2)
    assert "error: cannot " in said
    assert listing(queue.project.outputs) == before and not queue.mark.exists()


def test_only_what_was_queued_here_is_started_and_it_is_named(queue: Queue) -> None:
    queue.forge(1, root="/home/eve/outputs/local", host="elsewhere", user="eve@elsewhere")
    queue.forge(2, inode=7)
    queue.forge(3, uid=os.getuid() + 1, user="bob@here")
    for number in (1, 2, 3):  # the marks of these would show
        queue.forge(number, command=["touch", str(queue.mark.with_name(f"ran{number}"))])
    said = queue.run("dora", "grid", "many", "--no_monitoring")
    sig = queue.folders[3].name
    assert f"Starting 1 local jobs that wait here: {sig}/\n" in said
    assert said.count("NODE_FAIL") >= 2 and "not queued here, --retry does it" in said
    queue.project.wait(queue.mark.exists)
    queue.project.wait(lambda: not queue.store.is_held(queue.store.supervisor))
    assert [path.name for path in queue.project.folder.glob("ran*")] == ["ran"]
    info = queue.run("dora", "info", "-f", queue.folders[2].name)
    assert "state=PENDING (waits in the queue of bob@here; -C and --retry queue it here)" in info
    queue.run("dora", "grid", "many", "-C")
    assert "state=CANCELLED" in queue.run("dora", "info", "-f", queue.folders[2].name)


def test_a_hostile_record_reaches_nothing_outside(queue: Queue, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    write_json(victim / "job.json", {"launcher": "local", "job_id": "L1", "state": "RUNNING"})
    queue.forge(1, folder=str(victim), uid=os.getuid() + 1)
    queue.forge(2, job_id="../../../victim/L2")
    queue.forge(3, folder=7)
    queue.forge(4, folder=f"{queue.project.outputs}/xps/../../../victim")
    before = listing(victim)
    for command in COMMANDS[:3]:
        queue.run(*command)
    queue.run("dora", "grid", "many", "-C")
    queue.run("dora", "grid", "many", "--retry", "--no_monitoring")
    queue.project.settle()
    assert listing(victim) == before and not queue.mark.exists()


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_was_copied_or_moved_is_another_one(queue: Queue, tmp_path: Path, moved: bool) -> None:
    project, other = queue.project, tmp_path / "other"
    if moved:
        project.outputs.rename(other)
        (project.outputs / "local").mkdir(parents=True)  # its file system may still be there
    else:
        shutil.copytree(project.outputs, other, symlinks=True)
    before = listing(project.outputs)
    environ = {"AUDIOTOK_OUTPUT_DIR": str(other), "AUDIOTOK_LOCAL_SLOTS": "4"}
    said = project.dora("grid", "many", "--no_monitoring", environ=environ)
    assert said.count("NODE_FAIL") >= 4 and "not queued here, --retry does it" in said and "Starting" not in said
    reason = f"not queued here, --retry does it (but by ada@here in {project.outputs})"
    assert reason in project.dora("info", "-f", queue.folders[0].name, environ=environ)
    rows = queue.run("audiotok.cli", "results", "many", "--root", str(other), "--format", "csv")
    assert rows.count("NODE_FAIL") >= 4 and reason in rows
    project.dora("grid", "many", "-C", environ=environ)
    said = project.dora("grid", "many", "0", "--retry", "--no_monitoring", environ=environ)
    assert "Submitted job L5" in said
    project.wait(lambda: (read_json(other / "xps" / queue.folders[0].name / "job.json") or {})["state"] == "COMPLETED")
    assert (read_json(other / "local" / "jobs" / "L1.json") or {})["state"] == "CANCELLED"
    assert listing(project.outputs) == before and not queue.mark.exists()


def test_a_link_to_the_folder_is_the_folder(queue: Queue, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(queue.project.outputs)
    said = queue.project.dora("grid", "many", "--no_monitoring", environ={"AUDIOTOK_OUTPUT_DIR": str(link)})
    assert "Starting 4 local jobs that wait here" in said
    queue.project.wait(lambda: set(queue.project.book().values()) == {"COMPLETED"})


def test_cancelling_and_running_by_hand_start_nothing(queue: Queue) -> None:
    argv = json.loads((queue.folders[0] / ".argv.json").read_text())
    said = queue.run("dora", "run", *argv, "seconds=0.1")
    queue.run("dora", "info", "-f", "SIG", "-C")
    queue.run("dora", "launch", "-C", "index=2")
    assert "Starting" not in said and list(queue.project.book().values()) == ["CANCELLED"] * 2 + ["PENDING"] * 2
    assert not queue.store.is_held(queue.store.supervisor) and not queue.mark.exists()
