"""Preparing folders of audio: who goes in which split, what is left out, what the errors say."""

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiotok import cli
from audiotok.data.manifest import AudioMeta, read_manifest, write_manifest
from audiotok.data.prepare import SPLITS, PrepareReport, _split_tracks, prepare
from audiotok.data.scan import scan_folders
from audiotok.errors import ConfigError, DataError
from tests.conftest import chords

MakeAudio = Callable[..., NDArray[np.float32]]
HALVES = {"train": 0.5, "valid": 0.5}


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
    assert str(report).endswith("10 tracks, 0.00403 h; left out none")


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


def test_extensions_are_taken_in_any_case_and_without_dot(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.wav")
    (tmp_path / "a.wav").rename(tmp_path / "A.WAV")
    make_audio(tmp_path / "b.flac")
    assert [path.name for path in scan_folders([tmp_path], ["wav"]).found] == ["A.WAV"]


def test_nothing_to_prepare_is_said_with_the_reason(tmp_path: Path, make_audio: MakeAudio) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").touch()
    with pytest.raises(DataError, match=r"no audio in .*looked for \.flac, \.mp3.*found 1 × \.txt"):
        prepare([tmp_path / "docs"], tmp_path / "egs")
    with pytest.raises(DataError, match="missing is not a folder"):
        prepare([tmp_path / "missing"], tmp_path / "egs")
    make_audio(tmp_path / "few" / "a.wav")
    (tmp_path / "few" / "b\n.wav").write_text("no")
    with pytest.raises(
        DataError, match=r"1 usable tracks for 4 splits \(train, v.*left out 1: 1 unread.*first: .*b\\n.wav"
    ):
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


def tracks_of(report: PrepareReport) -> dict[str, set[Path]]:
    return {name: {meta.path for meta in read_manifest(one.manifest)} for name, one in report.splits.items()}


def home_of(report: PrepareReport, path: Path) -> str | None:
    return next((name for name, paths in tracks_of(report).items() if path in paths), None)


def write(
    path: Path, wav: NDArray[np.float64], subtype: str | None = None, tags: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """An audio file, in the usual encoding of its extension, with tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container = {"opus": "OGG"}.get(path.suffix[1:].lower(), path.suffix[1:].upper())
    subtype = subtype or {"opus": "OPUS"}.get(path.suffix[1:])
    channels = wav.shape[1] if wav.ndim > 1 else 1
    with soundfile.SoundFile(path, "w", 16000, channels, format=container, subtype=subtype) as handle:
        for name, value in tags.items():
            setattr(handle, name, value)
        handle.write(wav)
    return path


def test_a_messy_folder_is_counted_to_the_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    music = tmp_path / "music"
    for index in range(6):
        write(music / "album" / f"{index}.wav", chords(index, 1.5 + index))
    expected: dict[str, list[str]] = {
        "m4a": ["a.m4a", "b.M4A", "album/c.m4a"],
        "aiff": ["d.aiff"],
        "too short": ["blip.wav", "blip.flac"],
        "unreadable": ["empty.wav", "text.wav", "none.wav", "nan.wav", "endless.wav", "secret.wav"],
        "beyond full scale": ["int16.wav", "one.wav", "double.WAV"],
        "copy": ["album/3.wav", "z.wav", "zz.wav"],
        "unreadable folder": ["closed"],
        "broken link": ["itself.wav", "dangling.wav"],
        "repeated link": ["album/loop", "linked.wav"],
        "special file": ["pipe.wav"],
    }
    for name in (*expected["m4a"], "notes.txt", "cover.jpg", "album/cover.jpg", "noext", ".hidden.wav", "._0.wav"):
        (music / name).write_bytes(b"x")
    write(music / "d.aiff", chords(50, 1.5))
    write(music / "blip.wav", chords(0, 0.9))
    write(music / "blip.flac", chords(1, 0.5))
    (music / "empty.wav").touch()
    (music / "text.wav").write_text("no audio")
    write(music / "none.wav", np.zeros((0, 1)))
    loud = chords(20, 2.25)
    write(music / "fine.wav", loud * (3 / np.abs(loud).max()), subtype="FLOAT")  # a hot mix, not a mistake
    write(music / "int16.wav", chords(21, 2.0) * 32767, subtype="FLOAT")
    write(music / "nan.wav", np.where(np.arange(32000) == 31999, np.nan, 0.1), subtype="FLOAT")
    write(music / "endless.wav", np.where(np.arange(32000) == 31999, np.inf, 0.1), subtype="DOUBLE")
    write(music / "one.wav", np.where(np.arange(100_000) == 99_999, 1e29, 0.1), subtype="FLOAT")
    write(music / "double.WAV", np.where(np.arange(100_000) == 99_999, -1e300, 0.1), subtype="DOUBLE")
    write(music / "album" / "3.flac", soundfile.read(music / "album" / "3.wav", dtype="int16")[0])
    (music / "z.wav").write_bytes((music / "album" / "5.wav").read_bytes())
    (music / "zz.wav").write_bytes((music / "album" / "5.wav").read_bytes())
    write(music / "album" / "4.mp3", chords(4, 5.5))
    write(music / "secret.wav", chords(9, 1.5))
    write(music / "closed" / "never.wav", chords(9, 1.5))
    write(music / ".cache" / "never.wav", chords(9, 1.5))
    write(music / "folder.wav" / "inner.wav", chords(10, 2.75))
    odd = "夜\nnoir.wav"
    write(tmp_path / "odd.wav", chords(11, 3.25)).rename(music / odd)
    (music / "itself.wav").symlink_to(music / "itself.wav")
    (music / "dangling.wav").symlink_to(music / "gone.wav")
    (music / "album" / "loop").symlink_to(music)
    (music / "linked.wav").symlink_to(music / "album" / "0.wav")
    os.mkfifo(music / "pipe.wav")

    # Root may read everything: the system's refusals are made here.
    scandir, opened = os.scandir, Path.open

    def refuse(path: Path) -> "os._ScandirIterator[str]":
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_file(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "secret.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "open", refuse_file)
    arguments = ["data", "prepare", str(music), "--output", str(tmp_path / "egs")]
    assert cli.main([*arguments, "--split", "train=0.6", "--split", "valid=0.4", "--list-skipped"]) == 0
    lines = capsys.readouterr().out.splitlines()
    seconds = sum(1.5 + index for index in range(6)) + 2.25 + 5.5 + 2.75 + 3.25
    assert lines[-1] == (
        f"10 tracks, {seconds / 3600:.3g} h; left out 24: 6 unreadable, 3 beyond full scale, 3 copies, 3 m4a, "
        "2 broken links, 2 repeated links, 2 too short, 1 aiff, 1 special file, 1 unreadable folder; "
        "2 hold 1 recording in several encodings, each in one split; "
        "passed over 7 other files (3 hidden, 2 .jpg, 1 .txt, 1 without extension)"
    )
    listed = [line.split(": ")[:2] for line in lines if line.startswith("left out, ")]
    left_out = [(f"left out, {kind}", str(music / name)) for kind, names in expected.items() for name in names]
    assert sorted(map(tuple, listed)) == sorted(left_out)
    assert f"kept together: {music / 'album/4.mp3'}, {music / 'album/4.wav'}" in lines
    assert f"left out, too short: {music / 'blip.wav'}: 0.9 s, at least 1 s are needed" in lines
    assert any(line.startswith(f"{music / 'fine.wav'}: peak 3, 9.5 dB beyond full scale; used") for line in lines)
    peak = float(np.abs(chords(21, 2.0) * 32767).max())
    (line,) = (line for line in lines if f"{music / 'int16.wav'}" in line)
    assert f"peak {peak:.6g}; full scale is 1" in line and "divide its samples" in line
    kept = [meta.path.name for name in ("train", "valid") for meta in read_manifest(tmp_path / f"egs/{name}.jsonl.gz")]
    waves = [f"{name}.wav" for name in (0, 1, 2, 4, 5, "fine", "inner")]
    assert sorted(kept) == sorted([*waves, "3.flac", "4.mp3", odd])


def test_the_split_is_by_the_hash_of_seed_and_name(tmp_path: Path, music: Path) -> None:
    """What it was before tracks were grouped: manifests that were made then are made again."""
    report = prepare([music], tmp_path / "egs", seed=5)
    names = [path.relative_to(music).as_posix() for path in music.rglob("*") if path.is_file()]
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"5:{name}".encode()).hexdigest())
    expected = {"train": ranked[:7], "valid": ranked[7:8], "evaluate": ranked[8:9], "generate": ranked[9:]}
    assert tracks_of(report) == {split: {music / name for name in names} for split, names in expected.items()}


def test_a_name_that_is_not_utf8_has_its_place(tmp_path: Path) -> None:
    names = {Path(name): name for name in (os.fsdecode(b"caf\xe9.wav"), "b.wav")}
    assert sorted(len(paths) for paths in _split_tracks(names, HALVES, seed=0).values()) == [1, 1]


@pytest.mark.parametrize("seed", range(60))
def test_groups_stay_whole_and_shares_are_kept_to_half_a_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(1, 12, rng.integers(4, 60))]
    tracks = {Path(f"{group}/{index}"): f"{group}/{index}" for group, size in enumerate(sizes) for index in range(size)}
    together = [[path for path in tracks if path.parent.name == str(group)] for group in range(len(sizes))]
    dealt = _split_tracks(tracks, SPLITS, seed, together)
    assert sorted(path for members in dealt.values() for path in members) == sorted(tracks)
    homes = {path: name for name, members in dealt.items() for path in members}
    assert all(len({homes[path] for path in members}) == 1 for members in together)
    assert all(dealt.values())
    if min(SPLITS.values()) * len(tracks) >= max(sizes):  # groups are small beside every split
        for name, share in SPLITS.items():
            assert abs(len(dealt[name]) - share * len(tracks)) <= 1.5 * max(sizes)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 50 + [50], {"train": 80, "valid": 10, "evaluate": 5, "generate": 5}),
        ([10] * 10, {"train": 70, "valid": 10, "evaluate": 10, "generate": 10}),
        ([45, 45] + [1] * 10, {"train": 90, "valid": 8, "evaluate": 1, "generate": 1}),
        ([97, 1, 1, 1], {"train": 97, "valid": 1, "evaluate": 1, "generate": 1}),
    ],
)
def test_few_or_large_groups(sizes: list[int], expected: dict[str, int]) -> None:
    for seed in range(5):
        names = [f"{group}/{index}" for group, size in enumerate(sizes) for index in range(size)]
        tracks = {Path(name): name for name in names}
        together = [[path for path in tracks if path.parent.name == str(group)] for group in range(len(sizes))]
        dealt = _split_tracks(tracks, SPLITS, seed, together)
        assert {name: len(members) for name, members in dealt.items()} == expected


def test_copies_and_encodings_never_cross_splits(tmp_path: Path) -> None:
    music = tmp_path / "music"
    for index in range(6):
        wav = chords(index, 2.0)
        write(music / f"{index}.wav", wav)
        write(music / "converted" / f"{index}.mp3", wav)
        (music / f"again{index}.wav").write_bytes((music / f"{index}.wav").read_bytes())
    for seed in range(5):
        report = prepare([music], tmp_path / "egs", splits=HALVES, seed=seed)
        assert Counter(one.kind for one in report.left_out) == {"copy": 6}
        assert {one.path for one in report.left_out} == {music / f"again{index}.wav" for index in range(6)}
        for index in range(6):
            home = home_of(report, music / f"{index}.wav")
            assert home is not None and home == home_of(report, music / "converted" / f"{index}.mp3")
        assert {one.tracks for one in report.splits.values()} == {6}


def test_group_by_folder(tmp_path: Path, make_audio: MakeAudio) -> None:
    music = tmp_path / "music"
    for album in range(4):
        for index in range(3):
            make_audio(
                music / f"album{album}" / f"{index}.wav", seconds=1 + album / 2 + index / 7, seed=3 * album + index
            )
    report = prepare([music], tmp_path / "egs", splits=HALVES, group_by="folder")
    assert {len(paths) for paths in tracks_of(report).values()} == {6}
    homes = [{home_of(report, path) for path in (music / f"album{album}").iterdir()} for album in range(4)]
    assert all(len(home) == 1 for home in homes)
    with pytest.raises(DataError, match=r"12 usable tracks in 4 groups by folder for 5 splits.*leave out --group-by"):
        prepare([music], tmp_path / "egs", splits={name: 0.2 for name in "abcde"}, group_by="folder")
    with pytest.raises(ConfigError, match=r"group_by='artist': choose one of folder, tag"):
        prepare([music], tmp_path / "egs", group_by="artist")


def test_group_by_tag(tmp_path: Path) -> None:
    """An artist in any spelling and format; without one an album, without either a folder."""
    music = tmp_path / "music"
    tags: dict[str, dict[str, str]] = {
        "a/1.flac": {"artist": "The  Band", "album": "One"},
        "b/2.mp3": {"artist": "the band ", "album": "Two"},
        "c/3.ogg": {"artist": "The Band"},
        "d/4.wav": {"artist": "THE BAND", "album": "One"},
        "e/5.flac": {"artist": "Various Artists", "album": "Hits"},
        "f/6.flac": {"album": "hits"},
        "g/7.wav": {},
        "g/8.wav": {"title": "x"},
        "h/9.wav": {},
    }
    for index, (name, given) in enumerate(tags.items()):
        write(music / name, chords(index, 1.5 + index / 3), tags=given)
    groups = [["a/1.flac", "b/2.mp3", "c/3.ogg", "d/4.wav"], ["e/5.flac", "f/6.flac"]]
    groups += [["g/7.wav", "g/8.wav"], ["h/9.wav"]]
    report = prepare([music], tmp_path / "egs", splits={name: 0.25 for name in "abcd"}, group_by="tag")
    found = [sorted(path.relative_to(music).as_posix() for path in paths) for paths in tracks_of(report).values()]
    assert sorted(found) == groups
    assert "3 without an artist or album tag, grouped by folder" in report.summary


def test_a_manifest_that_is_no_longer_made_is_removed_if_it_holds_the_same_tracks(tmp_path: Path, music: Path) -> None:
    egs = tmp_path / "egs"
    prepare([music], egs)
    other = tmp_path / "other"
    write(other / "a.wav", chords(0, 2.0))
    prepare([other], egs, splits={"test": 1})
    mine = write_manifest(egs / "mine.jsonl.gz", [AudioMeta(music / "mood0/t0.wav", 1.0, 24000)])
    (egs / "evaluate.jsonl.gz").write_bytes(gzip.compress(gzip.decompress((egs / "evaluate.jsonl.gz").read_bytes())))
    (egs / "odd.jsonl.gz").write_text("no manifest")
    report = prepare([music], egs, splits={"train": 1})
    assert report.removed == [egs / "generate.jsonl.gz", egs / "valid.jsonl.gz"]
    assert report.stale == [egs / "evaluate.jsonl.gz", mine]  # rewritten by a person; written by another program
    assert sorted(path.name.partition(".")[0] for path in egs.iterdir()) == ["evaluate", "mine", "odd", "test", "train"]
    assert f"removed {egs / 'valid.jsonl.gz'}" in str(report) and f"{mine} has some of these tracks" in str(report)
    assert len(read_manifest(egs / "train.jsonl.gz")) == 10
    (kept,) = gzip.decompress((egs / "test.jsonl.gz").read_bytes()).splitlines()
    assert json.loads(kept)["path"] == "../other/a.wav"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train=0.8"], r"train=0.8 sum to 0.8, not to 1: add .* --split valid=0.2, or give --split train=1"),
        (["train=0.8", "valid=0.1"], r"train=0.8 valid=0.1 sum to 0.9, not to 1: add .* --split evaluate=0.1"),
        (["train=8", "valid=2"], r"sum to 10, not to 1: give each as a part of 1"),
    ],
)
def test_shares_that_do_not_sum_to_1_are_refused(
    tmp_path: Path, music: Path, capsys: pytest.CaptureFixture[str], splits: list[str], message: str
) -> None:
    arguments = [word for split in splits for word in ("--split", split)]
    assert cli.main(["data", "prepare", str(music), "--output", str(tmp_path / "egs"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "egs").exists()
    prepare([music], tmp_path / "egs", splits={"a": 0.33, "b": 0.33, "c": 0.33})  # thirds


def test_an_output_that_is_no_folder_or_cannot_be_written_is_one_line(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(output: Path) -> str:
        assert cli.main(["data", "prepare", str(music), "--output", str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert f"--output {file}: {file} is not a folder" in refused(file)
    assert f"{file} is not a folder" in refused(file / "below" / "it")
    assert f"{tmp_path / 'link'} is not a folder" in refused(tmp_path / "link")
    assert "File name too long" in refused(tmp_path / ("x" * 300))
    assert file.read_text() == "mine"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert f"{tmp_path} cannot be written to" in refused(tmp_path / "egs")

    def full(path: Path, metas: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("audiotok.data.prepare.write_manifest", full)
    assert "train.jsonl.gz: No space left on device" in refused(tmp_path / "egs")


def test_how_far_it_is_shows_now_and_then(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    prepare([music], tmp_path / "egs")
    assert caplog.text == ""
    monkeypatch.setattr("audiotok.data.prepare._REPORT_EVERY_S", -1)
    prepare([music], tmp_path / "egs")
    assert "reading headers: 3 of 10" in caplog.text


def test_a_folder_without_music_names_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "prepare", str(tmp_path / "data/demo"), "--output", str(tmp_path / "egs")]) == 2
    assert "audiotok data demo" in capsys.readouterr().err
