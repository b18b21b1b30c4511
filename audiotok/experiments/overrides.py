"""Overrides as text: parsed with Hydra's own grammar, and written so that it reads them as they were meant."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dora.hydra import _dump_key, _hydra_value_as_override
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType

from audiotok.experiments.plain import Plain, at


@lru_cache(maxsize=1 << 16)
def parse_override(argument: str) -> Override:
    """Parse an override with Hydra's parser; the result is shared, so leave it as it is.

    Raises:
        HydraException: if its grammar does not allow it.
    """
    return _parser().parse_overrides([argument])[0]


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()


def aligned(argument: str, base: Plain) -> str:
    """Override with every int that is given for a float of the base written as that float.

    So that `losses.mmd=2` and `losses.mmd=2.0` are one experiment. A list follows where the base is a list of floats, a
    section key by key.
    """
    override = parse_override(argument)
    if override.value_type is not ValueType.ELEMENT or override.package is not None:
        return argument
    value = _align(override._value, at(base, tuple(override.key_or_group.split("."))))
    if value is override._value:
        return argument
    return f"{argument.partition('=')[0]}={Override._get_value_element_as_str(value)}"


def as_override(value: Any) -> str:
    """Value as the right-hand side of an override: ASCII as Dora writes it, JSON; all else as Hydra reads it."""
    if isinstance(value, str) and not value.isascii():
        return str(QuotedString(value, Quote.double).with_quotes())
    if isinstance(value, dict):
        items = (f"{_dump_key(key)}: {as_override(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_override, value)) + "]"
    return str(_hydra_value_as_override(value))


def delta_of_groups(arguments: Sequence[str], groups: Sequence[str]) -> list[tuple[str, Any]]:
    """What overrides of config groups add to the delta, as Dora has it: the last one of each group."""
    delta: list[tuple[str, Any]] = []
    for argument in arguments:
        group, _, option = argument.partition("=")
        if group in groups:
            delta = [(other, value) for other, value in delta if other != group] + [(group, option)]
    return delta


def _align(value: Any, base: Any) -> Any:
    """Value with ints where the base has floats made floats; the value itself if there are none."""
    if type(value) is int and isinstance(base, float):
        try:
            return float(value)
        except OverflowError:
            return value
    if isinstance(value, list) and isinstance(base, list):
        is_float = bool(base) and all(isinstance(item, float) for item in base)
        items = [_align(item, 0.0) if is_float else item for item in value]
        return items if any(map(_is_other, items, value)) else value
    if isinstance(value, dict) and isinstance(base, dict):
        found = {key: _align(item, base.get(key) if isinstance(key, str) else None) for key, item in value.items()}
        return found if any(map(_is_other, found.values(), value.values())) else value
    return value


def _is_other(value: Any, other: Any) -> bool:
    return value is not other
