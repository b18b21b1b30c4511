"""The folder of a report: replaced as a whole, and nobody else's files touched."""

import json
from pathlib import Path

import pytest

from audiotok.errors import ResultsError
from audiotok.report.folder import MARKER, staged


def write(output: Path, **files: str) -> None:
    """Write a report whose files are `index` and audio."""
    with staged(output) as stage:
        (stage / "index.html").write_text(files.pop("index", "page"))
        (stage / "audio").mkdir()
        for name, text in files.items():
            (stage / "audio" / f"{name}.flac").write_text(text)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_report_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "report"
    write(output, a="1", b="2")
    (output / "notes.txt").write_text("mine")
    (output / "audio" / "mine.flac").write_text("mine")
    write(output, index="new", b="3", c="4")
    assert tree(output) == {MARKER, "index.html", "notes.txt", "audio/mine.flac", "audio/b.flac", "audio/c.flac"}
    assert (output / "index.html").read_text() == "new"
    assert (output / "audio" / "b.flac").read_text() == "3"
    assert [path.name for path in output.parent.iterdir()] == ["report"]  # nothing is left beside it


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "report", a="1")
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "report") as stage:
        (stage / "index.html").write_text("half")
        raise ZeroDivisionError
    assert tree(tmp_path) == before
    assert (tmp_path / "report" / "index.html").read_text() == "page"


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match="holds files and no report"):
        write(tmp_path)
    with pytest.raises(ResultsError, match="is a file"):
        write(tmp_path / "thesis.tex")
    with pytest.raises(ResultsError, match="cannot write the report"):
        write(tmp_path / "thesis.tex" / "report")
    assert tree(tmp_path) == {"thesis.tex"}


def test_a_file_of_somebody_else_in_the_way_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "report")
    (tmp_path / "report" / "audio").mkdir()
    (tmp_path / "report" / "audio" / "a.flac").write_text("mine")
    with pytest.raises(ResultsError, match=r"a\.flac is not the report's own"):
        write(tmp_path / "report", a="1")
    assert (tmp_path / "report" / "audio" / "a.flac").read_text() == "mine"


def test_a_link_to_another_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "report")
    (tmp_path / "report" / "audio").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="not the report's own"):
        write(tmp_path / "report", a="1")
    assert tree(tmp_path / "elsewhere") == set()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"files": 3}', json.dumps({"files": ["../precious", "/etc/passwd", "audio/../../precious", 3]})],
)
def test_a_marker_that_says_too_much_deletes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "precious").write_text("mine")
    write(tmp_path / "report")
    (tmp_path / "report" / "index.html").unlink()
    (tmp_path / "report" / MARKER).write_text(content)
    write(tmp_path / "report", index="new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "report" / "index.html").read_text() == "new"
