"""Nested plain containers: dicts of dicts, whose values are scalars and lists, as OmegaConf gives them out."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
Plain = dict[str, Any]

_ESCAPED = re.compile(r"(\\*)\$\{")


def is_plain(value: Any) -> bool:
    """Tell whether OmegaConf keeps a value as it is: a scalar, or a list of such, without interpolation."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def differs(value: Any, other: Any) -> bool:
    """Compare as Dora and OmegaConf do: 1 is 1.0 and True, NaN is nothing, not even itself."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) != len(other) or any(map(differs, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() != other.keys() or any(differs(item, other[key]) for key, item in value.items())
    return bool(value != other)


def escaped(value: Any) -> Any:
    """Copy in which a text with `${` is escaped, so that OmegaConf reads it as that text."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return _ESCAPED.sub(lambda match: match[1] * 2 + r"\${", value)
    return value


def leaves_of(section: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values of nested sections, with their paths; an empty section is a value."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves_of(value, (*path, key))
        else:
            yield (*path, key), value


def at(section: Any, path: Path) -> Any:
    """Value at a path, None if there is none."""
    for key in path:
        if not isinstance(section, dict):
            return None
        section = section.get(key)
    return section


def dotted(path: Path) -> str:
    """Name of a path, such as `losses.mmd`."""
    return ".".join(map(str, path))


def put(section: Plain, path: Path, value: Any) -> None:
    """Set the value at a path whose section exists."""
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value


def with_values(section: Plain, values: Mapping[Path, Any]) -> Plain:
    """Section with other values at paths that it has; what is not on the way to them is shared, not copied."""
    changed = dict(section)
    copied: set[Path] = set()
    for path, value in values.items():
        inner = changed
        for depth, key in enumerate(path[:-1], 1):
            if path[:depth] not in copied:
                inner[key] = dict(inner[key])
                copied.add(path[:depth])
            inner = inner[key]
        inner[path[-1]] = value
    return changed
