"""What several rooms share: a little music on disk, and experiments built from overrides."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiotok.data.demo import SPLITS, fetch_demo
from audiotok.data.prepare import prepare

Runner = Callable[..., Any]
os.environ.pop("COLUMNS", None)  # set for the processes of pytest-xdist: a pipe has no width
RATE = 16000


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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes that test (`make test`) one has all that needs the cluster; a file stays in one process."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if item.get_closest_marker("cluster"):
            group = "slurm"
        else:
            group = "debug_grid" if "debug_grid" in fixtures else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
