"""Values to text, as cells of a table: rounded alike within a column, and harmless whatever a file said."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

MAX_TEXT = 60
MISSING = "-"
_SHORT_NUMBER = 7  # characters: a number as short as that was typed by somebody, and is shown as it is
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


class Estimate(NamedTuple):
    """A mean over runs; shown as `mean ± std`.

    Attributes:
        mean: NaN if no run has the value.
        std: NaN for fewer than two runs.
        n: runs.
    """

    mean: float
    std: float
    n: int


def format_column(items: Sequence[Any]) -> list[str]:
    """Text of every value of a column, numbers with as many decimals as the column needs."""
    estimates = [value for value in items if isinstance(value, Estimate)]
    if estimates:
        decimals = _estimate_decimals(estimates)
        return [_format_estimate(value, decimals) if isinstance(value, Estimate) else MISSING for value in items]
    digits = _decimals([value for value in items if isinstance(value, float) and math.isfinite(value)])
    return [format_value(value, digits) for value in items]


def format_value(value: Any, decimals: int | None = None) -> str:
    """Text of one value: no more digits than a reader uses, lists in brackets, long texts cut."""
    if is_missing(value):
        return MISSING
    if isinstance(value, tuple | list):
        return "[" + ", ".join("null" if item is None else format_value(item) for item in value) + "]"
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


def clean_text(text: str) -> str:
    """Drop escape sequences, control and direction characters; line breaks and tabs become spaces."""
    text = re.sub(r"\s+", " ", _ESCAPES.sub("", text))
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def is_missing(value: object) -> bool:
    """Whether there is nothing to show."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def is_numeric(value: object) -> bool:
    """Whether a cell is aligned to the right."""
    return is_missing(value) or (isinstance(value, int | float | Estimate) and not isinstance(value, bool))


def number_of(value: object) -> float:
    """What a cell is ranked by; NaN if it is no number."""
    if isinstance(value, Estimate):
        return value.mean
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _decimals(floats: Sequence[float]) -> int | None:
    """Digits after the point for a whole column; None where each number is better written on its own."""
    sizes = [abs(value) for value in floats if value]
    if not sizes or all(len(f"{value:g}") <= _SHORT_NUMBER and float(f"{value:g}") == value for value in floats):
        return None
    decimals = min(max(3 - math.floor(math.log10(max(sizes))), 0), 6)
    return decimals if min(sizes) >= 10.0 ** (1 - decimals) else None


def _estimate_decimals(estimates: Sequence[Estimate]) -> int:
    """Two digits of the typical spread, or four of the largest mean where there is no spread."""
    spreads = sorted(value.std for value in estimates if math.isfinite(value.std) and value.std > 0)
    means = [abs(value.mean) for value in estimates if math.isfinite(value.mean) and value.mean]
    size, digits = (spreads[len(spreads) // 2], 1) if spreads else (max(means, default=1.0), 3)
    return min(max(digits - math.floor(math.log10(size)), 0), 8)


def _format_estimate(value: Estimate, decimals: int) -> str:
    if not math.isfinite(value.mean):
        return MISSING
    mean = f"{value.mean:.{decimals}f}"
    return mean if not math.isfinite(value.std) else f"{mean} ± {value.std:.{decimals}f}"
