"""Clips for listening: the same samples, the right ones, and none too many; spectrograms that show what sounds."""

import base64
import io
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from audiotok.report.listening import (
    COLUMNS,
    LOWEST_HZ,
    ROWS,
    Listening,
    choose_clips,
    power_spectrogram,
    write_clips,
)
from audiotok.report.stimuli import anchor
from audiotok.results import load_grid
from tests.report.conftest import CLIPS, RATE, SECONDS, add_run, melody


def flac_in(path: Path) -> io.BytesIO:
    """The audio that the page of a recording holds."""
    found = re.search(rb'src="data:audio/flac;base64,([^"]+)"', path.read_bytes())
    assert found
    return io.BytesIO(base64.b64decode(found[1], validate=True))


def recordings(folder: Path) -> list[Path]:
    return list((folder / "audio").glob("*.html"))


def listen(root: Path, output: Path, per_run: int = 8, limit_bytes: float = 1e9) -> Listening:
    clips, left_out = choose_clips(load_grid("g", root).samples, per_run)
    output.mkdir(exist_ok=True)
    listening = write_clips(clips, output, limit_bytes)
    listening.left_out += left_out
    return listening


def test_recordings_keep_every_sample(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=CLIPS)
    listening = listen(tmp_path, tmp_path / "out")
    assert [clip["name"] for clip in listening.clips] == list(CLIPS)
    assert (listening.problems, listening.left_out) == ([], 0)
    for clip in listening.clips:
        assert [take["run"] for take in clip["takes"]] == ["reference", "00000001"]
        assert [take["epoch"] for take in clip["takes"]] == [None, 2]  # the last one
        for take, place in zip(clip["takes"], ("reference", "epoch_0002"), strict=True):
            path = tmp_path / "out" / take["audio"]
            assert soundfile.info(flac_in(path)).subtype == "PCM_16"
            written, rate = soundfile.read(flac_in(path), dtype="int16")
            source, _ = soundfile.read(folder / "samples" / place / f"{clip['name']}.wav", dtype="int16")
            assert rate == RATE and np.array_equal(written, source)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert listening.size == sum(path.stat().st_size for path in files)


def test_equal_samples_are_one_recording_whatever_the_files_type(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["a", "b"])
    for clip, kind in (("a", "PCM_24"), ("b", "FLOAT")):
        whole, _ = soundfile.read(folder / "samples/reference" / f"{clip}.wav", dtype="int16")
        whole[:2] = (-(2**15), 2**15 - 1)
        soundfile.write(folder / "samples/reference" / f"{clip}.wav", whole, RATE)
        soundfile.write(folder / "samples/epoch_0002" / f"{clip}.wav", whole / 2**15, RATE, subtype=kind)
    clips = listen(tmp_path, tmp_path / "out").clips
    assert [len({take["audio"] for take in clip["takes"]}) for clip in clips] == [1, 1]  # refused by a blind test
    written, _ = soundfile.read(flac_in(tmp_path / "out" / clips[1]["takes"][1]["audio"]), dtype="int16")
    assert np.array_equal(written, whole)


def test_one_recording_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(1, 7):
        add_run(tmp_path, "g", f"0000000{index}", [], clips=["a"])
    alive, most, read = list[Any](), list[int](), soundfile.read

    def watched(*args: Any, **options: Any) -> Any:
        most.append(sum(one() is not None for one in alive))
        wav, rate = read(*args, **options)
        alive.append(weakref.ref(wav))
        return wav, rate

    monkeypatch.setattr(soundfile, "read", watched)
    assert len(listen(tmp_path, tmp_path / "out").clips[0]["takes"]) == 7
    assert max(most) == 1  # the last one, which the next replaces


def test_a_shared_reference_is_written_once_and_another_of_the_same_name_is_another_clip(tmp_path: Path) -> None:
    for index in (1, 2, 3):
        folder = add_run(tmp_path, "g", f"0000000{index}", [f"seed={index}"], clips=["a"])
    soundfile.write(folder / "samples" / "reference" / "a.wav", melody(99), RATE)
    clips = listen(tmp_path, tmp_path / "out").clips
    runs = [[take["run"] for take in clip["takes"]] for clip in clips]
    assert runs == [["reference", "00000001", "00000002"], ["reference", "00000003"]]
    assert len(recordings(tmp_path / "out")) == 5 + 2  # and the anchors of two references


def test_samples_are_heard_whatever_their_names(tmp_path: Path) -> None:
    names = ["01 - Intro_0.0s", "Album_01 - Intro-1f0c2b9e77a4_0.0s", "\udcff_0.0s"]  # of two versions, and no text
    folder = add_run(tmp_path, "g", "00000001", [], clips=["a"])
    for parent in (folder / "samples").iterdir():
        for name in names:
            shutil.copy(parent / "a.wav", parent / f"{name}.wav")
            (parent / f"{name}.json").write_text("{}")
    listening = listen(tmp_path, tmp_path / "out")
    assert sorted(clip["name"] for clip in listening.clips) == sorted(["a", *names[:2], "?_0.0s"])
    assert all(len(clip["takes"]) == 2 for clip in listening.clips) and not listening.problems


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    for index in (1, 2):
        add_run(tmp_path, "g", f"0000000{index}", [], clips=CLIPS)
    add_run(tmp_path, "g", "00000003", [], clips=["tenth"])
    few = listen(tmp_path, tmp_path / "few", per_run=1)
    found = [(clip["name"], [take["run"][-1] for take in clip["takes"]]) for clip in few.clips]
    assert found == [("tenth", ["e", "1", "2"]), ("tenth", ["e", "3"])]  # the name that most runs have
    assert few.left_out == 4
    small = listen(tmp_path, tmp_path / "small", limit_bytes=1000)
    assert (len(small.clips), small.left_out) == (1, 5)  # of 7 reconstructions
    assert listen(tmp_path, tmp_path / "none", per_run=0).clips == []


