"""Token sets on disk, and windows of them."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.data.token_writer import join, writing
from audiotok.data.tokens import TokenDataset, TokenSet
from audiotok.errors import ConfigError, DataError

HEADER = {
    "format": 1, "program": "audiotok 0", "codec": "mine", "codec_hash": "ab" * 32, "signature": "0a1b2c3d",
    "frame_rate": 50.0, "sample_rate": 32000, "channels": 1, "n_q": 3, "bins": 40, "label": None, "window_s": None,
    "manifests": ["cd"],
}  # fmt: skip
LENGTHS = [30, 7, 101, 64]
LABELS = ["calm", None, "wild", "calm"]


def codes_of(track: int, frames: int | None = None) -> Tensor:
    rng = np.random.default_rng(track)
    return torch.from_numpy(rng.integers(40, size=(3, LENGTHS[track] if frames is None else frames)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A token set of four tracks."""
    with writing(tmp_path / "set", HEADER, (1, 1)) as writer:
        assert writer is not None
        for track in (2, 0, 3, 1):
            writer.add(track, codes_of(track), duration=LENGTHS[track] / 50, scale=0.5 if track == 3 else None)
    assert join(tmp_path / "set", HEADER, [(f"/music/{i}.wav", label) for i, label in enumerate(LABELS)])
    return tmp_path / "set"


def test_a_set_gives_back_what_was_written(folder: Path) -> None:
    tokens = TokenSet.open(folder, codec_hash="ab" * 32)
    assert [(track.path, track.frames, track.label, track.scale) for track in tokens.tracks] == [
        (f"/music/{i}.wav", LENGTHS[i], LABELS[i], 0.5 if i == 3 else None) for i in range(4)
    ]
    assert tokens.labels == ["calm", "wild"] and tokens.signature == "0a1b2c3d" and tokens.frame_rate == 50
    for track in range(4):
        assert torch.equal(tokens.codes(track), codes_of(track)) and tokens.codes(track).dtype == torch.int64
    assert torch.equal(tokens.codes(2, 90, 11), codes_of(2)[:, 90:])
    assert torch.equal(tokens.codes(2, 95), codes_of(2)[:, 95:]) and tokens.codes(2, 101).shape == (3, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["codes-1-of-1-0000.u16", "tokens.json"]


def test_shards_are_raw_numbers_time_by_time(folder: Path) -> None:
    raw = np.fromfile(folder / "codes-1-of-1-0000.u16", "<u2").reshape(-1, 3)
    np.testing.assert_array_equal(raw, np.concatenate([codes_of(track).T for track in (2, 0, 3, 1)]))


@pytest.mark.parametrize("wrong", [(4, 0, 1), (-1, 0, 1), (1, 0, 8), (1, 7, 1), (1, -1, 1), (1, 0, -1)])
def test_a_stretch_that_is_not_there_is_refused(folder: Path, wrong: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=r"no track|no frames"):
        TokenSet.open(folder).codes(*wrong)


def test_a_set_travels_to_workers_without_its_maps(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    tokens.codes(0)
    there = pickle.loads(pickle.dumps(tokens))
    assert len(pickle.dumps(tokens)) < 3000 and torch.equal(there.codes(2), codes_of(2))


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "tokens.json").read_text())
        change(content)
        (folder / "tokens.json").write_text(json.dumps(content))

    return apply


def put(content: dict[str, Any], *keys: Any) -> None:
    *path, last, value = keys
    for key in path:
        content = content[key]
    content[last] = value


def unfinish(folder: Path) -> None:
    (folder / "tokens.json").rename(folder / "making")


