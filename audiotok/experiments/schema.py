"""What the keys of a configuration may hold: sections as TypedDicts, checked by pydantic, faults as lines.

A line is `optim.lr=-1: give a number above 0`. Checks are of resolved values, so that presets, overrides and frozen
files are held to the same. A section lacks a key where a run was frozen before the key was made.
"""

import difflib
import functools
import json
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from audiotok.config_text import Plain, value_at
from audiotok.errors import ConfigError
from audiotok.experiments.overrides import dotted

Rule = Callable[[Plain], Iterator[str]]  # lines about keys that do not go together
_SHOWN = 12  # faults in a message
_LISTED = 3  # experiments that a fault names
_WIDTH = 80  # letters of a value


@dataclass(frozen=True)
class Idle:
    """Keys that do nothing in some configurations.

    Args:
        keys: patterns, such as `msstftd.*`.
        reason: why they do nothing in a configuration, "" if they do something.
        refused: whether an override that gives such a key another value than 0 is a mistake.
    """

    keys: Sequence[str]
    reason: Callable[[Plain], str]
    refused: bool = False

    def of(self, cfg: Plain, keys: Iterable[str]) -> list[str]:
        """A line for each of some keys that does nothing in a configuration."""
        some = [key for key in keys if any(fnmatchcase(key, pattern) for pattern in self.keys)]
        if self.refused:
            some = [key for key in some if value_at(cfg, tuple(key.split(".")))]
        reason = self.reason(cfg) if some else ""
        return [f"{line_start(cfg, key)} does nothing here: {reason}" for key in some] if reason else []


class Checked(NamedTuple):
    """What `Schema` finds in an experiment, a line each."""

    faults: Sequence[str] = ()
    idle: Sequence[str] = ()  # overrides that do nothing


class Schema:
    """What the keys of a configuration may hold.

    Args:
        kinds: TypedDict of the configuration by its `solver`. A section that it does not name is left alone.
        common: TypedDict of other kinds, whose sections may have further keys.
        rules: between keys, by kind, for configurations whose every key is right by itself.
        idle: keys that do nothing, by kind.
    """

    def __init__(
        self,
        kinds: Mapping[str, Any],
        common: Any,
        rules: Mapping[str, Sequence[Rule]],
        idle: Mapping[str, Sequence[Idle]],
    ) -> None:
        self._kinds, self._common, self._rules, self._idle = kinds, common, rules, idle

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """All keys that it names, of every kind."""
        return frozenset(key for kind in (self._common, *self._kinds.values()) for key in _keys(kind))

    def faults(self, cfg: Plain, keys: Iterable[str] = (), *, allow: Callable[[str], bool] | None = None) -> list[str]:
        """What is wrong with a resolved configuration, a line each.

        Args:
            cfg: as plain containers.
            keys: those that overrides set.
            allow: whether a key that is not named here may be there; None: any may, as in what was frozen before.
        """
        kind, name = self._kind(cfg)
        found: dict[str, str] = {}
        try:
            _adapter(kind).validate_python(cfg)
        except ValidationError as error:
            for one in error.errors(include_url=False, include_context=False, include_input=False):
                path, allowed = _place(kind, one["loc"])
                found.setdefault(dotted(path), f"{line_start(cfg, dotted(path))}: give {allowed}")
        lines = list(found.values())
        if allow is not None and kind is not self._common:
            lines += _unknown(cfg, kind, allow)
        if not found:
            for rule in self._rules.get(name, ()):
                lines += rule(cfg)
            lines += [line for idle in self._idle.get(name, ()) if idle.refused for line in idle.of(cfg, keys)]
        return lines

    def checked(self, cfg: Plain, keys: Collection[str], allow: Callable[[str], bool]) -> Checked:
        """Faults of a configuration, and which of the keys that overrides set do nothing in it; as `faults`."""
        faults = self.faults(cfg, keys, allow=allow)
        some = () if faults else self._idle.get(self._kind(cfg)[1], ())
        return Checked(faults, [line for idle in some if not idle.refused for line in idle.of(cfg, keys)])

    def check(self, cfg: Plain) -> None:
        """Refuse what cannot run; keys that this version does not know are left alone.

        Raises:
            ConfigError: naming keys, values and what is allowed.
        """
        refuse(self.faults(cfg))

    def _kind(self, cfg: Plain) -> tuple[Any, str]:
        name = cfg.get("solver")
        known = isinstance(name, str) and name in self._kinds
        return (self._kinds[name], name) if known and isinstance(name, str) else (self._common, "")