def test_damaged_empty_and_loud_recordings_are_told(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["broken", "empty", "loud", "alone"])
    samples = folder / "samples"
    (samples / "epoch_0002" / "broken.wav").write_bytes(b"RIFF, or so")
    soundfile.write(samples / "epoch_0002" / "empty.wav", np.zeros(0), RATE)
    soundfile.write(samples / "epoch_0002" / "loud.wav", np.array([[0.5, -0.5], [3.0, np.nan]]), RATE, subtype="FLOAT")
    (samples / "reference" / "alone.wav").unlink()
    listening = listen(tmp_path, tmp_path / "out")
    clips = {clip["name"]: [take["run"] for take in clip["takes"]] for clip in listening.clips}
    assert clips == {"loud": ["reference", "00000001"], "alone": ["00000001"]}
    assert [problem.partition(":")[0] for problem in listening.problems] == [
        f"00000001, {name}" for name in ("broken", "empty", "loud")
    ]
    loud = next(clip for clip in listening.clips if clip["name"] == "loud")["takes"][1]
    written, _ = soundfile.read(flac_in(tmp_path / "out" / loud["audio"]))
    assert written == pytest.approx(np.array([[0.5, -0.5], [1.0, 0.0]]), abs=1e-4)


def test_a_sample_that_leads_out_of_its_experiment_is_not_copied(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["own", "linked", "stolen"])
    private = tmp_path / "private.wav"
    soundfile.write(private, np.full(1000, 0.25), RATE)
    for path in (folder / "samples/epoch_0002/stolen.wav", folder / "samples/reference/stolen.wav"):
        path.unlink()
        path.symlink_to(private)
    (folder / "samples/epoch_0002/linked.wav").unlink()
    (folder / "samples/epoch_0002/linked.wav").symlink_to("own.wav")
    os.mkfifo(folder / "samples/epoch_0002/pipe.wav")
    listening = listen(tmp_path, tmp_path / "out")
    assert sorted(clip["name"] for clip in listening.clips) == ["linked", "own"]
    said = "00000001, stolen: leads out of the folder of its experiment"
    assert listening.problems == [said.replace("00000001", "reference"), said]
    levels = [soundfile.read(flac_in(path))[0].max() for path in recordings(tmp_path / "out")]
    assert len(levels) == 3 + 2 and 0.25 not in levels


@pytest.mark.parametrize("hertz", [60.0, 440.0, 3000.0])
def test_a_tone_stands_where_its_frequency_and_time_are(hertz: float) -> None:
    t = np.arange(round(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * hertz * t) * (t >= SECONDS / 2)
    power = power_spectrogram(tone, RATE, seconds=SECONDS, highest_hz=RATE / 2)
    assert power.shape == (ROWS, COLUMNS)
    row, column = np.unravel_index(power.argmax(), power.shape)
    centre = LOWEST_HZ * (RATE / 2 / LOWEST_HZ) ** (row / (ROWS - 1))
    assert centre == pytest.approx(hertz, rel=0.07)  # or one bin of 50 ms, at the lowest
    assert column > COLUMNS * 0.49
    assert power[:, : round(COLUMNS * 0.45)].max() < power.max() * 1e-9


def test_spectrograms_of_a_clip_share_one_scale(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["a"])
    soundfile.write(folder / "samples" / "epoch_0002" / "a.wav", melody(0) / 10, RATE)
    takes = listen(tmp_path, tmp_path / "out").clips[0]["takes"]
    loud, quiet = (imread(tmp_path / "out" / take["image"])[..., :3].sum(axis=2) for take in takes)
    assert loud.shape == (ROWS, COLUMNS)
    assert quiet.max() < loud.max()  # 20 dB less is darker; on a scale of its own it would be as bright


def test_levels_and_the_anchor_are_of_the_recordings_themselves(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["a", "short"])
    soundfile.write(folder / "samples/epoch_0002/a.wav", melody(0) / 2, RATE)
    soundfile.write(folder / "samples/epoch_0002/short.wav", melody(1, 0.3), RATE)
    clips = {clip["name"]: clip for clip in listen(tmp_path, tmp_path / "out").clips}
    reference, halved = clips["a"]["takes"]
    assert halved["loudness"] - reference["loudness"] == pytest.approx(-6.02, abs=0.01)
    assert (halved["seconds"], halved["peak"]) == (SECONDS, pytest.approx(reference["peak"] / 2, abs=1e-4))
    assert clips["short"]["takes"][1]["loudness"] is None
    written, rate = soundfile.read(flac_in(tmp_path / "out" / clips["a"]["anchor"]["audio"]))
    expected = anchor(melody(0)[:, None], RATE)
    assert expected is not None and rate == clips["a"]["sample_rate"] == RATE
    assert written == pytest.approx(expected[:, 0], abs=1e-4)


def test_a_clip_without_a_reference_or_a_band_to_take_away_has_no_anchor(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "g", "00000001", [], clips=["alone", "narrow"])
    (folder / "samples/reference/alone.wav").unlink()
    soundfile.write(folder / "samples/reference/narrow.wav", melody(0), 8000)
    clips = listen(tmp_path, tmp_path / "out").clips
    assert {clip["name"]: clip["anchor"] for clip in clips} == {"alone": None, "narrow": None}
