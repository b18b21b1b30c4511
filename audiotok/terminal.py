"""What a terminal can show: colours, its width, and the characters of its encoding. Standard library only."""

import codecs
import io
import os
import re
import shutil
import sys
import unicodedata
from typing import TextIO

# What our own texts use beyond ASCII; anything else comes from files.
_PLAIN = {"→": "->", "…": "...", "±": "+-", "×": "x", "·": "-", "—": "-", "−": "-", "↑": "^", "↓": "v"}
_ESCAPE = re.compile(r"\033\[[\d;]*m")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")  # what Python sets LC_CTYPE to in the locale C


def prepare_streams() -> None:
    """Have stdout and stderr write ASCII for what their encoding, or the locale C, lacks: `->` for an arrow.

    A letter of data loses its accent, or becomes `?`; in the locale C, where Python writes UTF-8, it stays as it is.
    """
    codecs.register_error("audiotok.plain", _plain)
    codecs.register_error("audiotok.locale_c", _plain_or_utf8)
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            stream.reconfigure(errors="audiotok.plain")
        elif _is_locale_c() and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="ascii", errors="audiotok.locale_c")


def in_colour(stream: TextIO) -> bool:
    """Whether escape codes may be written to a stream: to a terminal that knows them, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def size_of(stream: TextIO) -> os.terminal_size:
    """Columns and lines of the terminal of a stream, or COLUMNS and LINES; 0 where there is no limit, as in a pipe."""
    known = stream.isatty() or os.environ.get("COLUMNS")
    return shutil.get_terminal_size((0, 0)) if known else os.terminal_size((0, 0))


class Screen:
    """Writes each text over the one before if all of that is still on the terminal, else below it.

    Args:
        in_place: whether stdout is a terminal that can do that.
    """

    def __init__(self, *, in_place: bool) -> None:
        self._may, self._height = in_place, 0  # lines of the last text

    @property
    def in_place(self) -> bool:
        """Whether the next text replaces the last one."""
        return self._may and self._height < size_of(sys.stdout).lines

    def show(self, text: str) -> None:
        """Write a text of one line or more."""
        below = "\n" * bool(self._height)
        start = f"\033[{self._height}A\033[J" if self._height and self.in_place else below
        print(start + text, flush=True)  # noqa: T201
        columns = size_of(sys.stdout).columns or len(text)
        self._height = sum(max(1, -(-len(_ESCAPE.sub("", line)) // columns)) for line in text.split("\n"))


def _is_locale_c() -> bool:
    """Whether this is the locale C by the choice of the user; a locale that is not set counts as unknown."""
    kind = os.environ.get("LC_CTYPE", "")
    names = (os.environ.get("LC_ALL"), "" if kind in _COERCED else kind, os.environ.get("LANG"))
    return next(filter(None, names), "") in ("C", "POSIX")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handler of encoding errors: what is nearest in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _plain_or_utf8(error: UnicodeError) -> tuple[str | bytes, int]:
    """The same, but what is not ours stays UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, letter) for letter in text).encode(errors="surrogateescape"), error.end


def _ascii(letter: str) -> str:
    nearest = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _PLAIN.get(letter) or nearest or "?"
