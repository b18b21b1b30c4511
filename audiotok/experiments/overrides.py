"""Overrides, as text and laid over a composed configuration: a thousand times faster than Hydra, for large grids.

Hydra composes each choice of config groups once (`Composition`); overrides of single values are then applied to plain
containers. Where the result might differ from Hydra's, `Composition.change` returns None and Hydra itself composes.
Sources: `dora.hydra.HydraMain` and Hydra's config loader, whose rules these are.
"""

import contextlib
import copy
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, cast

from dora.conf import DoraConfig
from dora.hydra import _dump_key, _hydra_value_as_override
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString, ValueType
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

from audiotok.config_text import LOCAL_SECTIONS, REFERENCE, Path, Plain, escaped, keep_unresolved, value_at

_PARSER = OverridesParser.create()
_NOT_SET = "??? (not set)"  # stands in a base for `???`; no override gives it by chance
_NO_KEYS = re.compile(r"\$\{\s*oc\.(?:env|decode)\s*:[^${}]*\}")  # resolvers that read no key of the configuration
_SPECIAL = re.compile(r"[.\[\]]")  # in a key: a dotted path cannot name it


@lru_cache(maxsize=1 << 16)
def parse_override(argument: str) -> Override:
    """Parse an override as Hydra does; the result is shared, so leave it as it is.

    Raises:
        HydraException: if its grammar does not allow it.
    """
    return _PARSER.parse_overrides([argument])[0]


def aligned(argument: str, base: Plain) -> str:
    """Override with ints written as floats where the base has floats: `losses.mmd=2` and `=2.0` are one experiment."""
    override = parse_override(argument)
    if override.value_type is not ValueType.ELEMENT or override.package is not None:
        return argument
    value = _align(override._value, value_at(base, tuple(override.key_or_group.split("."))))
    same = value is override._value
    return argument if same else f"{argument.partition('=')[0]}={Override._get_value_element_as_str(value)}"


def as_override(value: Any) -> str:
    """Value as the right-hand side of an override: plain ASCII as Dora writes it (JSON), all else as Hydra reads it."""
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and "\\" not in value):
        return str(QuotedString(value, Quote.double).with_quotes())
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"  # JSON has no word that Hydra reads as that
    if isinstance(value, dict):
        items = (f"{_dump_key(key)}: {as_override(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_override, value)) + "]"
    return str(_hydra_value_as_override(value))


