"""What terminals of little ability get: ASCII, no escape codes, and no more columns than they have."""

import io
import os
import sys
from typing import Any

import pytest

from audiotok.terminal import Screen, in_colour, prepare_streams, size_of
from audiotok.text import shortened


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, **environ: str) -> bytes:
    """The bytes of a text on a stdout of this encoding."""
    raw = io.BytesIO()
    for name in ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    prepare_streams()
    print(text, flush=True)
    return raw.getvalue().rstrip(b"\n")


@pytest.mark.parametrize(
    ("encoding", "environ", "expected"),
    [
        ("ascii", {}, b"60 -> 90 ... 1 +- 2 - cafe ?"),
        ("latin-1", {}, b"60 -> 90 ... 1 \xb1 2 \xb7 caf\xe9 ?"),
        ("utf-8", {"LANG": "de_DE.UTF-8"}, "60 → 90 … 1 ± 2 · café 音".encode()),
        ("utf-8", {}, "60 → 90 … 1 ± 2 · café 音".encode()),
        ("utf-8", {"LANG": "C.UTF-8"}, "60 → 90 … 1 ± 2 · café 音".encode()),
        ("utf-8", {"LANG": "C"}, "60 -> 90 ... 1 +- 2 - café 音".encode()),
        ("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, "60 -> 90 ... 1 +- 2 - café 音".encode()),  # as Python sets it
        ("utf-8", {"LANG": "C", "LC_CTYPE": "en_US.UTF-8"}, "60 → 90 … 1 ± 2 · café 音".encode()),
        ("utf-8", {"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, "60 -> 90 ... 1 +- 2 - café 音".encode()),
    ],
)
def test_texts_are_written_as_the_terminal_can(
    monkeypatch: pytest.MonkeyPatch, encoding: str, environ: dict[str, str], expected: bytes
) -> None:
    assert written(monkeypatch, encoding, "60 → 90 … 1 ± 2 · café 音", **environ) == expected


def test_streams_of_other_kinds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    prepare_streams()


def test_colours_need_a_terminal_that_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert in_colour(_Terminal()) and not in_colour(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not in_colour(_Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_colour(_Terminal())


def test_a_pipe_has_no_width_unless_columns_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert size_of(io.StringIO()) == os.terminal_size((0, 0))
    monkeypatch.setenv("COLUMNS", "72")
    assert size_of(io.StringIO()).columns == 72 == size_of(_Terminal()).columns


def test_a_screen_writes_over_what_is_still_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    out: Any = _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "5")
    screen = Screen(in_place=True)
    screen.show("\033[31mone\033[0m\n" + "2" * 11)  # three lines, as the second one wraps
    screen.show("\n".join("12345"))  # as high as the terminal: its first line leaves
    screen.show("end")
    assert out.getvalue() == "\033[31mone\033[0m\n22222222222\n\033[3A\033[J1\n2\n3\n4\n5\n\nend\n"
    out.truncate(0)
    below = Screen(in_place=False)
    below.show("one")
    below.show("two")
    assert out.getvalue().strip("\0") == "one\n\ntwo\n"


def test_names_are_cut_at_their_longest_values() -> None:
    name = "mmd=0.0 sigmas=[0.1, 1.0, 5.0, 10.0, 20.0] seed=1"
    assert shortened(name, 80) == name
    assert shortened(name, 30) == "mmd=0.0 sigmas=[0.1,... seed=1"
    assert len(shortened(name, 20)) <= 20
    assert shortened("x" * 50, 20) == "x" * 17 + "..."
