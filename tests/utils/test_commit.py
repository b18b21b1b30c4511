"""The commit of a run, from a real repository."""

import subprocess as sp
from pathlib import Path

import pytest

from audiotok.utils.commit import current_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return sp.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True).stdout


def test_commit_and_changes_since(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert current_commit(tmp_path) == ""  # nothing committed yet
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "One")
    commit = current_commit(tmp_path)
    assert commit and git(tmp_path, "rev-parse", "HEAD").startswith(commit)
    (tmp_path / "notes.txt").write_text("mine")  # not tracked: no other code
    assert current_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2")
    assert current_commit(tmp_path) == f"{commit}-dirty"


def test_no_repository_no_commit(tmp_path: Path) -> None:
    assert current_commit(tmp_path / "nowhere") == ""


def test_a_job_that_runs_a_snapshot_is_given_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOTOK_COMMIT", "32323f5-dirty")
    assert current_commit() == "32323f5-dirty" and current_commit(tmp_path) == ""
