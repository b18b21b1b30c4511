"""Real audio files, written with soundfile alone so that nothing under test makes its own input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

MakeAudio = Callable[..., NDArray[np.float32]]

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.fixture
def make_audio() -> MakeAudio:
    """Write a rising tone with a little noise, different for each seed; returns it as [T, C]."""

    def make(
        path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, seed: int = 0
    ) -> NDArray[np.float32]:
        t = np.arange(round(seconds * rate)) / rate
        noise = 0.02 * np.random.default_rng(seed).standard_normal((len(t), channels))
        tones = [0.4 * np.sin(2 * np.pi * (200 + 60 * c + 30 * seed + 80 * t) * t) for c in range(channels)]
        signal = (np.stack(tones, axis=1) + noise).astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        container, subtype = FORMATS[path.suffix[1:]]
        soundfile.write(path, signal, rate, format=container, subtype=subtype)
        return signal

    return make
