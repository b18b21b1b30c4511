"""Equal audio and encodings of one recording are found, different music is not, and the work grows with the files."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from audiotok.data import duplicates
from audiotok.data.audio import audio_info
from audiotok.data.duplicates import find_copies, united
from audiotok.data.manifest import AudioMeta
from audiotok.data.prepare import _Each
from tests.conftest import chords


def find(paths: Iterable[Path]) -> tuple[dict[Path, Path], list[tuple[Path, Path]]]:
    infos = {path: audio_info(path) for path in paths}
    tracks = {path: AudioMeta(path, one.duration_s, one.sample_rate, one.channels) for path, one in infos.items()}
    with ThreadPoolExecutor(1) as pool:
        return find_copies(tracks, _Each(pool))


def sound(path: Path, wav: NDArray[Any], rate: int = 48000) -> Path:
    container, subtype = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS")}.get(path.suffix[1:], (None, None))
    soundfile.write(path, wav, rate, format=container, subtype=subtype)
    return path


def test_equal_samples_are_copies_of_the_first_whatever_the_container_and_the_name(tmp_path: Path) -> None:
    wav = (chords(0, 2.5) * 20000).astype(np.int16)
    first = sound(tmp_path / "a.wav", wav, 16000)
    others = [sound(tmp_path / "b.flac", wav, 16000), sound(tmp_path / "c.wav", wav, 16000)]
    mp3 = sound(tmp_path / "d.mp3", wav / 32768, 16000)
    (tmp_path / "e.mp3").write_bytes(mp3.read_bytes())
    nearly = wav.copy()
    nearly[-1, -1] += 1  # the very last sample
    other = sound(tmp_path / "f.wav", nearly, 16000)
    copies, same = find([first, *others, mp3, tmp_path / "e.mp3", other])
    assert copies == {others[0]: first, others[1]: first, tmp_path / "e.mp3": mp3}
    assert united([first, mp3, other], same) == [[first, mp3, other]]


def test_encodings_of_a_recording_are_found(tmp_path: Path) -> None:
    wav = chords(3, 4.0, 48000)
    mono = resample_poly(wav.mean(1), 1, 3)
    paths = [sound(tmp_path / f"a.{suffix}", wav) for suffix in ("wav", "ogg", "opus", "mp3")]
    paths += [
        sound(tmp_path / "quiet.flac", wav / 8),
        sound(tmp_path / "inverted.flac", -wav),
        sound(tmp_path / "mono.mp3", mono, 16000),
        sound(tmp_path / "delayed.wav", np.concatenate([np.zeros((2400, 2)), wav])),
    ]
    copies, same = find(paths)
    assert copies == {}
    assert [sorted(group) for group in united(paths, same)] == [sorted(paths)]


def test_different_music_of_one_length_tempo_and_rhythm_is_not_the_same(tmp_path: Path) -> None:
    paths = [sound(tmp_path / f"{seed}.flac", chords(seed, 2.5), 16000) for seed in range(12)]
    time = np.arange(16000) / 16000
    for pitch in range(12):  # notes of a sampler, a semitone apart
        note = np.sin(2 * np.pi * 220 * 2 ** (pitch / 12) * time) * np.exp(-3 * time)
        paths.append(sound(tmp_path / f"note{pitch}.wav", note, 16000))
    noise = np.random.default_rng(0).normal(0, 0.1, (6, 32000))
    paths += [sound(tmp_path / f"noise{index}.wav", one, 16000) for index, one in enumerate(noise)]
    assert find(paths) == ({}, [])


def test_silence_equals_silence_and_nothing_else(tmp_path: Path) -> None:
    silent = [sound(tmp_path / f"silent{index}.wav", np.zeros(32000), 16000) for index in range(3)]
    longer = sound(tmp_path / "longer.wav", np.zeros(32100), 16000)
    faint = sound(tmp_path / "faint.wav", np.full(32000, 1e-4), 16000)
    copies, same = find([*silent, longer, faint])
    assert copies == {silent[1]: silent[0], silent[2]: silent[0]} and same == []


def test_what_cannot_be_decoded_is_no_copy(tmp_path: Path) -> None:
    wav = chords(0, 4.0)
    whole = sound(tmp_path / "a.wav", wav)
    damaged = [sound(tmp_path / f"{name}.flac", wav) for name in ("b", "c")]
    for path in damaged:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3])
    assert find([whole, *damaged]) == ({}, [])


def test_only_tracks_of_about_the_same_duration_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [sound(tmp_path / f"{index}.wav", chords(index, 2 + index), 16000) for index in range(5)]
    paths.append(sound(tmp_path / "near.wav", chords(9, 3.1), 16000))
    decoded = []
    levels = duplicates._levels

    def record(path: Path, duration_s: float) -> Any:
        decoded.append(path.name)
        return levels(path, duration_s)

    monkeypatch.setattr(duplicates, "_levels", record)
    find(paths)
    assert sorted(decoded) == ["1.wav", "near.wav"]


@pytest.mark.parametrize("count", [50, 400])
def test_pairs_to_compare_grow_with_the_tracks_however_alike(count: int) -> None:
    rng = np.random.default_rng(count)
    tracks = {Path(f"{index}.wav"): AudioMeta(Path(f"{index}.wav"), 1.0, 16000, 1) for index in range(count)}
    levels = {path: rng.normal(0, 0.1, 24).astype(np.float32) for path in tracks}  # all within the radius
    assert count / 2 <= len(duplicates._alike(tracks, levels)) <= duplicates._NEAREST * count


def test_a_track_is_compared_with_those_whose_levels_are_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [Path(f"{index}.wav") for index in range(300)]
    tracks = {path: AudioMeta(path, 1.0 + index % 150 / 1000, 16000, 1) for index, path in enumerate(paths)}
    levels = {path: rng.normal(0, 10, 24).astype(np.float32) for path in paths[:150]}
    levels |= {other: levels[path] + np.float32(0.5) for path, other in zip(paths[:150], paths[150:], strict=True)}
    assert set(duplicates._alike(tracks, levels)) >= set(zip(paths[:150], paths[150:], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_connected_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    sets = [rng.integers(0, count, rng.integers(1, 5)).tolist() for _ in range(int(rng.integers(0, 30)))]
    links = np.array([(one, other) for members in sets for one in members for other in members] or [(0, 0)])
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    expected = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
    groups = united(range(count), sets)
    assert {frozenset(group) for group in groups} == expected and sum(map(len, groups)) == count
