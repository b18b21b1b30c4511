"""Numbers and names as text: what several rooms read from files or write in messages. Standard library only."""

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_UNITS = (("d", 86400.0, 2.0), ("h", 3600.0, 1.5), ("m", 60.0, 1.5))  # name, seconds, and from how many on it is used


def duration_text(seconds: float) -> str:
    """A duration in its largest fitting unit: `45s`, `12m`, `3.2h`, `2.5d`."""
    for unit, size, least in _UNITS:
        if seconds >= size * least:
            value = seconds / size
            return f"{value:.0f}{unit}" if unit == "m" else f"{value:.1f}{unit}"
    return f"{max(seconds, 0.0):.0f}s"


def spoken_duration(seconds: float) -> str:
    """A duration in its two largest units, as people write it: `45s`, `12m 5s`, `2h 13m`, `3d 4h`; `-` if unknown."""
    if not math.isfinite(seconds):
        return "-"
    rest, parts = max(round(seconds), 0), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        value, rest = divmod(rest, size)
        if value or parts:
            parts.append(f"{value}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0")) or "0s"


def spoken_seconds(text: str) -> float | None:
    """Seconds of a duration as `spoken_duration` writes it, `2h 13m`, or in one unit, `1.5h`; None if it is none."""
    text = re.sub(r"\s+", "", text)
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(number) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def nearest_first(name: str, known: Iterable[str], n: int = 5, cutoff: float = 0.3) -> list[str]:
    """Known names, the n nearest to a mistyped one first, the others after them in alphabetical order."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=n, cutoff=cutoff)
    return near + sorted(set(known) - set(near))


def clean_text(text: str) -> str:
    """Drop escape sequences, control and direction characters; line breaks and tabs become spaces."""
    text = re.sub(r"\s+", " ", _ESCAPES.sub("", text))
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def shortened(text: str, length: int) -> str:
    """A text of at most this length; of a name, the longest values are cut first."""
    parts = re.split(r" (?![^\[{(]*[\]})])", text)
    for most in range(max(map(len, parts)), 8, -1):
        if sum(min(len(part), most) + 1 for part in parts) - 1 <= length:
            return " ".join(part if len(part) <= most else f"{part[: most - 3]}..." for part in parts)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def number_in(content: Mapping[str, Any], name: str) -> float | None:
    """The finite number under a name of a JSON object; None if it is missing, damaged or something else."""
    value = content.get(name)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON allows integers of any size
        return None
    return number if math.isfinite(number) else None
