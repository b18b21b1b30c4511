"""Copies of tracks at the rate of training: equal to what they are of, resumed, complete or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from audiotok import cli
from audiotok.data import convert as convert_module
from audiotok.data.audio import convert_audio, read_audio, read_segment
from audiotok.data.convert import Conversion, names_below
from audiotok.data.manifest import read_manifest
from audiotok.data.prepare import PrepareReport, prepare
from audiotok.errors import ConfigError, DataError
from audiotok.files import hold_lock

MakeAudio = Callable[..., NDArray[np.float32]]
FORMATS = ["wav", "flac", "ogg", "opus", "mp3"]


@pytest.fixture
def music(tmp_path: Path, make_audio: MakeAudio) -> Path:
    """Five tracks, one in each format, in two folders; two of them have one name."""
    for i, extension in enumerate(FORMATS):
        name = "same" if i > 2 else f"t{i}"
        path = tmp_path / "music" / f"mood{i // 3}" / f"{name}.{extension}"
        make_audio(path, seconds=1.3 + i / 2, rate=[24000, 44100, 48000, 48000, 44100][i], channels=2, seed=i)
    return tmp_path / "music"


def converted(music: Path, output: Path, kind: str = "flac", rate: int | None = 32000, **options: Any) -> PrepareReport:
    return prepare([music], output, splits={"a": 0.6, "b": 0.4}, convert=Conversion(kind, rate, **options))


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_copies_are_the_tracks_decoded_resampled_and_mixed(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(convert_module, "_BLOCK_S", 1)  # in several blocks, without a seam
    report = converted(music, tmp_path / "egs", kind, channels=1)
    plain = prepare([music], tmp_path / "plain", splits={"a": 0.6, "b": 0.4})
    for split in ("a", "b"):
        copies, tracks = (read_manifest(one.splits[split].manifest) for one in (report, plain))
        assert [meta.path.relative_to(tmp_path / "egs/audio") for meta in copies] == [
            meta.path.relative_to(music).with_name(f"{meta.path.name}.{kind}") for meta in tracks
        ]
        for copy, track in zip(copies, tracks, strict=True):
            rate = min(32000, track.sample_rate)
            assert (copy.sample_rate, copy.channels) == (rate, 1)
            expected = convert_audio(read_audio(track.path)[0], track.sample_rate, rate, 1)
            wav, _ = read_audio(copy.path)
            assert copy.duration == wav.shape[-1] / rate
            tolerance = 1e-6 if kind == "wav" else 0.5 / 32768 + 1e-6  # half a step of 16 bits
            torch.testing.assert_close(wav, expected, rtol=0, atol=tolerance)
    assert report.sample_rates == {24000: 1, 32000: 4} and "5 " + kind + " copies, " in str(report)


def test_samples_of_16_bits_come_back_as_they_were(tmp_path: Path) -> None:
    values = np.arange(-32768, 32768, dtype=np.int16)[:, None]
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music/all.wav", values, 32000)
    prepare([tmp_path / "music"], tmp_path / "egs", splits={"a": 1}, convert=Conversion("flac", 32000))
    assert np.array_equal(soundfile.read(tmp_path / "egs/audio/all.wav.flac", dtype="int16")[0], values[:, 0])


def test_segments_of_wav_copies_are_those_of_the_tracks(tmp_path: Path, music: Path) -> None:
    converted(music, tmp_path / "egs", "wav", channels=1)
    for name in ("mood0/t2.ogg", "mood1/same.opus"):  # at 48 kHz: every 1/16000 s frames coincide
        for start_s in (0.0, 0.37, 1.901):
            options: dict[str, Any] = {"start_s": start_s, "n_frames": 9000, "sample_rate": 32000, "channels": 1}
            track, _ = read_segment(music / name, **options)
            copy, _ = read_segment(tmp_path / f"egs/audio/{name}.wav", **options)
            torch.testing.assert_close(copy, track, rtol=0, atol=2e-6)


def test_again_makes_only_what_is_missing_or_changed(tmp_path: Path, music: Path, make_audio: MakeAudio) -> None:
    first = converted(music, tmp_path / "egs")
    copies = {path: path.stat() for path in (tmp_path / "egs/audio").rglob("*.flac")}
    assert first.converted is not None and len(copies) == 5 and first.converted.kept == 0
    gone, older, shorter, damaged, _ = sorted(copies)
    gone.unlink()
    os.utime(older, ns=(0, 0))
    soundfile.write(shorter, np.zeros((1000, 2)), 32000)
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    left = damaged.with_name(f".{damaged.name}.host.1.tmp")  # of a process that was killed
    left.write_bytes(b"half")
    again = converted(music, tmp_path / "egs")
    assert again.converted is not None and again.converted.kept == 1
    assert "5 flac copies, of which 1 were there" in str(again)
    assert {path: path.stat().st_size for path in copies} == {path: old.st_size for path, old in copies.items()}
    assert not left.exists() and [path.name for path in (tmp_path / "egs/audio").rglob(".*")] == [".sources.jsonl"]
    third = converted(music, tmp_path / "egs", rate=16000)
    assert third.converted is not None and third.converted.kept == 0 and third.sample_rates == {16000: 5}


def test_an_interruption_leaves_no_half_file_and_the_next_call_goes_on(
    tmp_path: Path,
    music: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    real, count = read_segment, 0

    def interrupted(path: Path, **options: Any) -> tuple[torch.Tensor, float]:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(path, **options)

    arguments = ["data", "prepare", str(music), "--output", str(tmp_path / "egs"), "--split", "a=1"]
    arguments += ["--convert", "flac", "--sample-rate", "32000", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "read_segment", interrupted)
        assert cli.main(arguments) == 130
    made = [path.name for path in (tmp_path / "egs").rglob("*") if path.is_file() and path.name != ".sources.jsonl"]
    assert 2 <= len(made) < 5 and all(name.endswith(".flac") and not name.startswith(".") for name in made)
    assert "the same command goes on" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    assert f"5 flac copies, of which {len(made)} were there" in capsys.readouterr().out
    (line,) = [record.getMessage() for record in caplog.records if f"{5 - len(made)} track" in record.getMessage()]
    assert "as flac take about" in line and "that are free in" in line


def test_copies_of_other_tracks_with_the_same_names_are_made_anew(tmp_path: Path, make_audio: MakeAudio) -> None:
    for seed, folder in enumerate(("new", "old")):
        path = tmp_path / folder / "x.wav"
        make_audio(path, seconds=1.0, seed=seed)
        os.utime(path, (1e9 - seed, 1e9 - seed))
    splits = {"a": 1.0}
    prepare([tmp_path / "new"], tmp_path / "egs", splits=splits, convert=Conversion("wav"))
    report = prepare([tmp_path / "old"], tmp_path / "egs", splits=splits, convert=Conversion("wav"))
    assert report.converted is not None and report.converted.kept == 0
    (copy,) = report.converted.copies.values()
    assert torch.equal(read_audio(copy.path)[0], read_audio(tmp_path / "old/x.wav")[0])


def test_what_cannot_be_read_to_its_end_is_left_out_and_groups_stay(
    tmp_path: Path, music: Path, make_audio: MakeAudio
) -> None:
    make_audio(music / "mood1/broken.flac", seconds=4.0, rate=32000)
    data = bytearray((music / "mood1/broken.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    (music / "mood1/broken.flac").write_bytes(data)
    splits = {"a": 0.5, "b": 0.5}
    report = prepare([music], tmp_path / "egs", splits=splits, group_by="folder", convert=Conversion("wav"))
    assert [one.path.name for one in report.left_out] == ["broken.flac"] and report.left_out[0].kind == "unreadable"
    folders = [{meta.path.parent.name for meta in read_manifest(one.manifest)} for one in report.splits.values()]
    assert sorted(map(sorted, folders)) == [["mood0"], ["mood1"]]
    assert not list((tmp_path / "egs/audio").rglob("*broken*"))


def test_loud_tracks_are_named_with_their_peak(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_audio: MakeAudio
) -> None:
    make_audio(tmp_path / "music/quiet.wav", seconds=2.0)
    signal = make_audio(tmp_path / "music/loud.wav", seconds=1.0)
    soundfile.write(tmp_path / "music/loud.wav", 4 * signal / np.abs(signal).max(), 16000, subtype="FLOAT")
    for kind, peak in (("flac", 1.0), ("wav", 4.0)):
        report = converted(tmp_path / "music", tmp_path / kind, kind, None)
        assert list(report.hot) == [tmp_path / "music/loud.wav"]
        line = f"{tmp_path / 'music/loud.wav'}: peak 4, 12.0 dB beyond full scale"
        assert f"{line}; used as it is" in str(report) and f"far beyond full scale: {line}" in report.listing()
        assert line in caplog.text
        assert float(read_audio(tmp_path / kind / f"audio/loud.wav.{kind}")[0].max()) == pytest.approx(peak, abs=1e-4)


def test_names_are_below_the_innermost_folder_of_all(tmp_path: Path) -> None:
    one, other = tmp_path / "x/one", tmp_path / "x/two/other"
    found = {one / "a/t.wav": "a/t.wav", other / "t.wav": "t.wav"}
    assert list(names_below(found, [one, other]).values()) == ["one/a/t.wav", "two/other/t.wav"]
    assert list(names_below({one / "a/t.wav": "a/t.wav"}, [one]).values()) == ["a/t.wav"]
    odd = tmp_path / "x/two/../one"
    assert list(names_below({odd / "t.wav": "t.wav"}, [odd]).values()) == ["t.wav"]


def test_mistakes_are_one_line_before_anything_is_written(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str, output: Path = tmp_path / "egs") -> str:
        assert cli.main(["data", "prepare", str(music), "--output", str(output), "--split", "a=1", *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--sample-rate is about copies: add --convert flac" in refused("--sample-rate", "32000")
    assert "--sample-rate 5: expected 1000 to 655350 Hz" in refused("--convert", "flac", "--sample-rate", "5")
    assert "--workers 0: expected 1 or more" in refused("--convert", "flac", "--workers", "0")
    assert f"lies in {music}" in refused("--convert", "wav", output=music / "egs")
    assert not (tmp_path / "egs").exists()
    with pytest.raises(ConfigError, match="--convert mp3: choose one of flac, wav"):
        Conversion("mp3")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        line = refused("--convert", "wav")
    assert "5 tracks (" in line and "0.001 MB are free in" in line and not list(tmp_path.rglob("*.wav.wav"))
    with hold_lock(tmp_path / "egs/audio/.converting.lock"):
        assert "another `audiotok data prepare` converts into it" in refused("--convert", "wav")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), AssertionError()])
def test_a_copy_that_cannot_be_written_ends_it_and_leaves_nothing(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(self: object, data: object) -> None:
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(DataError, match=r"cannot write below .*audio: .*Make room, or choose another --output"):
        converted(music, tmp_path / "egs")
    assert not [path for path in (tmp_path / "egs").rglob("*") if path.is_file()]


def test_progress_ends_at_the_whole(tmp_path: Path, music: Path) -> None:
    calls: list[tuple[float, float]] = []
    report = converted(music, tmp_path / "egs", progress=lambda done, total: calls.append((done, total)))
    seconds = sum(split.hours for split in report.splits.values()) * 3600
    assert calls[-1][0] == pytest.approx(seconds, abs=0.01) and calls[-1][1] == pytest.approx(seconds, abs=0.01)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