class Composition:
    """The configuration of one choice of config groups, ready for overrides of values.

    Args:
        cfg: as composed by Hydra, without `hydra`.
        choices: the option of each config group.
        dora: has the keys that do not count for the signature.
        reference: what it is compared with, for the signature; None: itself, before any override.

    Raises:
        OmegaConfBaseException: if an interpolation cannot be resolved.
    """

    def __init__(
        self, cfg: DictConfig, choices: Mapping[str, Any], dora: DoraConfig, reference: "Composition | None" = None
    ) -> None:
        self.cfg, self.choices, self.reference = cfg, dict(choices), reference or self
        found = _scan(cfg)
        self.missing = frozenset(found.missing)
        self.comparable = cfg  # with a text for `???`, which cannot be compared
        if self.missing:
            self.comparable = copy.deepcopy(cfg)
            for key in self.missing:
                OmegaConf.update(self.comparable, key, _NOT_SET)
        self.resolved = cast(Plain, OmegaConf.to_container(self.comparable, resolve=True))
        raw = cast(Plain, OmegaConf.to_container(cfg))
        self._loose = {path: value for path, value in leaves_of(raw) if dora.is_excluded(dotted(path))}
        self._leaves = {key: path for key, path in found.leaves.items() if _is_plain(value_at(self.resolved, path))}
        self._aliases, self._watched = found.aliases, found.watched
        # `${section}` makes its key follow every key below the section. Only values are copied along aliases here, so
        # an override on, above or below such a section, as of any key that a longer expression reads, goes to Hydra.
        self._watched |= self._aliases.keys() - self._leaves.keys()
        self._above = {section for key in self._watched for section in _sections_of(key)}
        ours, self._reference = dict(leaves_of(self.resolved)), dict(leaves_of(self.reference.resolved))
        self._is_opaque = found.is_opaque or ours.keys() != self._reference.keys()
        self._always: dict[Path, Any] = {}  # what differs without overrides; NaN does from itself
        if not self._is_opaque:
            self._always = {path: value for path, value in ours.items() if _differs(value, self._reference[path])}
            self._is_opaque = any(
                isinstance(value, list) and value_at(raw, p) != value for p, value in self._always.items()
            )

    def change(self, overrides: Sequence[Override]) -> dict[str, Any] | None:
        """Values that overrides set, and those that follow by interpolation; None where only Hydra can compose them."""
        if self._is_opaque:
            return None
        values: dict[str, Any] = {}
        for override in overrides:
            key = override.key_or_group
            if override.type is not OverrideType.CHANGE or not is_of_values(override) or key not in self._leaves:
                return None
            values[key] = value = override.value()
            if not _is_plain(value):
                return None
        pending = list(values)
        while pending:
            key = pending.pop()
            if key in self._above or not self._watched.isdisjoint((key, *_sections_of(key))):
                return None
            for alias in self._aliases.get(key, ()):
                if alias not in values:
                    values[alias] = values[key]
                    pending.append(alias)
        return values

    def delta(self, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Differences from the base, in Dora's order: sorted keys, section by section."""
        changed = dict(self._always)
        for key, value in values.items():
            path = self._leaves[key]
            if _differs(value, self._reference[path]):
                changed[path] = value
            else:
                changed.pop(path, None)
        return [(dotted(path), changed[path]) for path in sorted(changed)]

    def apply(self, overrides: Sequence[Override]) -> DictConfig:
        """Configuration with overrides of values (`is_of_values`) applied by Hydra, which may raise HydraException."""
        cfg = copy.deepcopy(self.cfg)
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)
        return cfg

    def values(self, values: Mapping[str, Any]) -> Plain:
        """The resolved configuration with some values set; shared with the other experiments of this composition."""
        return _with_values(self.resolved, {self._leaves[key]: value for key, value in values.items()})

    def frozen(self, values: Mapping[str, Any]) -> Plain:
        """`freeze_values` with some values set; shared with the other experiments of this composition."""
        counted = {self._leaves[key]: value for key, value in values.items() if self._leaves[key] not in self._loose}
        return _with_values(self._frozen, counted)

    @cached_property
    def _frozen(self) -> Plain:
        return self.freeze_values(self.comparable)

    def freeze_values(self, cfg: DictConfig) -> Plain:
        """Frozen form of a configuration of this composition, for OmegaConf.

        Keys that count for the signature are resolved, but for what reads the environment. The others stay as the
        presets have them, with interpolations: each run gives its own, from its environment and its command line. The
        sections of the machine are left out: a run takes those of where it runs.
        """
        frozen: Plain = escaped(OmegaConf.to_container(cfg, resolve=True))
        keep_unresolved(frozen, cast(Plain, OmegaConf.to_container(cfg)))
        for path, value in self._loose.items():
            section = value_at(frozen, path[:-1])
            if isinstance(section, dict):
                section[path[-1]] = copy.deepcopy(value)
        for name in LOCAL_SECTIONS:
            frozen.pop(name, None)
        return frozen


@dataclass
class _Scan:
    """Where the values of a composed configuration stand, and what depends on what."""

    leaves: dict[str, Path] = field(default_factory=dict)  # keys that may be set here
    aliases: dict[str, list[str]] = field(default_factory=dict)  # key → keys that are just ${key}
    watched: set[str] = field(default_factory=set)  # keys that something more intricate depends on
    missing: list[str] = field(default_factory=list)
    is_opaque: bool = False  # something in it is beyond these rules


