"""Files of others are read with bounds; ours are written in one step, with the rights that the umask leaves."""

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from audiotok.files import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    LongInteger,
    UnreadableError,
    check_yaml,
    hold_lock,
    is_file_in,
    is_locked,
    load_json,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    replacing,
    write_json,
    write_text,
)


def make_strange(folder: Path) -> dict[str, Path]:
    """Paths that are no files to read, by why."""
    os.mkfifo(folder / "pipe")
    (folder / "link to a pipe").symlink_to("pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "huge").touch()
    os.truncate(folder / "huge", 2**40)
    return {
        "pipe or a device": folder / "pipe",
        "a pipe or": folder / "link to a pipe",
        "or a device": Path("/dev/zero"),
        "directory": folder,
        "symbolic links": folder / "loop",
        "MiB, more than 64": folder / "huge",
        "too long": folder / ("x" * 300),
        "null byte": folder / "a\0b",
    }


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for reason, path in make_strange(tmp_path).items():
        with pytest.raises(UnreadableError, match=reason) as caught:
            read_bytes(path)
        assert caught.value.reason in str(caught.value) and "\n" not in str(caught.value)
        assert read_json(path) is None and not is_locked(path)
        assert not is_file_in(tmp_path, path) or reason.startswith("MiB")
    for path in (tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(FileNotFoundError):
            read_bytes(path)


def test_files_are_read_whole_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, limit=100) == b"x" * 100
    with pytest.raises(UnreadableError, match="more than"):
        read_bytes(path, limit=99)
    assert read_text(Path("/proc/self/status")).startswith("Name:")  # of a filesystem that does not know sizes
    assert MAX_BYTES == 2**26


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_has_a_greatest_depth(opening: str, closing: str) -> None:
    parse_json(opening * (MAX_DEPTH - 1) + "[]" + closing * (MAX_DEPTH - 1))
    for levels in (MAX_DEPTH, 900, 5000, 200_000):
        with pytest.raises(ValueError, match="100 levels"):
            parse_json(opening * levels + "[]" + closing * levels)


def test_integers_are_exact_and_those_that_no_float_can_hold_are_text() -> None:
    longest = "9" * MAX_DIGITS
    assert parse_json(f"[{2**70}, {longest}, 1e400]") == [2**70, int(longest), float("inf")]
    assert parse_json(f"[{longest}9]") == [longest + "9"] and type(parse_json("9" * 5000)) is LongInteger
    assert float(int(longest)) < float("inf")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "Expecting property name"),
        ("[]", "a list, not a dict"),
        ('{"a": "\xff"}', "utf-8"),
        ("[" * 300 + "]" * 300, "100 levels"),
        ('{"a": [' + "[]," * 2**20 + "[]]}", "more than 1048576 lists"),
    ],
)
def test_what_is_no_json_says_why(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UnreadableError, match=reason) as caught:
        load_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert read_json(path) is None


def test_names_of_files_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {"folder": "caf\udce9", "seed": 2**70}
    write_json(tmp_path / "job.json", content)
    assert read_json(tmp_path / "job.json") == content


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: '*x'\nb: 2 * 3\nc: [[[]]]\n", ""),
        ("- '&x'", ""),
        ("[[[[[]]]]]", "nested more than 4 levels deep"),
        ("a: {b: [{c: {}}]}", "nested more than 4 levels deep"),
    ],
)
def test_yaml_has_no_aliases_and_bounded_depth(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) if fault else contextlib.nullcontext():
        check_yaml(text, 4)


def test_a_file_lies_in_a_folder_if_its_target_does(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "secret", tmp_path / "in" / "own"):
        path.touch()
    (tmp_path / "in" / "out").symlink_to("../secret")
    (tmp_path / "in" / "also").symlink_to("own")
    inside = {name: is_file_in(tmp_path / "in", tmp_path / "in" / name) for name in ("own", "also", "out", "../secret")}
    assert inside == {"own": True, "also": True, "out": False, "../secret": False}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_files_and_locks_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "status.json", "")
        with hold_lock(tmp_path / "locks" / "one"):
            pass
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "status.json", tmp_path / "locks" / "one")} == {mode}
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_lock_that_can_only_be_read_excludes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opening = tmp_path / "lock", os.open
    path.touch()

    def reading_only(file: Any, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "of another user")
        return opening(file, flags, *mode)

    monkeypatch.setattr(os, "open", reading_only)
    with hold_lock(path) as first, hold_lock(path, patience_s=0) as second:
        assert (first, second, is_locked(path)) == (True, False, True)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_may_not_be_made_is_a_matter_of_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a missing file, which the second attempt, to read it, would find."""
    opening = os.open

    def reading_only(file: Any, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "the folder is of another user")
        return opening(file, flags, *mode)

    monkeypatch.setattr(os, "open", reading_only)
    with pytest.raises(PermissionError, match="another user"), hold_lock(tmp_path / "lock"):
        pass


def test_a_damaged_object_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps([1]))
    assert read_json(tmp_path / "a") is None


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="in the middle"), replacing(path) as draft:
        draft.write_text("new")
        raise ValueError("in the middle")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("name", ["a" * 250, "é" * 127, os.fsdecode(b"\xff" * 255)])
def test_a_file_with_the_longest_name_can_be_replaced(tmp_path: Path, name: str) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / name, text)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "new")]


def test_of_a_disk_that_cannot_be_written_the_first_error_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "the draft")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="the file"), replacing(tmp_path / "status.json"):
        raise OSError(errno.EROFS, "the file")
