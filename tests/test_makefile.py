"""`make clean` removes what can be made again; experiments, data and the environment only when named."""

import os
import shutil
import subprocess as sp
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
KEPT = {"outputs", "data", ".venv"}


def make(folder: Path, *arguments: str) -> str:
    return sp.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout after some work in it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*KEPT, "build", "dist", ".mypy_cache", ".pytest_cache", "reports", "audiotok.egg-info"):
        (tmp_path / name / "deep").mkdir(parents=True)
    for name in ("audiotok", "benchmarks", "tests", "launchers", "grids"):
        (tmp_path / name / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "code.py").touch()
    (tmp_path / ".venv" / "__pycache__").mkdir()
    return tmp_path


def test_clean_leaves_outputs_data_and_the_environment(folder: Path) -> None:
    make(folder, "clean")
    left = {path.name for path in folder.iterdir()}
    assert left == KEPT | {"reports", "Makefile", "audiotok", "benchmarks", "tests", "launchers", "grids"}
    assert [path.parent.name for path in folder.rglob("__pycache__")] == [".venv"]
    assert (folder / "audiotok/code.py").exists()


@pytest.mark.parametrize(
    ("target", "gone"), [("clean-outputs", "outputs"), ("clean-data", "data"), ("clean-venv", ".venv")]
)
def test_each_of_them_goes_by_its_own_name(target: str, gone: str, folder: Path) -> None:
    make(folder, target)
    assert {name for name in KEPT if not (folder / name).exists()} == {gone}


def test_no_other_target_removes_them() -> None:
    for target in ("clean", "lint", "test", "test-fast", "demo", "demo-codec", "notebooks", "constraints"):
        for line in make(ROOT, "-n", target).splitlines():
            assert not (line.strip().startswith("rm ") and KEPT & set(line.split())), line


@pytest.mark.parametrize("failed", ["nothing", "--check", "results compression.encodec_mmd_demo --by"])
def test_the_demo_ends_in_words(failed: str, tmp_path: Path) -> None:
    """What it shows when all went well, a run failed, or there is nothing to compare."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("audiotok", "dora"):
        program = tmp_path / ".venv/bin" / name
        fails = f'case "$*" in *"{failed}"*) exit 2;; esac'
        program.write_text(f"#!/bin/sh\necho ran {name} $*\n{fails}\nexit 0\n")
        program.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        (tmp_path / name).touch()
    # Not as a part of the make that runs the tests: it would announce its folders.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    done = sp.run(["make", "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    commands = [" ".join(line.split()[1:3]) for line in lines if line.startswith("ran ")]
    wanted = ["audiotok data", "dora grid", "audiotok report", "audiotok results", "audiotok results"]
    assert commands == wanted
    page = "What you hear: reports/compression.encodec_mmd_demo/index.html"
    assert done.returncode == (2 if failed == "--check" else 0)
    assert page in done.stdout and lines[-1].startswith(
        "Not every run" if failed == "--check" else "  audiotok data prepare"
    )


def test_a_file_stays_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist puts the group of a test into its id; a pytest that does not let it would split files."""
    assert not request.config.getoption("loadgroup", False) or "@" in request.node.nodeid


def test_the_files_that_begin_first_are_there() -> None:
    assert [name for name in LONGEST if name.endswith(".py") and not (ROOT / name).is_file()] == []
