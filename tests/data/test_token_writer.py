"""Making a token set: parts, kills in the middle, and folders that hold something else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok.data import token_writer
from audiotok.data.token_writer import join, make_folder, writing
from audiotok.data.tokens import TokenSet
from audiotok.errors import DataError
from audiotok.files import hold_lock
from tests.data.test_tokens import HEADER, LENGTHS, codes_of

TRACKS: list[tuple[str, str | None]] = [(f"/music/{index}.wav", None) for index in range(4)]


def make(folder: Path, tracks: list[int], part: tuple[int, int] = (1, 1)) -> TokenSet | None:
    with writing(folder, HEADER, part) as writer:
        assert writer is not None
        for track in tracks:
            assert track not in writer.done()
            writer.add(track, codes_of(track), duration=LENGTHS[track] / 50, scale=None)
        return join(folder, HEADER, TRACKS)


def check(tokens: TokenSet | None) -> None:
    assert tokens is not None
    assert [track.path for track in tokens.tracks] == [path for path, _ in TRACKS]
    assert all(torch.equal(tokens.codes(track), codes_of(track)) for track in range(4))
    assert not (tokens.folder / "making").exists()


def test_parts_are_joined_by_whoever_is_last(tmp_path: Path) -> None:
    assert make(tmp_path, [3, 0], (2, 3)) is None
    assert make(tmp_path, [1], (3, 3)) is None
    with pytest.raises(DataError, match=r"no tokens.json; it is not finished"):
        TokenSet.open(tmp_path)
    check(make(tmp_path, [2], (1, 3)))
    with writing(tmp_path, HEADER, (1, 3)) as writer:
        assert writer is None


def test_another_number_of_parts_goes_on_with_what_is_done(tmp_path: Path) -> None:
    assert make(tmp_path, [1], (2, 2)) is None
    with writing(tmp_path, HEADER, (1, 1)) as writer:
        assert writer is not None and writer.done() == {1}
    check(make(tmp_path, [0, 2, 3], (1, 1)))


def test_a_kill_at_any_byte_costs_the_track_that_was_written(tmp_path: Path) -> None:
    """The list of done tracks and the shard cut off anywhere, as a kill or a full disk leaves them."""
    for cut in (1, 20, 70, 120, 10**6):
        for shard_cut in (0, 1, 50, 10**6):
            folder = tmp_path / f"{cut}-{shard_cut}"
            assert make(folder, [0, 1, 2]) is None
            ledger, shard = folder / "making/1-of-1.jsonl", folder / "codes-1-of-1-0000.u16"
            os.truncate(ledger, max(0, ledger.stat().st_size - cut))
            os.truncate(shard, max(0, shard.stat().st_size - shard_cut))
            with writing(folder, HEADER, (1, 1)) as writer:
                assert writer is not None
                left = sorted({0, 1, 2, 3} - writer.done())
            check(make(folder, left))


def test_what_a_kill_left_of_a_shard_is_written_over(tmp_path: Path) -> None:
    assert make(tmp_path, [0, 1]) is None
    with (tmp_path / "codes-1-of-1-0000.u16").open("ab") as file:
        file.write(b"half of a track")
    check(make(tmp_path, [3, 2]))


def test_shards_end_at_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_writer, "SHARD_BYTES", 250)
    assert make(tmp_path, [0, 1]) is None
    check(make(tmp_path, [2, 3]))
    names = {name: frames for name, frames in TokenSet.open(tmp_path).shards}
    assert names == {f"codes-1-of-1-{n:04}.u16": frames for n, frames in enumerate([37, 101, 64])}


def test_a_part_has_one_writer(tmp_path: Path) -> None:
    make_folder(tmp_path, HEADER)
    with (
        hold_lock(tmp_path / "making/1-of-2.lock"),
        pytest.raises(DataError, match="another process makes part 1 of 2; wait for it, or stop it"),
        writing(tmp_path, HEADER, (1, 2)),
    ):
        pass
    with hold_lock(tmp_path / "making/1-of-2.lock"), writing(tmp_path, HEADER, (2, 2)) as writer:
        assert writer is not None


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec_hash": "cd" * 32}, r"holds tokens of another codec \('mine', hash abababababab\)"),
        ({"n_q": 2}, "holds tokens of 3 codebooks"),
        ({"manifests": ["ef"]}, "holds tokens of other manifests"),
        ({"label": "folder"}, "holds tokens with labels by None"),
        ({"format": 2}, "is of another version"),
    ],
)
def test_a_folder_with_other_tokens_is_left_alone(
    tmp_path: Path, change: dict[str, Any], message: str, complete: bool
) -> None:
    make(tmp_path, [0, 1, 2, 3] if complete else [0])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message), writing(tmp_path, HEADER | change, (1, 1)):
        pass
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song.wav").touch()
    with pytest.raises(DataError, match=r"is not empty and holds no token set \(song.wav, …\): choose a new folder"):
        make_folder(tmp_path, HEADER)
    with pytest.raises(DataError, match="cannot be a folder to write to"):
        make_folder(tmp_path / "song.wav", HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]


@pytest.mark.parametrize(
    "line",
    [
        "{", "[1]", '{"track": "1"}', '{"track": -1, "error": "x"}', '{"track": 1, "error": 3}',
        '{"track": 1, "shard": "../x", "start": 0, "frames": 1, "duration": 1.0}',
        '{"track": 1, "shard": "codes-1-of-1-0000.u16", "start": -5, "frames": 1, "duration": 1.0}',
        '{"track": 1, "shard": "codes-1-of-1-0000.u16", "start": 0, "frames": 100000, "duration": 1.0}',
        '{"track": 1, "shard": "codes-1-of-1-0000.u16", "start": 0, "frames": 1, "duration": NaN}',
    ],
)  # fmt: skip
def test_a_damaged_line_of_the_list_is_a_track_that_is_not_done(tmp_path: Path, line: str) -> None:
    assert make(tmp_path, [0, 2]) is None
    with (tmp_path / "making/1-of-1.jsonl").open("a") as file:
        file.write(line + "\n")
    check(make(tmp_path, [1, 3]))


def test_unreadable_tracks_are_left_out_unless_they_are_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with writing(tmp_path, HEADER, (1, 1)) as writer:
        assert writer is not None
        for track in (0, 3):
            writer.add(track, codes_of(track), duration=1.0, scale=None)
        writer.fail(1, "/music/1.wav: damaged")
        writer.fail(2, "/music/2.wav: gone")
    message = r"2 of 4 tracks cannot be read: /music/1.wav: damaged \| /music/2.wav: gone\. Repair them"
    with pytest.raises(DataError, match=message):
        join(tmp_path, HEADER, TRACKS)
    assert make(tmp_path, [1]) is not None, "one is mended: one of four may be missing"
    tokens = TokenSet.open(tmp_path)
    assert [track.path for track in tokens.tracks] == ["/music/0.wav", "/music/1.wav", "/music/3.wav"]
    assert "left out 1 of 4 tracks: /music/2.wav: gone" in caplog.text
    left_out = json.loads((tmp_path / "tokens.json").read_text())["left_out"]
    assert left_out == [{"path": "/music/2.wav", "reason": "/music/2.wav: gone"}]


def test_a_set_of_unreadable_tracks_alone_is_none(tmp_path: Path) -> None:
    with writing(tmp_path, HEADER, (1, 1)) as writer:
        assert writer is not None
        writer.fail(0, "gone")
        with pytest.raises(DataError, match="1 of 1 tracks cannot be read: gone"):
            join(tmp_path, HEADER, TRACKS[:1])


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with writing(tmp_path, HEADER, (1, 1)) as writer:
        assert writer is not None
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device\. Free some space"):
            writer.add(0, codes_of(0), duration=1.0, scale=None)
        monkeypatch.undo()
    check(make(tmp_path, [0, 1, 2, 3]))
