"""Preparing folders of audio: who goes in which split, what is left out, what the errors say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from audiotok.data.manifest import read_manifest
from audiotok.data.prepare import SPLITS, _find_audio, _split_tracks, prepare
from audiotok.errors import ConfigError, DataError

MakeAudio = Callable[..., NDArray[np.float32]]


@pytest.fixture
def music(tmp_path: Path, make_audio: MakeAudio) -> Path:
    """Ten tracks in five formats, two folders deep; 1.0 to 1.9 s."""
    for i in range(10):
        extension = ["wav", "flac", "ogg", "opus", "mp3"][i % 5]
        make_audio(
            tmp_path / "music" / f"mood{i // 5}" / f"t{i}.{extension}",
            seconds=1 + i / 10,
            rate=48000 if i else 24000,
            channels=2 if i else 1,
            seed=i,
        )
    return tmp_path / "music"


def test_every_track_is_in_exactly_one_split(tmp_path: Path, music: Path) -> None:
    report = prepare([music], tmp_path / "egs")
    read = {name: read_manifest(tmp_path / "egs" / f"{name}.jsonl.gz") for name in SPLITS}
    paths = [meta.path for metas in read.values() for meta in metas]
    assert sorted(paths) == sorted(p for p in music.rglob("*") if p.is_file())
    assert {name: split.tracks for name, split in report.splits.items()} == {k: len(v) for k, v in read.items()}
    assert {name: len(metas) for name, metas in read.items()} == {
        "train": 7,
        "valid": 1,
        "evaluate": 1,
        "generate": 1,
    }
    hours = sum(1 + i / 10 for i in range(10)) / 3600
    assert sum(split.hours for split in report.splits.values()) == pytest.approx(hours, rel=1e-6)
    assert report.sample_rates == {24000: 1, 48000: 9} and report.max_sample_rate == 24000
    assert report.channels == {1: 1, 2: 9} and report.max_channels == 1
    assert "train" in str(report) and "9 at 48000 Hz" in str(report)


def test_same_seed_same_bytes_anywhere_and_another_seed_another_split(tmp_path: Path, music: Path) -> None:
    def manifests(output: Path, seed: int) -> list[bytes]:
        prepare([music], output, seed=seed, workers=1 + seed)
        return [(output / f"{name}.jsonl.gz").read_bytes() for name in SPLITS]

    first = manifests(tmp_path / "a", 0)
    assert manifests(tmp_path / "b", 0) == first
    assert manifests(tmp_path / "c", 1) != first
    music.rename(tmp_path / "a" / "moved")
    moved = prepare([tmp_path / "a" / "moved"], tmp_path / "d")
    names = {k: [m.path.name for m in read_manifest(v.manifest)] for k, v in moved.splits.items()}
    assert names == {k: [m.path.name for m in read_manifest(tmp_path / "b" / f"{k}.jsonl.gz")] for k in SPLITS}


@pytest.mark.parametrize("seed", range(40))
def test_split_sizes_follow_the_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    splits = {f"s{i}": float(share) for i, share in enumerate(rng.uniform(0.01, 10, rng.integers(1, 7)))}
    total = int(rng.integers(len(splits), 100))
    tracks = {Path(f"{i}.wav"): f"{i}.wav" for i in range(total)}
    dealt = _split_tracks(tracks, splits, seed=0)
    assert sorted(path for members in dealt.values() for path in members) == sorted(tracks)
    quotas = {name: total * share / sum(splits.values()) for name, share in splits.items()}
    assert all(members for members in dealt.values())
    if min(quotas.values()) >= 1:  # nobody had to be given a first track
        assert all(abs(len(dealt[name]) - quota) < 1 for name, quota in quotas.items())


def test_adding_a_track_moves_few_others() -> None:
    tracks = {Path(f"{i}.wav"): f"{i}.wav" for i in range(200)}
    before = _split_tracks(tracks, SPLITS, seed=0)
    after = _split_tracks({**tracks, Path("new.wav"): "new.wav"}, SPLITS, seed=0)
    assert sum(len(set(before[name]) - set(after[name])) for name in SPLITS) <= len(SPLITS)


def test_unreadable_and_short_files_are_reported_and_left_out(
    tmp_path: Path, music: Path, make_audio: MakeAudio
) -> None:
    (music / "broken.wav").write_text("no")
    make_audio(music / "blip.wav", seconds=0.2)
    (music / "notes.txt").write_text("no")
    make_audio(music / ".hidden" / "h.wav")
    make_audio(music / "._t1.wav")
    report = prepare([music], tmp_path / "egs", min_duration_s=0.5)
    assert list(report.unreadable) == [music / "broken.wav"]
    assert "Format not recognised" in report.unreadable[music / "broken.wav"]
    assert report.too_short == [music / "blip.wav"]
    assert sum(split.tracks for split in report.splits.values()) == 10
    assert "broken.wav" in str(report) and "blip.wav" in str(report)


def test_a_file_reached_twice_counts_once_and_link_loops_end(tmp_path: Path, music: Path) -> None:
    (music / "loop").symlink_to(music)
    (tmp_path / "linked").symlink_to(music / "mood1")
    found = _find_audio([music, music / "mood0", tmp_path / "linked"])
    assert len(found) == 10
    assert next(iter(found)) == music / "mood0" / "t0.wav" and found[music / "mood0" / "t0.wav"] == "mood0/t0.wav"


def test_extensions_are_taken_in_any_case_and_without_dot(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.wav")
    (tmp_path / "a.wav").rename(tmp_path / "A.WAV")
    make_audio(tmp_path / "b.flac")
    assert [path.name for path in _find_audio([tmp_path], ["wav"])] == ["A.WAV"]


def test_nothing_to_prepare_is_said_with_the_reason(tmp_path: Path, make_audio: MakeAudio) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").touch()
    with pytest.raises(DataError, match=r"no audio in .*looked for \.flac, \.mp3.*found 1 × \.txt"):
        prepare([tmp_path / "docs"], tmp_path / "egs")
    with pytest.raises(DataError, match="missing is not a folder"):
        prepare([tmp_path / "missing"], tmp_path / "egs")
    make_audio(tmp_path / "few" / "a.wav")
    (tmp_path / "few" / "b.wav").write_text("no")
    with pytest.raises(DataError, match=r"1 usable tracks for 4 splits \(train, valid.*1 files are unread"):
        prepare([tmp_path / "few"], tmp_path / "egs")
    assert not (tmp_path / "egs").exists()
    report = prepare([tmp_path / "few"], tmp_path / "egs", splits={"train": 1})
    assert report.splits["train"].tracks == 1
    with pytest.raises(ConfigError, match=r"train=0"):
        prepare([tmp_path / "few"], tmp_path / "egs", splits={"train": 0, "valid": 1})
    with pytest.raises(ConfigError, match=r"\.\./evil"):
        prepare([tmp_path / "few"], tmp_path / "egs", splits={"../evil": 1})
    with pytest.raises(ConfigError, match="none given"):
        prepare([tmp_path / "few"], tmp_path / "egs", splits={})
