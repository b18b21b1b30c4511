"""The loader: the same batches for any number of workers, equal shares for all processes, readable errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audiotok.data.dataset import AudioDataset, AudioLoader, _ShardSampler, get_loader
from audiotok.data.manifest import AudioMeta
from audiotok.errors import ConfigError, DataError

MakeAudio = Callable[..., NDArray[np.float32]]


@pytest.fixture
def metas(tmp_path: Path, make_audio: MakeAudio) -> list[AudioMeta]:
    """Four readable tracks and a broken one."""
    tracks = []
    for i in range(5):
        path = tmp_path / f"{i}.wav"
        make_audio(path, seconds=1.0 + i, rate=8000, seed=i)
        tracks.append(AudioMeta(path, 1.0 + i, 8000, 1))
    tracks[2].path.write_text("broken")
    return tracks


def dataset_of(metas: list[AudioMeta], **changes: Any) -> AudioDataset:
    options: dict[str, Any] = {"segment_s": 0.25, "sample_rate": 8000, "channels": 1, "num_samples": 26}
    return AudioDataset(metas, **{**options, **changes})


def epoch_of(loader: AudioLoader, epoch: int) -> list[torch.Tensor]:
    loader.set_epoch(epoch)
    batches = []
    for batch in loader:
        assert isinstance(batch, torch.Tensor)
        batches.append(batch)
    return batches


@pytest.mark.parametrize(("world_size", "num_workers", "drop_last"), [(1, 0, False), (1, 1, True), (2, 0, False)])
def test_an_epoch_can_start_anywhere_without_reading_what_is_before(
    metas: list[AudioMeta], world_size: int, num_workers: int, drop_last: bool
) -> None:
    read: list[int] = []

    class Watched(AudioDataset):
        def __getitem__(self, key: int | tuple[int, int]) -> Any:
            read.append(key[1] if isinstance(key, tuple) else key)
            return super().__getitem__(key)

    options: dict[str, Any] = {"segment_s": 0.25, "sample_rate": 8000, "channels": 1, "num_samples": 26}
    for rank in range(world_size):
        loader = get_loader(
            Watched(metas, **options),
            batch_size=4,
            num_workers=num_workers,
            world_size=world_size,
            rank=rank,
            drop_last=drop_last,
        )
        whole = epoch_of(loader, 3)
        for start in (0, 1, len(loader) - 1, len(loader)):
            loader.set_epoch(3, start)
            read.clear()
            batches = [batch for batch in loader if isinstance(batch, torch.Tensor)]
            assert len(loader) == len(whole)  # of the whole epoch still
            assert all(torch.equal(a, b) for a, b in zip(batches, whole[start:], strict=True))
            assert all(index >= start * 4 * world_size for index in read)
        assert len(epoch_of(loader, 3)) == len(whole)


def test_batches_do_not_depend_on_workers(metas: list[AudioMeta]) -> None:
    alone = get_loader(dataset_of(metas), batch_size=4, num_workers=0)
    helped = get_loader(dataset_of(metas), batch_size=4, num_workers=2)
    assert len(alone) == len(helped) == 7
    epochs = []
    for epoch in (0, 1, 5, 0):
        batches = epoch_of(alone, epoch)
        # The workers of `helped` were started in epoch 0 and live on.
        assert all(torch.equal(a, b) for a, b in zip(batches, epoch_of(helped, epoch), strict=True))
        assert [len(batch) for batch in batches] == [4] * 6 + [2]
        epochs.append(torch.cat(batches))
    assert torch.equal(epochs[0], epochs[3])
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_info_comes_with_the_batch(metas: list[AudioMeta]) -> None:
    loader = get_loader(dataset_of(metas, return_info=True), batch_size=13, num_workers=0)
    for batch in loader:
        assert isinstance(batch, tuple)
        wav, infos = batch
        assert wav.shape == (13, 1, 2000) and len(infos) == 13
        assert {info.path.name for info in infos} <= {"0.wav", "1.wav", "3.wav", "4.wav"}


def test_whole_tracks_are_padded_in_a_batch(metas: list[AudioMeta]) -> None:
    readable = [metas[0], metas[1]]
    loader = get_loader(
        dataset_of(readable, segment_s=None, num_samples=None, shuffle=False), batch_size=2, num_workers=0
    )
    (batch,) = epoch_of(loader, 0)
    assert batch.shape == (2, 1, 16000)
    assert not batch[0, :, 8000:].any() and batch[1, :, 8000:].any()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_filled_up_shares_are_equal_and_miss_nothing(metas: list[AudioMeta], world_size: int, batch_size: int) -> None:
    dataset = dataset_of(metas)
    shares = [
        list(_ShardSampler(dataset, batch_size=batch_size, world_size=world_size, rank=r, drop_last=False))
        for r in range(world_size)
    ]
    taken = [index for share in shares for _, index in share]
    assert len({len(share) for share in shares}) == 1
    assert set(taken) == set(range(26)) and len(taken) - 26 == -26 % world_size
    assert shares[0][0] == (0, 0) and shares[-1][0] == (0, (world_size - 1) % 26)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_dropped_shares_are_equal_whole_batches_without_repeats(metas: list[AudioMeta], world_size: int) -> None:
    dataset = dataset_of(metas)
    loaders = [
        get_loader(dataset, batch_size=4, num_workers=0, world_size=world_size, rank=r, drop_last=True)
        for r in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {26 // (4 * world_size)}
    batches = [batch for loader in loaders for batch in epoch_of(loader, 0)]
    assert all(len(batch) == 4 for batch in batches)
    rows = {row.numpy().tobytes() for batch in batches for row in batch}
    assert len(rows) == 4 * len(batches)


def test_the_ranks_together_take_what_one_process_takes(metas: list[AudioMeta]) -> None:
    whole = torch.cat(epoch_of(get_loader(dataset_of(metas), batch_size=26, num_workers=0), 3))
    for rank in range(2):
        loader = get_loader(dataset_of(metas), batch_size=4, num_workers=0, world_size=2, rank=rank)
        assert torch.equal(torch.cat(epoch_of(loader, 3)), whole[rank::2])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_files_end_in_one_readable_line(metas: list[AudioMeta], num_workers: int) -> None:
    for meta in metas:
        meta.path.write_text("broken")
    loader = get_loader(dataset_of(metas), batch_size=4, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^5 of 5 audio files tried \(of 5\) cannot be used") as caught:
        epoch_of(loader, 0)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_values_out_of_range(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas)
    for name, value in (("batch_size", 0), ("num_workers", -1), ("rank", 1), ("world_size", 0)):
        options: dict[str, Any] = {"batch_size": 1, "num_workers": 0, name: value}
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            get_loader(dataset, **options)
    with pytest.raises(ConfigError, match=r"num_samples=26 does not fill one batch of 14 in each of 2"):
        get_loader(dataset, batch_size=14, num_workers=0, world_size=2, drop_last=True)
