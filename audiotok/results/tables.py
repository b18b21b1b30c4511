"""DataFrame of runs to text: a terminal table, CSV or Markdown.

What comes from files (labels, reasons, names) is made harmless: escape sequences and control characters never
reach the terminal, and pipes never break a Markdown row. CSV keeps every value, at full precision.
"""

import difflib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.frame import Experiments
from audiotok.results.metrics import HEADLINE

TableFormat = Literal["table", "csv", "markdown"]
MAX_TEXT = 60
_SHORT_NUMBER = 7  # characters: a number as short as that was typed by somebody, and is shown as it is
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_MARKDOWN = re.compile(r"[\\|<`*]")


def format_table(runs: pd.DataFrame, fmt: str = "table", columns: Sequence[str] | None = None) -> str:
    """Write runs as text.

    Args:
        runs: `Experiments.runs`, or any DataFrame.
        fmt: `table` (aligned, rounded), `csv` (full precision) or `markdown` (rounded).
        columns: names or patterns such as `valid.*`, in the order wanted; default all.

    Returns:
        Lines, the last one ended too.

    Raises:
        ResultsError: if the format or a column does not exist.
    """
    if fmt not in get_args(TableFormat):
        raise ResultsError(f"no table format {fmt!r}; choose one of: {', '.join(get_args(TableFormat))}.")
    frame = runs if columns is None else runs[select_columns(runs.columns, columns)]
    if fmt == "csv":
        return frame.map(_csv_value).to_csv(index=False, lineterminator="\n")
    headers = [clean_text(str(name)) for name in frame.columns]
    values = [frame.iloc[:, index].tolist() for index in range(len(headers))]
    cells = [_format_column(items) for items in values]
    numeric = [all(map(_is_numeric, items)) for items in values]
    rows = [list(row) for row in zip(*cells, strict=True)]
    if fmt == "markdown":
        return _markdown(headers, rows, numeric)
    return _terminal(headers, rows, numeric)


def select_columns(available: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Expand names and shell patterns to columns, without repeats.

    Raises:
        ResultsError: if one matches nothing; the message holds the nearest names.
    """
    names = [str(name) for name in available]
    selected: dict[str, None] = {}
    for pattern in wanted:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names
            raise ResultsError(f"no column {pattern!r}; there are: {', '.join(near)} ({len(names)} in all).")
        selected |= dict.fromkeys(found)
    return list(selected)


def headline_columns(experiments: Experiments) -> list[str]:
    """Columns worth reading first: what was swept, how it went, and the metrics that judge it."""
    runs = experiments.runs
    said = [name for name in ("reason", "problems") if (runs[name] != "").any()]
    judged = [column for column in HEADLINE if column in runs.columns]
    return ["sig", *experiments.swept, "state", "epochs", "duration", *judged, *said]


def clean_text(text: str) -> str:
    """Drop escape sequences, control and direction characters; line breaks and tabs become spaces."""
    text = re.sub(r"\s+", " ", _ESCAPES.sub("", text))
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _is_numeric(value: object) -> bool:
    return _is_missing(value) or (isinstance(value, int | float) and not isinstance(value, bool))


def _format_column(items: Sequence[Any]) -> list[str]:
    floats = [value for value in items if isinstance(value, float) and math.isfinite(value)]
    decimals = _decimals(floats)
    return [_format_value(value, decimals) for value in items]


def _decimals(floats: Sequence[float]) -> int | None:
    """Digits after the point for a whole column; None where each number is better written on its own."""
    sizes = [abs(value) for value in floats if value]
    if not sizes or all(len(f"{value:g}") <= _SHORT_NUMBER and float(f"{value:g}") == value for value in floats):
        return None
    decimals = min(max(3 - math.floor(math.log10(max(sizes))), 0), 6)
    return decimals if min(sizes) >= 10.0 ** (1 - decimals) else None


def _format_value(value: Any, decimals: int | None = None) -> str:
    if _is_missing(value):
        return "-"
    if isinstance(value, tuple | list):
        return "[" + ", ".join("null" if item is None else _format_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if decimals is not None and math.isfinite(value):
            return f"{value:.{decimals}f}"
        short = f"{value:g}"
        if len(short) <= _SHORT_NUMBER and float(short) == value:
            return short
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"
    text = clean_text(str(value))
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _csv_value(value: Any) -> Any:
    """Lists as JSON; what is missing stays empty; numbers are left to repr, which loses nothing."""
    if isinstance(value, tuple):
        return json.dumps(value)
    return value


def _terminal(headers: list[str], rows: list[list[str]], numeric: list[bool]) -> str:
    widths = [max(map(_width, column)) for column in zip(headers, *rows, strict=True)]
    lines = []
    for row in [headers, ["-" * width for width in widths], *rows]:
        cells = (_pad(text, width, right) for text, width, right in zip(row, widths, numeric, strict=True))
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def _markdown(headers: list[str], rows: list[list[str]], numeric: list[bool]) -> str:
    rule = ["---:" if right else "---" for right in numeric]
    escaped = [[_MARKDOWN.sub(r"\\\g<0>", text) for text in row] for row in [headers, *rows]]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
