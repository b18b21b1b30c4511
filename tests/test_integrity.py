"""What a checkpoint's file and values are checked for."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError
from audiotok.integrity import damage, misfit, not_finite, oddity

STATE: dict[str, Any] = {"w": torch.arange(64.0), "history": [{"train": {"l1": 0.5}}], "xp.cfg": "a: 1\n"}


def test_every_flipped_bit_is_found_or_without_effect(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.th"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    found = 0
    for place in range(0, 8 * len(content), 37):  # 37 meets every bit of a byte
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            state = load_checkpoint(path)
        except CheckpointError:
            found += 1
        else:
            assert torch.equal(state["w"], STATE["w"]), f"bit {place}"
            assert [state[key] for key in ("history", "xp.cfg")] == [STATE[key] for key in ("history", "xp.cfg")]
    assert found > len(content) * 8 / 37 / 4


def test_a_flipped_weight_is_named_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.th"
    save_checkpoint(STATE, path)
    weights = STATE["w"].numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(weights, weights[:-1] + b"\1"))
    assert not torch.equal(torch.load(path, weights_only=True)["w"], STATE["w"])  # torch alone does not see it
    with pytest.raises(CheckpointError, match=r"checkpoint\.th is damaged.*checksum of its record '.*/data/0'"):
        load_checkpoint(path)


def test_files_without_checksums_still_load(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    assert damage(tmp_path / "old.th") == ""
    assert torch.equal(load_checkpoint(tmp_path / "old.th")["w"], STATE["w"])


@pytest.mark.parametrize(
    ("compression", "more", "words"),
    [
        (zipfile.ZIP_DEFLATED, [], "compressed"),
        (zipfile.ZIP_DEFLATED, [("bomb", bytes(1 << 20))], "compressed"),
        (zipfile.ZIP_STORED, [("{first}", b"x")], "two records of one name"),
        (zipfile.ZIP_STORED, [("{FIRST}", b"x")], "two records of one name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_zips_are_refused(tmp_path: Path, compression: int, more: list[tuple[str, bytes]], words: str) -> None:
    save_checkpoint(STATE, tmp_path / "fine.th")
    with zipfile.ZipFile(tmp_path / "fine.th") as fine, zipfile.ZipFile(tmp_path / "odd.th", "w", compression) as odd:
        for name in fine.namelist():
            odd.writestr(name, fine.read(name))
        for name, content in more:
            first = fine.namelist()[0]
            odd.writestr(name.format(first=first, FIRST=first.upper()), content)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / "odd.th")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(times):
        value = [value, value]
    return value


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nested(100), "nested more than"),
        (doubled(50), "unfold to far more"),
        (in_itself(), "contains itself"),
        (10**400, "a number of 1329 bits"),
        (bytearray(3), "a bytearray"),
        ({(1, 2): 3}, "keys are neither"),
        (torch.zeros(1).expand(1 << 40), "of fewer values than its shape"),
        (torch.zeros(3, dtype=torch.complex64), "of a special kind"),
        (torch.eye(3).to_sparse(), "of a special kind"),
        (torch.zeros(3, device="meta"), "of a special kind"),
    ],
)
def test_values_that_are_no_plain_data_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    assert words in oddity({"a": value}, size=1000)
    torch.save({"a": value}, tmp_path / "checkpoint.th")
    with pytest.raises(CheckpointError, match=r"checkpoint\.th holds"):
        load_checkpoint(tmp_path / "checkpoint.th")


def test_plain_values_are_fine() -> None:
    shared = torch.zeros(10)
    assert (
        oddity({"a": [shared, shared[2:4], (1, 2.5, None, True)], 3: {"b": "text", "c": torch.zeros(3, 4).T}}, 400)
        == ""
    )


@pytest.mark.parametrize(
    ("found", "own", "words"),
    [
        ({"a": torch.zeros(2)}, {"a": torch.ones(2)}, ""),
        ({"a": torch.zeros(2, dtype=torch.float16)}, {"a": torch.ones(2)}, ""),
        ({"a": {"b": 1.0}}, {"a": {}}, ""),
        ({"a": 3}, {"a": 1.5}, ""),
        ({"a": "x"}, {"a": None}, ""),
        ({"a": torch.zeros(1)}, {"a": torch.ones(2)}, "s.a is [1], expected [2]"),
        (
            {"a": torch.zeros(2, dtype=torch.int64)},
            {"a": torch.ones(2)},
            "s.a is of torch.int64, expected torch.float32",
        ),
        ({"a": 1}, {"a": torch.ones(2)}, "s.a is a int, expected a tensor"),
        ({"a": "x"}, {"a": 1}, "s.a is a str, expected a number"),
        ([], {"a": 1}, "s is a list, expected a dict"),
        ({}, {"a": 1, "b": 2}, "s.a is missing, nor do 1 more agree"),
        ({"a": 1, "c": 2}, {"a": 1}, "s.c is not expected"),
    ],
)
def test_forms_are_compared(found: Any, own: Any, words: str) -> None:
    assert misfit(found, own, "s") == words


def test_weights_that_are_not_finite_are_named() -> None:
    nan = torch.tensor([0.0, float("nan")])
    assert not_finite({"a": torch.ones(2), "n": 3}) == ""
    assert not_finite({"a": nan, "b": torch.ones(2), "c": nan, "d": nan, "e": nan}) == "a, c, d and 1 more"
