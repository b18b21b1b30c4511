"""Files that are written in one step: an error leaves the old one, and is the one that is seen."""

import errno
from pathlib import Path

import pytest

from audiotok.files import replacing, write_text


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="in the middle"), replacing(path) as draft:
        draft.write_text("new")
        raise ValueError("in the middle")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["status.json"]


def test_of_a_disk_that_cannot_be_written_the_first_error_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "the draft")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="the file"), replacing(tmp_path / "status.json"):
        raise OSError(errno.EROFS, "the file")
