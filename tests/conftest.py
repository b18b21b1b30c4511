"""What several rooms share: a little music on disk, and experiments built from overrides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiotok.data.demo import SPLITS, fetch_demo
from audiotok.data.prepare import prepare

Runner = Callable[..., Any]
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


def data_overrides(music: Path) -> list[str]:
    """Overrides that point an experiment to the manifests of `music`."""
    return [f"datasource.{split}={music}/{split}.jsonl.gz" for split in ("train", "valid", "evaluate", "generate")]


@pytest.fixture
def debug_overrides(music: Path) -> list[str]:
    """Overrides of the debug preset on the music of the tests."""
    return ["solver=compression/debug", "device=cpu", *data_overrides(music)]