def truncate(folder: Path) -> None:
    shard = folder / "codes-1-of-1-0000.u16"
    shard.write_bytes(shard.read_bytes()[:-1])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda folder: (folder / "tokens.json").unlink(), "holds no tokens.json"),
    "unfinished": (unfinish, "not finished: repeat the command"),
    "no JSON": (lambda folder: (folder / "tokens.json").write_text("{"), "cannot be read"),
    "a list": (lambda folder: (folder / "tokens.json").write_text("[1]"), "a list, not a dict"),
    "deep": (lambda folder: (folder / "tokens.json").write_text('{"a":' * 5000), "cannot be read"),
    "not UTF-8": (lambda folder: (folder / "tokens.json").write_bytes(b'{"format": "\xff"}'), "cannot be read"),
    "truncated shard": (truncate, "1211 bytes, not 1212: it is truncated"),
    "no shard": (lambda folder: (folder / "codes-1-of-1-0000.u16").unlink(), "no file of its folder"),
    "empty": (edit(lambda c: put(c, "tracks", [])), "the token set is empty"),
    "a later version": (edit(lambda c: put(c, "format", 2)), "has format 2; this version of audiotok reads 1"),
    "a path outside": (edit(lambda c: put(c, "shards", 0, "file", "../x")), "no file of its folder"),
    "an absolute path": (edit(lambda c: put(c, "shards", 0, "file", "/dev/zero")), "no file of its folder"),
    "huge frames": (edit(lambda c: put(c, "shards", 0, "frames", 10**30)), "frames=1000000"),
    "many frames": (edit(lambda c: put(c, "shards", 0, "frames", 10**9)), "truncated"),
    "many codebooks": (edit(lambda c: put(c, "n_q", 10**9)), "n_q=1000000000; expected a whole number"),
    "no codebooks": (edit(lambda c: put(c, "n_q", True)), "n_q=True"),
    "a track beyond": (edit(lambda c: put(c, "tracks", 1, "frames", 500)), "beyond the 202"),
    "no such shard": (edit(lambda c: put(c, "tracks", 1, "shard", 1)), r"tracks\[1\]: shard=1"),
    "no shards": (edit(lambda c: put(c, "shards", [])), r"tracks\[0\]: shard=0"),
    "negative": (edit(lambda c: put(c, "tracks", 1, "start", -1)), "start=-1"),
    "no number": (edit(lambda c: put(c, "tracks", 1, "duration", "1")), "duration='1'"),
    "not finite": (edit(lambda c: put(c, "frame_rate", float("nan"))), "frame_rate=nan"),
    "label of a kind": (edit(lambda c: put(c, "tracks", 0, "label", ["x"])), "label="),
    "rows of another kind": (edit(lambda c: put(c, "tracks", [1])), "expected a list of objects"),
    "the same track twice": (
        edit(lambda c: put(c, "tracks", 1, "path", c["tracks"][0]["path"])),
        "twice; each recording counts once",
    ),
    "no hash": (edit(lambda c: put(c, "codec_hash", None)), "codec_hash=None"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_or_hostile_set_is_refused_in_one_line(folder: Path, kind: str) -> None:
    damage, message = BAD[kind]
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        TokenSet.open(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 600


def test_a_link_out_of_the_folder_is_no_shard(folder: Path, tmp_path: Path) -> None:
    shard = folder / "codes-1-of-1-0000.u16"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no file of its folder"):
        TokenSet.open(folder)


def test_a_shard_that_shrinks_while_it_is_read_is_one_line(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    assert tokens.codes(0).numel()  # mapped
    shard = folder / "codes-1-of-1-0000.u16"
    with shard.open("ab") as file:  # what a killed process left
        file.write(bytes(10_000))
    assert torch.equal(tokens.codes(1), codes_of(1))
    with shard.open("r+b") as file:
        file.truncate(0)  # to read its map now would be a SIGBUS
    with pytest.raises(DataError, match="0 bytes, not 1212: it is truncated"):
        tokens.codes(1)
    shard.unlink()
    with pytest.raises(DataError, match="No such file"):
        tokens.codes(1)


def test_windows_of_a_sparse_file_take_no_memory(folder: Path) -> None:
    content = json.loads((folder / "tokens.json").read_text())
    shard, frames = folder / content["shards"][0]["file"], 10**9
    with shard.open("r+b") as file:
        file.truncate(frames * content["n_q"] * 2)
    content["shards"][0]["frames"] = frames
    content["tracks"] = [content["tracks"][0] | {"frames": frames, "start": 0}]
    (folder / "tokens.json").write_text(json.dumps(content))
    tiles = TokenDataset(TokenSet.open(folder), frames=1, num_samples=3, shuffle=False, seed=0, tile=True)
    starts = [int(start) for _, start in tiles._tiles]  # type: ignore[union-attr]
    assert starts == [frames // 6, frames // 2, 5 * frames // 6]


def test_a_set_of_another_codec_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"tokens of another codec \('mine', hash abababababab, not 010101010101\)"):
        TokenSet.open(folder, codec_hash="01" * 32)


def test_codes_beyond_the_bins_are_refused(folder: Path) -> None:
    with (folder / "codes-1-of-1-0000.u16").open("r+b") as file:
        file.write(b"\x28\x00")  # 40
    tokens = TokenSet.open(folder)
    with pytest.raises(DataError, match="code 40 in track 2; codes of this set stay below 40"):
        tokens.codes(2)
    assert torch.equal(tokens.codes(2, 1), codes_of(2)[:, 1:])


def test_windows_are_drawn_by_seed_epoch_and_index_alone(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    dataset = TokenDataset(tokens, frames=20, num_samples=50, shuffle=True, seed=1)
    dataset.set_epoch(3)
    there = pickle.loads(pickle.dumps(dataset))
    for index in (49, 0, 7):
        codes, track, label = dataset[index]
        again, *of_again = there[3, index]
        assert torch.equal(codes, again) and of_again == [track, label]
        assert codes.shape == (3, 20) and label == (1 if track == 2 else 0)
        assert any(torch.equal(codes, part) for part in codes_of(track).unfold(1, 20, 1).unbind(1))
    assert not all(torch.equal(dataset[4, i][0], dataset[3, i][0]) for i in range(50))
    other = TokenDataset(tokens, frames=20, num_samples=50, shuffle=True, seed=2)
    assert not all(torch.equal(other[3, i][0], dataset[3, i][0]) for i in range(50))
    still = TokenDataset(tokens, frames=20, num_samples=50, shuffle=False, seed=1)
    assert all(torch.equal(still[4, i][0], still[3, i][0]) for i in range(50))


def test_tracks_are_drawn_by_their_frames_and_starts_evenly(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    dataset = TokenDataset(tokens, frames=20, num_samples=2000, shuffle=True, seed=0)
    items = [dataset[index] for index in range(2000)]
    counts = Counter(track for _, track, _ in items)
    assert set(counts) == {0, 2, 3}
    for track in counts:  # 5 standard deviations of a binomial
        share = LENGTHS[track] / (30 + 101 + 64)
        assert abs(counts[track] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    starts = {bytes(codes.numpy()) for codes, track, _ in items if track == 0}
    assert len(starts) == 11  # all of 0..10, the last one too


def test_short_tracks_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = TokenDataset(TokenSet.open(folder), frames=64, num_samples=None, shuffle=True, seed=0)
    assert "left out 2 of 4 tracks: shorter than a window" in caplog.text and len(caplog.records) == 1
    assert len(dataset) == (101 + 64) // 64
    assert {dataset[epoch, 0][1] for epoch in range(40)} == {2, 3}
    with pytest.raises(DataError, match=r"a window has 102 frames \(2.04 s\).*the longest has 101"):
        TokenDataset(TokenSet.open(folder), frames=102, num_samples=None, shuffle=True, seed=0)


def test_tiles_cover_each_track_once(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    tiles = TokenDataset(tokens, frames=30, num_samples=None, shuffle=True, seed=0, tile=True)
    found = [(track, codes) for codes, track, _ in (tiles[9, index] for index in range(len(tiles)))]
    expected = [(track, part) for track in (0, 2, 3) for part in codes_of(track).unfold(1, 30, 30).unbind(1)]
    assert [track for track, _ in found] == [track for track, _ in expected]
    assert all(torch.equal(codes, part) for (_, codes), (_, part) in zip(found, expected, strict=True))
    some = TokenDataset(tokens, frames=30, num_samples=2, shuffle=False, seed=5, tile=True)
    assert [some[index][1] for index in range(len(some))] == [2, 3]
    assert len(TokenDataset(tokens, frames=30, num_samples=99, shuffle=False, seed=5, tile=True)) == 6


def test_labels_are_places_in_those_of_training(folder: Path) -> None:
    tokens = TokenSet.open(folder)
    options: dict[str, Any] = {"num_samples": None, "shuffle": False, "seed": 0, "tile": True}
    dataset = TokenDataset(tokens, frames=7, labels=["wild", "loud", "calm"], **options)
    assert {track: label for _, track, label in (dataset[i] for i in range(len(dataset)))} == {0: 2, 1: 3, 2: 0, 3: 2}
    with pytest.raises(DataError, match=r"/music/2.wav has label 'wild', which is not among those of training: calm"):
        TokenDataset(tokens, frames=7, labels=["calm"], **options)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"num_samples": 0}, {"seed": -1}])
def test_values_out_of_range_are_refused(folder: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        options: dict[str, Any] = {"frames": 5, "num_samples": 5, "shuffle": True, "seed": 0, **wrong}
        TokenDataset(TokenSet.open(folder), **options)
    with pytest.raises(IndexError):
        TokenDataset(TokenSet.open(folder), frames=5, num_samples=5, shuffle=True, seed=0)[5]
