"""The limit of open files: an error before workers start, never a file that is left out."""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from audiotok.data.audio import audio_info
from audiotok.data.dataset import AudioDataset, Item, get_loader
from audiotok.data.limits import require_a_file, require_open_files
from audiotok.data.manifest import AudioMeta
from audiotok.errors import ConfigError

MakeAudio = Callable[..., NDArray[np.float32]]


@contextmanager
def limited(number: int) -> Iterator[None]:
    """A soft limit of open files, as `ulimit -S -n` sets it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def dataset(tmp_path: Path, make_audio: MakeAudio) -> AudioDataset:
    make_audio(tmp_path / "a.wav", seconds=1.0, rate=8000)
    metas = [AudioMeta(tmp_path / "a.wav", 1.0, 8000, 1)]
    return AudioDataset(metas, segment_s=0.25, sample_rate=8000, channels=1, num_samples=8)


def test_the_number_of_an_error_is_enough(dataset: AudioDataset) -> None:
    with limited(40), pytest.raises(ConfigError, match=r"8 data workers .* the limit is 40\. Run `ulimit -n") as caught:
        get_loader(dataset, batch_size=2, num_workers=8)
    needed = re.search(r"need (\d+) open files", str(caught.value))
    assert needed and f"`ulimit -n {needed[1]}`" in str(caught.value)
    require_open_files(8)
    with limited(int(needed[1]) + 8):  # some for the descriptors that pytest has opened meanwhile
        require_open_files(8)
        assert len(list(get_loader(dataset, batch_size=2, num_workers=1))) == 4
    with limited(40):
        get_loader(dataset, batch_size=2, num_workers=0)


def test_a_full_table_of_files_is_no_fault_of_the_audio(dataset: AudioDataset) -> None:
    loader = get_loader(dataset, batch_size=2, num_workers=0)
    free = os.dup(0)
    os.close(free)
    with limited(free):  # the lowest number that is free is the first that may not be used
        for read in (lambda: audio_info(dataset.metas[0].path), lambda: list(loader)):
            with pytest.raises(ConfigError, match=rf"^all {free} files that may be open are\. Run `ulimit -n"):
                read()
    assert not dataset.ledger.bad and len(list(loader)) == 4


class _Full(AudioDataset):
    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        raise ConfigError("all 40 files\nthat may be open are")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_error_of_a_worker_is_one_line(dataset: AudioDataset, num_workers: int) -> None:
    full = _Full(dataset.metas, segment_s=0.25, sample_rate=8000, channels=1, num_samples=8)
    with pytest.raises(ConfigError) as caught:
        list(get_loader(full, batch_size=2, num_workers=num_workers))
    assert str(caught.value) == r"all 40 files\nthat may be open are"


@pytest.mark.parametrize(("number", "limit"), [(errno.ENFILE, 1024), (errno.EMFILE, resource.RLIM_INFINITY)])
def test_a_full_machine_takes_no_greater_limit(number: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(ConfigError, match=r"^this machine has as many files open as it can; lower dataset\.num_workers"):
        require_a_file()


def test_no_limit_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS has it."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    require_open_files(1000)
