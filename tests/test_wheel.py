"""The wheel: what is in it, and that all commands work with it alone, in another folder than the checkout."""

import importlib.metadata
import os
import shutil
import subprocess as sp
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from audiotok import __version__, train
from audiotok.status import read_json
from tests.conftest import data_overrides

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LIBRARY = ("audiotok", "launchers", "grids", "config")
QUICK = ["optim.epochs=1", "optim.updates_per_epoch=2", "dataset.batch_size=2", "dataset.segment_duration=0.4"]


class Installed:
    """A virtual environment with the wheel; what else it needs it borrows from the one that tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin = folder / "bin"
        venv.create(folder, symlinks=True)
        run(sys.executable, "-m", "pip", "--python", self.bin / "python", "install", *OFFLINE, wheel)
        # A path alone: `.pth` files in that folder, such as that of an editable audiotok, are not read from here.
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(site, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def __call__(self, folder: Path, *command: str, fails: int = 0, **environ: str) -> "sp.CompletedProcess[str]":
        """Run `python -m …` in a folder, without SLURM."""
        environ = {"AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_CLUSTER": "cpu", "OMP_NUM_THREADS": "1", **environ}
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = f"{self.bin}:/usr/bin:/bin"
        return run(self.bin / "python", "-m", *command, cwd=folder, env={**kept, "PATH": path, **environ}, fails=fails)


OFFLINE = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, fails: int = 0
) -> "sp.CompletedProcess[str]":
    """Run a command, which must end with the exit code `fails`."""
    done = sp.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == fails, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree or of a source distribution, without a network."""
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as git has them, with links as links: a build must not leave files in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "audiotok"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*LIBRARY, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture(scope="module")
def project(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `audiotok init mycodec` has made."""
    folder = tmp_path_factory.mktemp("projects")
    installed(folder, "audiotok.cli", "init", "mycodec")
    return folder / "mycodec"


def test_it_holds_the_package_and_nothing_else_at_the_top(wheel: Path) -> None:
    found = {name for name in names(wheel) if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in found} == {"audiotok"}
    expected = set()
    for name in LIBRARY:
        files = [path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        top = Path("audiotok") if name == "audiotok" else Path("audiotok", name)
        expected |= {str(top / path.relative_to(ROOT / name)) for path in files}
    # Jobs of an earlier version, which was run from a checkout, start by it.
    assert found == expected - {"audiotok/launchers/job/task.py"}


def test_the_wheel_of_the_source_distribution_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert names(build(archive, tmp_path)) == names(wheel)


def test_it_is_what_is_imported(installed: Installed, tmp_path: Path) -> None:
    code = "import audiotok.train, audiotok.solvers; print(audiotok.__file__, audiotok.train.main.get_xp([]).sig)"
    done = run(installed.bin / "python", "-c", code, cwd=tmp_path)
    file, sig = done.stdout.split()
    assert Path(file).is_relative_to(installed.bin.parent) and sig == train.main.get_xp([]).sig
    assert f"audiotok {__version__}" in run(installed.bin / "audiotok", "--version").stdout
    assert importlib.metadata.version("audiotok") == __version__


def test_an_editable_one_is_imported_beside_the_clone_too(source: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(source, tmp_path / "audiotok", symlinks=True)  # to Python a namespace of the same name
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=clone)
    (wheel,) = tmp_path.glob("*.whl")
    python = Installed(tmp_path / "venv", wheel).bin / "python"
    code = "import audiotok.results.metrics; print(audiotok.__file__)"
    done = run(python, "-c", code, cwd=tmp_path)
    assert Path(done.stdout.strip()) == clone / "audiotok" / "__init__.py"


def test_an_experiment_runs_and_a_grid_is_planned(installed: Installed, music: Path, tmp_path: Path) -> None:
    overrides = ["solver=compression/debug", "device=cpu", *QUICK, *data_overrides(music)]
    installed(tmp_path, "dora", "-P", "audiotok", "run", *overrides)
    (folder,) = (tmp_path / "outputs" / "xps").iterdir()
    status = read_json(folder / "status.json")
    assert folder.name == train.main.get_xp(overrides).sig and status is not None
    assert (status["state"], status["commit"]) == ("COMPLETED", __version__)
    dry_run = installed(tmp_path, "dora", "-P", "audiotok", "grid", "compression.debug", "--dry_run", "--no_monitoring")
    plan = installed(tmp_path, "audiotok.cli", "plan", "compression.debug")
    assert "4 experiments (4 new)" in dry_run.stdout and "4 experiments (4 new)" in plan.stdout
    assert "compression.debug" in installed(tmp_path, "audiotok.cli", "plan").stdout.splitlines()
    assert installed(tmp_path, "audiotok.cli", "results").stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_a_project_has_its_own_presets_over_those_of_the_library(installed: Installed, project: Path) -> None:
    dry_run = installed(project, "dora", "grid", "sweep", "--dry_run", "--no_monitoring").stdout
    plan = installed(project, "audiotok.cli", "plan", "sweep").stdout
    assert "6 experiments (6 new)" in dry_run and "solver=compression/mine" in plan
    assert installed(project, "audiotok.cli", "plan").stdout == "sweep\n"
    preset = "solver=compression/encodec_mmd_32khz"
    shared = [[preset, "losses.mmd=3"], [preset, "model=encodec/encodec_demo"], []]
    code = (
        "from mycodec.train import main; own = main.get_xp(['solver=compression/mine'])\n"
        f"print(own.cfg.rvq.n_q, own.folder.parent, *(main.get_xp(overrides).sig for overrides in {shared}))"
    )
    n_q, folder, *sigs = run(installed.bin / "python", "-c", code, cwd=project).stdout.split()
    assert (n_q, folder) == ("2", str(project / "outputs" / "xps"))
    assert sigs == [train.main.get_xp(overrides).sig for overrides in shared]


def test_a_project_has_its_own_clusters(installed: Installed, project: Path) -> None:
    (project / "mycodec/config/cluster/mine.yaml").write_text(
        "# @package slurm\ndefaults: [/cluster/cpu, _self_]\noutput_dir: elsewhere\n"
    )
    plan = installed(project, "audiotok.cli", "plan", "sweep", AUDIOTOK_CLUSTER="mine")
    assert "6 experiments" in plan.stdout
    missing = installed(project, "audiotok.cli", "results", AUDIOTOK_CLUSTER="mine", fails=2)
    assert "no results folder elsewhere;" in missing.stderr and not (project / "elsewhere").exists()
    wrong = installed(project, "dora", "grid", "sweep", "--dry_run", AUDIOTOK_CLUSTER="none", fails=2)
    assert wrong.stderr.startswith("error: AUDIOTOK_CLUSTER='none'") and wrong.stderr.count("\n") == 1
    assert "choose one of: cpu, default, h100x8, mine, template" in wrong.stderr
    (project / "elsewhere").mkdir()
    installed(project, "audiotok.cli", "results", AUDIOTOK_CLUSTER="mine")


def test_a_project_runs_its_grid(installed: Installed, project: Path, music: Path) -> None:
    sweep = project / "mycodec" / "grids" / "sweep.py"
    small = [*QUICK, *data_overrides(music)]
    (project / "mycodec/config/solver/compression/tiny.yaml").write_text(
        "# @package __global__\ndefaults: [/solver/compression/debug, _self_]\nlabel: tiny\n"
    )
    text = sweep.read_text().replace("compression/mine", "compression/tiny").replace("(0.0, 1.0, 10.0)", "(1.0,)")
    sweep.with_name("tiny.py").write_text(text.replace('device="cpu")', f'device="cpu")\n    launcher.bind_({small})'))
    installed(project, "dora", "grid", "tiny", "--interval", "0.02")
    table = installed(project, "audiotok.cli", "results", "tiny", "--check").stdout
    assert table.count("COMPLETED") == 2
