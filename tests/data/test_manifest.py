"""Manifests: what is written, what is read, and what is said about a bad one."""

import gzip
import json
import os
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


NAMES = (
    b"\xff\xfe not UTF-8.wav", b"caf\xe9.wav", b"x" * 250 + b".wav", "夜に駆ける.wav".encode(), b"two\nlines.wav",
    b"-rf.wav", b"'quoted\" `x` $(x).wav",
    "\u2028\u0085\x0b\x1c.wav".encode(), "\ufeffbom.wav".encode(), b" .wav", b"..wav",
)  # fmt: skip


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_every_name_of_a_file_comes_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    for one in NAMES:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + one))).touch()
    found = sorted(tmp_path.iterdir())
    path = write_manifest(tmp_path / "egs" / name, [AudioMeta(one, 1.0, 8000, 1) for one in found])
    read = [meta.path for meta in read_manifest(path)]
    assert read == found and {os.fsencode(one.name) for one in read} == set(NAMES)
    data = path.read_bytes()
    lines = (gzip.decompress(data) if name.endswith("gz") else data).decode("ascii").splitlines()  # any reader's lines
    # As AudioCraft reads it: json, and open.
    assert all((path.parent / json.loads(line)["path"]).is_file() for line in lines) and len(lines) == len(NAMES)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    names = ["a\u2028b.wav", "a\u0085b.wav", "\ufeffc.wav"]
    lines = [json.dumps({"path": n, "duration": 1, "sample_rate": 8000}, ensure_ascii=False) for n in names]
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n \n".join(lines).encode())
    assert [meta.path.name for meta in read_manifest(tmp_path)] == names
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\n\n\u2028{lines[1]}\n".encode())
    with pytest.raises(DataError, match="line 3: not JSON"):
        read_manifest(tmp_path)


def test_dots_lead_where_the_system_says(tmp_path: Path) -> None:
    audio = tmp_path / "far" / "music" / "a.wav"
    (tmp_path / "far" / "deep").mkdir(parents=True)
    audio.parent.mkdir()
    audio.touch()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    through = tmp_path / "link" / ".." / "music" / "a.wav"  # not tmp_path/music/a.wav, which is not there
    path = write_manifest(tmp_path / "egs" / "data.jsonl", [AudioMeta(through, 1.0, 8000, 1)])
    assert json.loads(path.read_text())["path"] == "../far/music/a.wav"
    for name in (str(through), "../link/../music/a.wav", "..//./link/../music/a.wav", "../" * 50 + str(through)[1:]):
        path.write_text(json.dumps({"path": name, "duration": 1, "sample_rate": 8000}))
        assert read_manifest(path)[0].path.samefile(audio), name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"path": "a\\u0000b", "duration": 1, "sample_rate": 8}',
            "path='a\\x00b'; expected the name of an audio file",
        ),
        (b'{"path": "\\ud800", "duration": 1, "sample_rate": 8}', "path='\\ud800'; expected the name of an audio file"),
        (b'{"path": "\xff", "duration": 1, "sample_rate": 8}', "not UTF-8 text (invalid start byte"),
        (b'{"path": "a", "duration": 1, "sample_rate": 1' + b"0" * 400 + b"}", "sample_rate=10000000000000000"),
        (b'{"path": "a", "duration": 1, "sample_rate": 1' + b"0" * 5000 + b"}", "not JSON of a manifest"),
        (
            b'{"path": "a", "duration": 1, "sample_rate": 44100.5}',
            "sample_rate=44100.5; expected a number of at least 1",
        ),
        (b'{"path": "a", "duration": -Infinity, "sample_rate": 8}', "duration=-inf; expected a number of at least 0"),
        (b'{"path": "a", "duration": 5.7e11, "sample_rate": 8}', "duration=570000000000.0; expected"),
        (b'{"path": "a", "duration": 1, "sample_rate": 8, "channels": 0}', "channels=0; expected"),
        (
            b'{"path": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "not JSON of a manifest (numbers too long, or too deep)",
        ),
        (b'{"path": "' + b"a" * (2 << 20) + b'"}', "over 1048576 bytes long"),
    ],
    ids=[
        "nul",
        "surrogate",
        "bytes",
        "401 digits",
        "5001 digits",
        "part",
        "infinity",
        "hours",
        "channels",
        "deep",
        "long",
    ],
)
def test_what_json_allows_and_no_track_has_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert text.startswith(f"manifest {path}, line 3: {message}") and len(text) < 600 and text.isprintable()


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (b"\0", "line 1: over 1048576 bytes long"),
        (b"\n", "bytes to 2097152 and more: it holds no tracks, or one over and over"),
        (
            GOOD.replace("a.wav", "x" * 250).encode() + b"\n",
            "bytes to 2097152 and more: it holds no tracks, or one over and over",
        ),
        (f"{GOOD}\n".encode(), "bytes to 2097152 and more: it holds no tracks, or one over and over"),
    ],
    ids=["zeros", "lines", "long track", "track"],
)
def test_a_gzip_bomb_is_refused_after_a_few_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: bytes, message: str
) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(unit * ((1 << 22) // len(unit))) * 256)  # a GiB
    unpacked: list[int] = []

    class Watched(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            block = super().read(size)
            unpacked.append(len(block))
            return block

    monkeypatch.setattr(gzip, "GzipFile", Watched)
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        read_manifest(path)
    assert message in str(caught.value) and 0 < sum(unpacked) <= 4 << 20


def test_tracks_that_differ_in_little_are_no_bomb(tmp_path: Path) -> None:
    metas = [AudioMeta(Path(f"/{'x' * 400}/{i:06d}.wav"), 10.0, 44100, 2) for i in range(8000)]
    path = write_manifest(tmp_path / "data.jsonl.gz", metas)
    assert path.stat().st_size * 100 < 8000 * 500 and read_manifest(path) == metas


def test_a_manifest_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, message in {
        "pipe.jsonl": "is no regular file",
        "loop.jsonl": "is no regular file",
        "x" * 300 + ".jsonl": "does not exist",
        "a\nb.jsonl": r"a\nb.jsonl does not exist",
    }.items():
        with pytest.raises(DataError) as caught:
            read_manifest(tmp_path / name)
        assert message in str(caught.value) and str(caught.value).isprintable()