def refuse(faults: Sequence[str]) -> None:
    """Raise ConfigError if there are faults, which it lists."""
    if faults:
        more = len(faults) - _SHOWN
        raise ConfigError("; ".join([*faults[:_SHOWN], *[f"and {more} more"] * (more > 0)]))


def grouped(lines: Iterable[tuple[str, str]], count: int) -> list[str]:
    """Lines of many experiments, each once, with the names of those that it is of.

    Args:
        lines: pairs of the name of an experiment and a line.
        count: how many experiments there are.
    """
    names: dict[str, list[str]] = {}
    for name, line in lines:
        names.setdefault(line, []).append(name)
    found = []
    for line, some in sorted(names.items()):
        more = len(some) - _LISTED
        listed = ", ".join(some[:_LISTED]) + (f" and {more} more" if more > 0 else "")
        found.append(f"{line} ({f'all {count} experiments' if len(some) == count > 1 else listed})")
    return found


def line_start(cfg: Plain, key: str) -> str:
    """A key with its value, as an override has them."""
    return f"{key}={shown(value_at(cfg, tuple(key.split('.'))))}"


def shown(value: Any) -> str:
    """A value as an override has it, cut to a line."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() and value not in ("", "null"):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}… ({len(text)} letters)"


def allowed(kind: Any) -> str:
    """What a type allows, in words."""
    origin = get_origin(kind)
    if origin is Annotated:
        text = next((one for one in kind.__metadata__ if isinstance(one, str)), "")
        return text or allowed(kind.__origin__)
    if origin is Literal:
        values = get_args(kind)
        return f"one of: {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed(one) for one in get_args(kind))
    if is_typeddict(kind):
        return f"a section of keys ({', '.join(get_type_hints(kind))})"
    return {type(None): "null", str: "a text"}.get(kind, "a section of keys")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of the keys of a section, {} for what is none."""
    return get_type_hints(kind, include_extras=True) if is_typeddict(kind) else {}


@functools.cache
def _sections(kind: Any) -> dict[str, Any]:
    """The sections within a section, also those that may be null."""
    found: dict[str, Any] = {}
    for key, inner in _hints(kind).items():
        some = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
        found.update((key, one) for one in some if is_typeddict(one))
    return found


def _keys(kind: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    sections = _sections(kind)
    for key in _hints(kind):
        yield from _keys(sections[key], (*path, key)) if key in sections else [dotted((*path, key))]


def _place(kind: Any, location: Sequence[str | int]) -> tuple[tuple[str, ...], str]:
    """The key that an error of pydantic is about, and what it allows."""
    path: tuple[str, ...] = ()
    section = kind
    for part in location:  # the names of keys, and among them those of types
        if part in _hints(section):
            kind, path = _hints(section)[str(part)], (*path, str(part))
            section = _sections(section).get(str(part))
    return path, allowed(kind)


def _unknown(cfg: Plain, kind: Any, allow: Callable[[str], bool], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Keys that nothing reads. Beside the sections only such as are spelt almost like one: others may be of a user."""
    hints, sections = _hints(kind), _sections(kind)
    for key, value in cfg.items():
        if key in sections:
            if isinstance(value, dict):
                yield from _unknown(value, sections[key], allow, (*path, key))
        elif key not in hints and (near := _nearest(str(key), kind, path)) and not allow(dotted((*path, key))):
            yield f"{dotted((*path, key))}={shown(value)}: nothing reads this key; nearest: {near}"


@functools.lru_cache(maxsize=1 << 10)
def _nearest(key: str, kind: Any, path: tuple[str, ...]) -> str:
    """The names that are spelt alike, or any in a section; "" for no such name beside the sections."""
    names = difflib.get_close_matches(key, _hints(kind), n=3, cutoff=0.5 if path else 0.8)
    return ", ".join(dotted((*path, name)) for name in names or (list(_hints(kind))[:3] if path else ()))