def _scan(section: DictConfig, path: Path = (), found: _Scan | None = None) -> _Scan:
    found = found or _Scan()
    if OmegaConf.get_type(section) is not dict or OmegaConf.is_readonly(section):
        found.is_opaque = True  # a structured config checks and converts what it is given
        return found
    for key in section:
        if not isinstance(key, str):
            found.is_opaque = True
            return found
        here = (*path, key)
        node: Any = section._get_node(key)
        if node._is_interpolation():
            match = REFERENCE.fullmatch(str(node._value()))
            if match is None:
                _watch(node._value(), here, found)
            else:
                found.aliases.setdefault(_absolute(match[1], here), []).append(dotted(here))
        elif isinstance(node, DictConfig) and not node._is_none():
            _scan(node, here, found)
            continue
        elif isinstance(node, ListConfig) and not node._is_none():
            _watch(OmegaConf.to_container(node), here, found)
        elif not isinstance(node, AnyNode | ListConfig):
            found.is_opaque = True
        elif OmegaConf.is_missing(section, key):
            found.missing.append(dotted(here))
        if not any(_SPECIAL.search(part) for part in here):
            found.leaves[dotted(here)] = here
    return found


def _watch(value: Any, path: Path, found: _Scan) -> None:
    """Note which keys the interpolations in a value depend on."""
    if isinstance(value, list | dict):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            _watch(item, (*path, str(key)), found)
    elif isinstance(value, str):
        before = ""
        while "${" in value and value != before:  # from the innermost out: ${oc.env:X,${a}} reads a
            before = value
            found.watched.update(_absolute(match, path) for match in REFERENCE.findall(value))
            value = _NO_KEYS.sub("", REFERENCE.sub("", value))
        found.is_opaque |= "${" in value


def _absolute(reference: str, path: Path) -> str:
    name = reference.lstrip(".")
    levels = len(reference) - len(name)
    return name if levels == 0 else dotted((*path[: max(len(path) - levels, 0)], name))


def leaves_of(section: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Values of nested sections, with their paths; an empty section is a value."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves_of(value, (*path, key))
        else:
            yield (*path, key), value


def dotted(path: Path) -> str:
    """Name of a path, such as `losses.mmd`."""
    return ".".join(map(str, path))


def is_of_values(override: Override) -> bool:
    """Whether an override sets a value, rather than changing what is composed."""
    is_hydra = override.key_or_group == "hydra" or override.is_hydra_override()
    return override.value_type is ValueType.ELEMENT and override.package is None and not is_hydra


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf keeps a value as it is: a scalar, or a list of such, without interpolation."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _differs(value: Any, other: Any) -> bool:
    """Compare as Dora and OmegaConf do: 1 is 1.0 and True, NaN is nothing, not even itself."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) != len(other) or any(map(_differs, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() != other.keys() or any(_differs(item, other[key]) for key, item in value.items())
    return bool(value != other)


def _with_values(section: Plain, values: Mapping[Path, Any]) -> Plain:
    """Section with other values at paths that it has; the rest is shared, not copied."""
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


def _align(value: Any, base: Any) -> Any:
    """Value whose ints are floats where the base has floats; the value itself if there are none."""
    if type(value) is int and isinstance(base, float):  # not bool
        with contextlib.suppress(OverflowError):
            return float(value)
    if isinstance(value, list) and isinstance(base, list):
        is_float = bool(base) and all(isinstance(item, float) for item in base)
        items = [_align(item, 0.0) if is_float else item for item in value]
        return items if any(map(operator.is_not, items, value)) else value
    if isinstance(value, dict) and isinstance(base, dict):
        found = {key: _align(item, base.get(key) if isinstance(key, str) else None) for key, item in value.items()}
        return found if any(map(operator.is_not, found.values(), value.values())) else value
    return value


def _sections_of(key: str) -> list[str]:
    return [key[:index] for index, letter in enumerate(key) if letter == "."]
