"""Files whose samples pass full scale by far are named once, and used."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiotok.data.dataset import AudioDataset, get_loader
from audiotok.data.levels import HotFiles, hot_text
from audiotok.data.manifest import AudioMeta


def test_each_file_is_named_once_with_its_peak(caplog: pytest.LogCaptureFixture) -> None:
    files = HotFiles([Path("a.wav"), Path("b.wav"), Path("a.wav")])
    for peak in (1.99, -4.0, 5.0):
        files.note(Path("b.wav"), torch.tensor([[0.5, peak]]), 1.5)
    files.note(Path("a.wav"), torch.tensor([[2.0, -2.0]]), 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "b.wav: peak 4, 12.0 dB beyond full scale, in a segment from 1.500 s; it is used as it is"
    ]
    assert hot_text(Path("new\nline"), 10.0) == "new\\nline: peak 10, 20.0 dB beyond full scale"


def test_of_many_only_the_number_is_given(caplog: pytest.LogCaptureFixture) -> None:
    paths = [Path(f"{i}.wav") for i in range(300)]
    files = HotFiles(paths)
    for path in paths:
        files.note(path, torch.tensor([[3.0]]), 0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 102 and lines[-2:] == [f"{n} files with peaks beyond 2 so far" for n in (128, 256)]


def test_workers_share_which_files_are_named(tmp_path: Path) -> None:
    """In whichever process a file is met: afterwards all know it is named."""
    metas = []
    for i, peak in enumerate((0.5, 3.0)):
        soundfile.write(tmp_path / f"{i}.wav", np.full((8000, 1), peak, np.float32), 8000, subtype="FLOAT")
        metas.append(AudioMeta(tmp_path / f"{i}.wav", 1.0, 8000, 1))
    dataset = AudioDataset(metas, segment_s=0.25, sample_rate=8000, channels=1, num_samples=32)
    loader = get_loader(dataset, batch_size=4, num_workers=2)
    peaks = torch.cat([batch.amax((1, 2)) for batch in loader])
    assert set(peaks.tolist()) == {0.5, 3.0}
    assert dataset._hot._named.tolist() == [False, True]


def test_a_training_log_names_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full((8000, 2), -2.5, np.float32), 8000, subtype="FLOAT")
    dataset = AudioDataset(
        [AudioMeta(tmp_path / "loud.wav", 1.0, 8000, 2)], segment_s=0.5, sample_rate=8000, channels=1, num_samples=5
    )
    with caplog.at_level(logging.WARNING):
        items = [dataset[i] for i in range(5)]
    assert len(items) == 5
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / 'loud.wav'}: peak 2.5, 8.0 dB beyond full scale")
