"""Runs by hand beside others: one process at a time works on an experiment, and mistakes are one line."""

import os
import subprocess as sp
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny import TinyProject, shown_states
from tests.fakes.witness import runs_of

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Iterator[TinyProject]:
    environ = {"AUDIOTOK_LAUNCHER": "local", "CUDA_VISIBLE_DEVICES": "", "AUDIOTOK_LOCAL_GRACE_S": "3"}
    tiny = TinyProject(tmp_path / "project", environ)
    yield tiny
    tiny.close()


def has_begun(project: TinyProject) -> bool:
    try:
        return bool(runs_of(project.experiment(index=1)))
    except LookupError:
        return False


def test_a_second_run_by_hand_is_refused_until_the_first_has_ended(project: TinyProject) -> None:
    words = ("run", "index=1", "seconds=600")
    first = project.start(*words)
    project.wait(lambda: has_begun(project))
    said = project.dora(*words, code=2)
    assert said.splitlines()[-1].startswith("error: another process runs ") and "Traceback" not in said
    assert len(runs_of(project.experiment(index=1))) == 1
    first.kill()
    first.communicate()
    third = project.start(*words)  # a run that was killed leaves nothing that keeps the next one off
    project.wait(lambda: len(runs_of(project.experiment(index=1))) == 2)
    third.terminate()
    third.communicate()
    assert not (project.experiment(index=1) / "run.lock").exists()


def test_a_run_by_hand_beside_a_job_is_refused(project: TinyProject) -> None:
    words = ("index=1", "seconds=600")
    project.dora("launch", "--no_tail", *words)
    project.wait(lambda: has_begun(project))
    said = project.dora("run", *words, code=2)
    assert said.splitlines()[-1].startswith("error: job L1 of experiment ") and "-C` cancels it" in said
    project.dora("info", *words, "-C")
    by_hand = project.start("run", *words)
    project.wait(lambda: len(runs_of(project.experiment(index=1))) == 2)
    by_hand.terminate()
    by_hand.communicate()


def test_a_folder_that_cannot_be_written_is_one_line(project: TinyProject) -> None:
    said = project.dora("run", "index=1", code=2, environ={"AUDIOTOK_OUTPUT_DIR": "/proc/nope"})
    assert said.startswith("error: cannot write /proc/nope") and said.count("\n") == 1


def test_a_record_of_a_job_that_cannot_be_read_hides_no_job(project: TinyProject) -> None:
    project.many(1)
    project.settle()
    (project.experiment(index=1) / "job.json").write_text("{")
    said = project.many(1)
    assert shown_states(said) == ["UNKNOWN"] and "job.json cannot be read" in said
    assert [path.stem for path in project.store.jobs.iterdir()] == ["L1"]
    (project.experiment(index=1) / "job.json").unlink()
    assert shown_states(project.many(1)) == ["COMPLETED"]


def test_a_reader_that_leaves_gets_no_traceback(project: TinyProject) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dora", "-P", "tinyxp", "grid", "many", "--no_monitoring"]
    environ = {**project.environ, **project.grid_environ(1)}
    done = sp.run(command, cwd=project.folder, env=environ, stdout=write, stderr=sp.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.returncode == 141 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
