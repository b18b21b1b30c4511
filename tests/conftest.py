"""What several rooms share: a little music on disk, and experiments built from overrides."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, settings

from audiotok.data.demo import SPLITS, fetch_demo
from audiotok.data.prepare import prepare

# No test rests on the speed of a machine.
settings.register_profile("audiotok", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("audiotok")

os.environ.pop("COLUMNS", None)  # set for the processes of pytest-xdist: a pipe has no width
# Tests start hundreds of Python processes: what they import is compiled once, not by each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell starts what runs in its background with SIGINT ignored, and so do its children: no Ctrl-C would reach them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
RATE = 16000
# Groups that take minutes, the longest first.
LONGEST = ("slurm: faults, contract", "slurm", "tests/test_docs.py", "tests/contract/test_third_engine.py")


def chords(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """A few plucked chords in stereo: harmonics that decay, as music does, and as reproducible as a test needs."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wav = np.zeros_like(time)
    for start in np.arange(0.0, seconds, 0.5):
        since = np.clip(time - start, 0.0, None)
        envelope = np.exp(-3.0 * since) * (time >= start)
        for note in 110.0 * 2 ** (rng.integers(0, 36, 3) / 12):
            wav += envelope * sum(np.sin(2 * np.pi * note * h * since) / h for h in (1, 2, 3))
    stereo: np.ndarray = np.stack([wav, np.roll(wav, 40)], axis=1) * 0.1
    return stereo


@pytest.fixture(autouse=True)
def metrics_are_as_declared() -> Iterator[None]:
    """A test that declares metrics, as a command does, leaves none to the tests after it."""
    yield
    if "audiotok.results.metrics" in sys.modules:
        from audiotok.results.metrics import declare

        for project in (True, False):
            declare({}, project=project)


def group_of(item: pytest.Item) -> str:
    """Which tests share a process: those of a file, those of the debug grid, and in two groups those of SLURM.

    On SLURM most of the time goes by in waiting for its clocks: two groups wait at once, each with clusters of its own,
    beside those that compute.
    """
    if item.get_closest_marker("cluster"):
        one = item.path.name.startswith("test_faults_of") or item.path.parent.name == "contract"
        return "slurm: faults, contract" if one else "slurm"
    return "debug_grid" if "debug_grid" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests; groups that take minutes begin first, lest all processes wait for one at the end."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    order = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item), len(order)))


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with manifests of the four splits over eight tracks of 4 s."""
    folder = tmp_path_factory.mktemp("music")
    for index in range(8):
        soundfile.write(folder / f"track{index}.flac", chords(index, 4.0), RATE)
    prepare([folder], folder, splits={"train": 0.5, "valid": 0.2, "evaluate": 0.15, "generate": 0.15})
    return folder


@pytest.fixture(scope="session")
def demo_music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `demo` of `audiotok data demo`: real music, fetched as a user would."""
    folder = tmp_path_factory.mktemp("real") / "demo"
    prepare([fetch_demo(folder)], folder, splits=SPLITS)
    return folder


@pytest.fixture(scope="session")
def debug_grid(tmp_path_factory: pytest.TempPathFactory, demo_music: Path) -> Path:
    """A folder in which `dora grid compression.debug` has run on real music in local jobs, into `outputs`."""
    folder = tmp_path_factory.mktemp("debug")
    (folder / "data").symlink_to(demo_music.parent)  # manifests, outputs and the queue count from where dora is run
    run_module(folder, "dora", "-P", "audiotok", "grid", "compression.debug", "--interval", "0.05")
    return folder


def run_module(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m …` in a folder, without SLURM; it must succeed."""
    environment = {**os.environ, "AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_CLUSTER": "cpu"}
    environment.pop("AUDIOTOK_OUTPUT_DIR", None)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def data_overrides(music: Path) -> list[str]:
    """Overrides that point an experiment to the manifests of `music`."""
    return [f"datasource.{split}={music}/{split}.jsonl.gz" for split in ("train", "valid", "evaluate", "generate")]


@pytest.fixture
def debug_overrides(music: Path) -> list[str]:
    """Overrides of the debug preset on the music of the tests."""
    return ["solver=compression/debug", "device=cpu", *data_overrides(music)]
