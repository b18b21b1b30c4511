"""Manifests: what is written, what is read, and what is said about a bad one."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from audiotok.data.manifest import AudioMeta, read_manifest, write_manifest
from audiotok.errors import DataError

GOOD = '{"path": "a.wav", "duration": 1.5, "sample_rate": 8000}'


def metas_of(folder: Path) -> list[AudioMeta]:
    return [
        AudioMeta(folder / "music" / "a b.wav", 1.25, 8000, 1),
        AudioMeta(folder / "music" / "ünï.flac", 1 / 3, 44100, 2, weight=0.5),
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_round_trip_and_repeatable_bytes(tmp_path: Path, name: str) -> None:
    metas = metas_of(tmp_path)
    path = write_manifest(tmp_path / "egs" / name, metas)
    first = path.read_bytes()
    assert read_manifest(path) == metas
    assert read_manifest(path.parent) == metas
    assert write_manifest(path, metas).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_gzip_holds_no_time_of_writing(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "data.jsonl.gz", metas_of(tmp_path))
    assert path.read_bytes()[4:8] == bytes(4)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert lines[0] == {
        "path": "music/a b.wav",
        "duration": 1.25,
        "sample_rate": 8000,
        "channels": 1,
        "weight": None,
    }


def test_relative_paths_survive_moving_the_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    write_manifest(old / "egs" / "train.jsonl.gz", metas_of(old))
    new.parent.mkdir()
    shutil.move(old, new)
    assert [meta.path for meta in read_manifest(new / "egs" / "train.jsonl.gz")] == [
        new / "music" / "a b.wav",
        new / "music" / "ünï.flac",
    ]


def test_paths_hold_through_links(tmp_path: Path) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    audio = tmp_path / "music" / "a.wav"
    audio.parent.mkdir()
    audio.touch()
    path = write_manifest(tmp_path / "link" / "data.jsonl", [AudioMeta(audio, 1.0, 8000, 1)])
    assert read_manifest(path)[0].path.samefile(audio)


def test_absolute_paths_and_unknown_fields_of_other_tools_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    entry = {"path": "/m/x.wav", "duration": 2, "sample_rate": 8000, "amplitude": None, "info_path": None}
    path.write_text(json.dumps(entry) + "\n\n")
    assert read_manifest(path) == [AudioMeta(Path("/m/x.wav"), 2.0, 8000)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"path": "a.wav", "duration": 1}', "missing sample_rate; found duration, path"),
        ('{"path": "", "duration": 1, "sample_rate": 8000}', "path=''"),
        ('{"path": 7, "duration": 1, "sample_rate": 8000}', "path=7"),
        ('{"path": "a", "duration": "1", "sample_rate": 8000}', "duration='1'; expected a number"),
        ('{"path": "a", "duration": NaN, "sample_rate": 8000}', "duration=nan"),
        ('{"path": "a", "duration": true, "sample_rate": 8000}', "duration=True"),
        ('{"path": "a", "duration": null, "sample_rate": 8000}', "duration is null"),
        ('{"path": "a", "duration": 1, "sample_rate": 0}', "sample_rate=0; expected a number of at least 1"),
        ('{"path": "a", "duration": 1, "sample_rate": 8000, "weight": -1}', "weight=-1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2: {message}")):
        read_manifest(path)


def test_a_bad_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    cases = {
        "empty.jsonl": (b"\n", "is empty"),
        "plain.jsonl.gz": (GOOD.encode(), "not a complete gzip file"),
        "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 99)[:-9], "not a complete gzip file"),
        "zipped.jsonl": (gzip.compress(GOOD.encode()), "must end in .gz"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{re.escape(name)}.*{re.escape(message)}.*audiotok data prepare"):
            read_manifest(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.jsonl does not exist.*audiotok data prepare"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"folder without data\.jsonl\.gz.*cut\.jsonl\.gz, empty\.jsonl"):
        read_manifest(tmp_path)


def test_a_cluster_says_where_its_audio_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, far = tmp_path / "home", tmp_path / "home" / "far"  # below the folder it stands for: nothing is moved twice
    absolute = {"path": str(home / "b.wav"), "duration": 1, "sample_rate": 8000}
    far.mkdir(parents=True)
    (far / "data.jsonl").write_text(f"{GOOD}\n{json.dumps(absolute)}\n")
    monkeypatch.setenv("AUDIOTOK_DATASET_PATHS", json.dumps({str(home): str(far)}))
    expected = [far / "a.wav", far / "b.wav"]
    assert [meta.path for meta in read_manifest(home / "data.jsonl")] == expected
    monkeypatch.chdir(home)
    assert [meta.path for meta in read_manifest("data.jsonl")] == expected
    with pytest.raises(DataError, match=re.escape(f"manifest {far}/no.jsonl does not exist (dataset_paths")):
        read_manifest(home / "no.jsonl")
    monkeypatch.delenv("AUDIOTOK_DATASET_PATHS")
    assert [meta.path for meta in read_manifest(far)] == [far / "a.wav", home / "b.wav"]
