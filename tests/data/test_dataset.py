"""The dataset: what is drawn, how often, that it can be repeated, what happens with bad files."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from audiotok.data.audio import audio_info
from audiotok.data.dataset import AudioDataset, Item, SegmentInfo
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.errors import ConfigError, DataError

MakeAudio = Callable[..., NDArray[np.float32]]


@pytest.fixture
def metas(tmp_path: Path, make_audio: MakeAudio) -> list[AudioMeta]:
    """Three mono tracks at 8 kHz, of 1, 2 and 5 s; the last has weight 0.4."""
    tracks: list[AudioMeta] = []
    for name, seconds, weight in (("a", 1.0, None), ("b", 2.0, 1.0), ("c", 5.0, 0.4)):
        path = tmp_path / f"{name}.wav"
        make_audio(path, seconds=seconds, rate=8000, seed=len(tracks))
        tracks.append(AudioMeta(path, seconds, 8000, 1, weight))
    return tracks


def dataset_of(metas: list[AudioMeta], **changes: Any) -> AudioDataset:
    options: dict[str, Any] = {"segment_s": 0.5, "sample_rate": 8000, "channels": 1, "num_samples": 20}
    return AudioDataset(metas, **{**options, **changes})


def wav_of(item: Item) -> torch.Tensor:
    assert isinstance(item, torch.Tensor)
    return item


def info_of(item: Item) -> SegmentInfo:
    assert isinstance(item, tuple)
    return item[1]


def test_a_segment_is_what_its_info_says(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas, return_info=True, num_samples=100)
    padded = 0
    for i in range(100):
        item = dataset[i]
        assert isinstance(item, tuple)
        wav, info = item
        start = round(info.start_s * 8000)
        source = soundfile.read(info.path, dtype="float32")[0][start : start + 4000]
        assert wav.shape == (1, 4000) and info.total_frames == 4000 and info.sample_rate == 8000
        assert info.n_frames == len(source) >= 2000 - 1
        np.testing.assert_array_equal(wav[0, : info.n_frames].numpy(), source)
        assert not wav[:, info.n_frames :].any()
        padded += info.n_frames < 4000
    assert padded > 0


def test_without_padding_the_tail_is_short(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas, return_info=True, pad=False, num_samples=100)
    lengths = {wav.shape[-1] for wav, _ in (dataset[i] for i in range(100))}
    assert max(lengths) == 4000 and min(lengths) < 4000


@pytest.mark.parametrize(
    ("options", "odds"),
    [
        ({}, [1.0, 2.0, 2.0]),
        ({"sample_on_weight": False}, [1.0, 2.0, 5.0]),
        ({"sample_on_duration": False}, [1.0, 1.0, 0.4]),
        ({"sample_on_duration": False, "sample_on_weight": False}, [1.0, 1.0, 1.0]),
    ],
)
def test_tracks_are_drawn_by_duration_and_weight(
    metas: list[AudioMeta], options: dict[str, bool], odds: list[float]
) -> None:
    dataset = dataset_of(metas, num_samples=1500, return_info=True, **options)
    infos = [info_of(dataset[i]) for i in range(1500)]
    counts = Counter(info.path.stem for info in infos)
    expected = 1500 * np.array(odds) / sum(odds)
    assert chisquare([counts[name] for name in "abc"], expected).pvalue > 0.01
    # Starts are uniform up to the last one that leaves half a segment in the track.
    for name, last_s in (("a", 0.75), ("b", 1.75), ("c", 4.75)):
        starts = [info.start_s / last_s for info in infos if info.path.stem == name]
        assert kstest(starts, "uniform").pvalue > 0.01


def test_a_segment_depends_on_seed_epoch_and_index_alone(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas)
    first = [wav_of(dataset[i]) for i in range(20)]
    again = dataset_of(metas)
    assert all(torch.equal(wav_of(again[i]), first[i]) for i in reversed(range(20)))
    dataset.set_epoch(1)
    assert not any(torch.equal(wav_of(dataset[i]), first[i]) for i in range(20))
    assert all(torch.equal(wav_of(dataset[0, i]), first[i]) for i in range(20))
    other = dataset_of(metas, seed=1)
    assert not any(torch.equal(wav_of(other[i]), first[i]) for i in range(20))
    assert len({wav.numpy().tobytes() for wav in first}) == 20


def test_without_shuffle_every_epoch_is_the_same(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas, shuffle=False)
    assert all(torch.equal(wav_of(dataset[0, i]), wav_of(dataset[7, i])) for i in range(20))


def test_whole_tracks_in_order_or_shuffled_by_epoch(metas: list[AudioMeta]) -> None:
    dataset = dataset_of(metas, segment_s=None, num_samples=None, shuffle=False)
    assert len(dataset) == 3 and [wav_of(dataset[i]).shape[-1] for i in range(3)] == [8000, 16000, 40000]
    assert len(dataset_of(metas, segment_s=None, num_samples=2)) == 2
    assert dataset.order(0) == dataset.order(1) == [0, 1, 2]
    shuffled = dataset_of(metas * 10, segment_s=None, num_samples=None)
    assert sorted(shuffled.order(0)) == sorted(shuffled.order(1)) == list(range(30))
    assert shuffled.order(0) != shuffled.order(1)
    with pytest.raises(IndexError):
        dataset[3]


def test_default_number_of_segments_is_what_the_tracks_hold(metas: list[AudioMeta]) -> None:
    assert len(dataset_of(metas, num_samples=None)) == 16
    assert len(list(dataset_of(metas, num_samples=None))) == 16  # type: ignore[call-overload]


def test_rates_and_channels_are_converted(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.opus", seconds=2.0, rate=48000, channels=2)
    make_audio(tmp_path / "b.mp3", seconds=2.0, rate=44100, channels=1)
    both = [AudioMeta(p, 2.0, audio_info(p).sample_rate, None) for p in sorted(tmp_path.iterdir())]
    for channels in (1, 2):
        dataset = dataset_of(both, sample_rate=32000, channels=channels, segment_s=0.3)
        assert all(wav_of(dataset[i]).shape == (channels, 9600) for i in range(20))
        assert all(wav_of(dataset[i]).square().mean() > 0.01 for i in range(20))


def test_from_manifest(tmp_path: Path, metas: list[AudioMeta]) -> None:
    path = write_manifest(tmp_path / "data.jsonl.gz", metas)
    dataset = AudioDataset.from_manifest(path, segment_s=0.5, sample_rate=8000, channels=1, num_samples=20)
    assert torch.equal(wav_of(dataset[3]), wav_of(dataset_of(metas)[3]))


def test_a_bad_file_is_named_once_and_replaced(
    tmp_path: Path, metas: list[AudioMeta], caplog: pytest.LogCaptureFixture
) -> None:
    good = [wav_of(dataset_of(metas)[i]) for i in range(20)]
    metas[1].path.write_text("broken since")
    dataset = dataset_of(metas, return_info=True)
    with caplog.at_level(logging.WARNING):
        items = [dataset[i] for i in range(20)]
    assert {info_of(item).path.stem for item in items} == {"a", "c"}
    assert len([r for r in caplog.records if "b.wav: not readable" in r.getMessage()]) == 1
    assert list(dataset.ledger.bad) == [metas[1].path]
    same = [torch.equal(item[0], wav) for item, wav in zip(items, good, strict=True)]
    assert 0 < sum(same) < 20  # only the draws that met the bad file changed
    fresh = dataset_of(metas, return_info=True)
    assert all(torch.equal(fresh[i][0], items[i][0]) for i in reversed(range(20)))
    whole = dataset_of(metas, segment_s=None, num_samples=None, return_info=True, shuffle=False)
    assert [info_of(whole[i]).path.stem for i in range(3)] == ["a", "c", "c"]


def test_only_bad_files_are_an_error_that_names_them(metas: list[AudioMeta]) -> None:
    for meta in metas:
        meta.path.unlink()
    with pytest.raises(DataError, match=r"^3 of 3 audio files tried \(of 3\).*no such file"):
        dataset_of(metas)[0]
    with pytest.raises(DataError, match=r"[abc]\.wav: no such file"):
        dataset_of(metas, max_bad_fraction=0.0)[0]


def test_bad_files_that_are_nearly_always_drawn_end_in_an_error(metas: list[AudioMeta]) -> None:
    metas[2].path.unlink()
    heavy = [AudioMeta(metas[2].path, 5.0, 8000, 1, weight=1e9), *metas[:2]]
    with pytest.raises(DataError, match=r"draws met only unreadable files: .*c\.wav"):
        dataset_of(heavy)[0]


def test_a_manifest_that_promises_more_than_the_file_holds(metas: list[AudioMeta]) -> None:
    stale = [AudioMeta(metas[0].path, 1000.0, 8000, 1), metas[1]]
    dataset = dataset_of(stale, return_info=True)
    assert {info_of(dataset[i]).path.stem for i in range(20)} == {"b"}
    assert "prepare" in dataset.ledger.bad[metas[0].path]


def test_unsuitable_tracks_are_left_out(metas: list[AudioMeta], caplog: pytest.LogCaptureFixture) -> None:
    odd = AudioMeta(Path("surround.wav"), 9.0, 8000, 6)
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of([*metas, odd], segment_s=3.0)
    assert [meta.path.stem for meta in dataset.metas] == ["b", "c"]
    assert "left out 1 of 4 tracks: under 1.500 s" in caplog.text
    assert "surround.wav has 6 channels" in caplog.text
    with pytest.raises(DataError, match=r"channels=4 cannot be made from any track \(they have \[1\]\)"):
        dataset_of(metas, channels=4)
    zero = [AudioMeta(meta.path, meta.duration, 8000, 1, weight=0.0) for meta in metas]
    with pytest.raises(DataError, match="weight 0"):
        dataset_of(zero)


def test_asking_for_more_than_the_data_has(metas: list[AudioMeta], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"segment_s=6\.0 is longer than every track.*c\.wav with 5\.000 s"):
        dataset_of(metas, segment_s=6.0)
    with pytest.raises(DataError, match="sample_rate=8000, but the data supports at most max_sample_rate=4000"):
        dataset_of(metas, max_sample_rate=4000)
    with pytest.raises(DataError, match="max_channels=1"):
        dataset_of(metas, channels=2, max_channels=1)
    with pytest.raises(DataError, match="no tracks"):
        dataset_of([])
    dataset_of(metas, sample_rate=16000)
    assert "some tracks have only 8000 Hz" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segment_s", 0.0),
        ("sample_rate", 0),
        ("channels", 0),
        ("num_samples", 0),
        ("seed", -1),
        ("min_segment_ratio", 0.0),
        ("max_bad_fraction", 1.5),
    ],
)
def test_values_out_of_range(metas: list[AudioMeta], name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}; expected a value"):
        dataset_of(metas, **{name: value})


def test_unusable_tracks_cost_no_comparison_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracks = [AudioMeta(Path(f"{i}\n.wav"), 1.0, 8000, 6 if i % 2 else 1) for i in range(2000)]
    compared: list[AudioMeta] = []

    def compare(one: AudioMeta, other: AudioMeta) -> bool:
        compared.append(one)
        return one is other

    monkeypatch.setattr(AudioMeta, "__eq__", compare)
    with caplog.at_level(logging.WARNING):
        assert len(dataset_of(tracks).metas) == 1000
    assert compared == []
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [r"left out 1000 tracks: 1\n.wav has 6 channels, which cannot be mixed to 1"]


def test_many_unreadable_files_are_counted_not_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = dataset_of([AudioMeta(tmp_path / f"{i}.wav", 1.0, 8000, 1) for i in range(2000)], max_bad_fraction=1.0)
    with caplog.at_level(logging.WARNING):
        for meta in dataset.metas[:1000]:
            dataset.ledger.note_bad(meta.path, f"{meta.path}: broken")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5 + 7 and lines[4].endswith("4.wav: broken")
    assert lines[5:] == [f"left out: {n} files so far" for n in (8, 16, 32, 64, 128, 256, 512)]


@pytest.mark.parametrize("most", [1, 5, 12, None])
def test_tiles_of_tracks_do_not_overlap_and_do_not_depend_on_the_seed(metas: list[AudioMeta], most: int | None) -> None:
    options: dict[str, Any] = {"num_samples": most, "return_info": True, "tile": True}
    dataset = dataset_of(metas, **options)
    infos = [info_of(dataset[i]) for i in range(len(dataset))]
    assert len(infos) == (16 if most is None else most)  # 2 + 4 + 10 halves of a second
    places = [(str(info.path), info.start_s) for info in infos]
    assert places == sorted(places)
    for (path, start), (after, following) in itertools.pairwise(places):
        assert path != after or following >= start + 0.5
    assert all(info.n_frames == info.total_frames == 4000 for info in infos)
    other = dataset_of(metas, seed=7, **options)
    other.set_epoch(3)
    assert [info_of(other[i]) for i in range(len(other))] == infos


def test_tiles_are_spread_evenly_over_tracks_and_in_them(tmp_path: Path) -> None:
    tracks = [AudioMeta(tmp_path / f"{i:03}.wav", seconds, 8000, 1) for i, seconds in enumerate([30.0] * 9 + [3.0])]
    tiles = dataset_of(tracks, segment_s=1.0, num_samples=84, tile=True)._tiles
    assert Counter(meta.path.stem for meta, _ in tiles) == {f"{i:03}": 9 for i in range(9)} | {"009": 3}
    starts = [start for meta, start in tiles if meta.path.stem == "004"]
    assert set(np.diff(starts)) <= {3.0, 4.0} and starts[0] <= 2 and starts[-1] >= 27
    # Several of some tracks rather than one of each: what is shifted against itself has to have some length.
    many = [AudioMeta(tmp_path / f"{i:03}.wav", 30.0, 8000, 1) for i in range(100)]
    few = Counter(meta.path.stem for meta, _ in dataset_of(many, segment_s=1.0, num_samples=40, tile=True)._tiles)
    assert few == {f"{i:03}": 8 for i in (10, 30, 50, 70, 90)}


def test_a_tile_that_cannot_be_read_is_replaced_by_another_one(
    metas: list[AudioMeta], caplog: pytest.LogCaptureFixture
) -> None:
    metas[1].path.write_bytes(b"no audio")
    dataset = dataset_of(metas, num_samples=None, return_info=True, tile=True)
    infos = [info_of(dataset[i]) for i in range(len(dataset))]
    assert len(infos) == 16 and {info.path.stem for info in infos} == {"a", "c"}
    assert "left out" in caplog.text


def test_tracks_shorter_than_a_tile_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracks = [AudioMeta(tmp_path / f"{i}.wav", seconds, 8000, 1) for i, seconds in enumerate([2.0, 0.7, 1 - 1e-7])]
    dataset = dataset_of(tracks, segment_s=1.0, num_samples=None, tile=True)
    assert Counter(meta.path.stem for meta, _ in dataset._tiles) == {"0": 2, "2": 1}
    assert "left out 1 of 3 tracks: under 1.000 s" in caplog.text
