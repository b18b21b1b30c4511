"""One choice of config groups, composed by Hydra once; overrides of single values are then applied to plain containers.

Source: the rules are those of `dora.hydra.HydraMain` and of Hydra's config loader. What cannot surely be done the same
way here is left to them: `Composition.change` then returns None.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dora.conf import DoraConfig
from dora.xp import XP, _get_sig
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

from audiotok.plain import Path, Plain, at, differs, dotted, escaped, is_plain, leaves_of, put

_NOT_SET = "??? (not set)"  # stands in a base for `???`; no override gives it by chance
_REFERENCE = re.compile(r"\$\{\s*(\.*[A-Za-z_$][\w$-]*(?:\.[\w$-]+)*)\s*\}")  # ${a.b} or ${..b}
_NO_KEYS = re.compile(r"\$\{\s*oc\.(?:env|decode)\s*:[^${}]*\}")  # resolvers that read no key of the configuration
_SPECIAL = re.compile(r"[.\[\]]")  # in a key: a dotted path cannot name it


class Experiment(XP):
    """Dora's experiment; its configuration is only built when somebody asks for it.

    Args:
        dora: where and under what rules it lives.
        argv: its overrides.
        delta: what they change, still with the keys that do not count.
        build: makes the configuration.
        values: makes its frozen form, see `Composition.frozen`.
        choices: the option of each config group.
        sig: signature; None: that of `delta`.
        is_frozen: it comes from a frozen file rather than from the configuration as it is now.
    """

    def __init__(
        self,
        dora: DoraConfig,
        argv: Sequence[str],
        delta: Sequence[Sequence[Any]],
        *,
        build: Callable[[], DictConfig],
        values: Callable[[], Plain],
        choices: Mapping[str, Any],
        sig: str | None = None,
        is_frozen: bool = False,
    ) -> None:
        counted = [[key, value] for key, value in delta if not dora.is_excluded(key)]
        self._build, self._values = build, values
        self._cfg: DictConfig | None = None
        self.choices, self.is_frozen = dict(choices), is_frozen
        super().__init__(dora=dora, cfg=None, argv=list(argv), sig=sig or _get_sig(counted))
        self.delta: Any = counted  # set here: Dora would import torch to look for tensors in it

    @property
    def cfg(self) -> Any:
        """Configuration, as Hydra composes it."""
        if self._cfg is None:
            self._cfg = self._build()
        return self._cfg

    @cfg.setter
    def cfg(self, value: Any) -> None:
        self._cfg = value

    def frozen_values(self) -> Plain:
        """Return a copy of its frozen form, as `frozen.json` holds it."""
        return copy.deepcopy(self._values())

    def __getstate__(self) -> dict[str, Any]:
        cfg, values = self.cfg, self._values()
        return {**self.__dict__, "_build": Constant(cfg), "_values": Constant(values)}


@dataclass(frozen=True)
class Constant:
    """Function without arguments that returns a constant; unlike a lambda, it can be pickled."""

    value: Any

    def __call__(self) -> Any:
        """The constant."""
        return self.value


@dataclass
class _Scan:
    """What is found in a composed configuration: where values stand, and what depends on what."""

    leaves: dict[str, Path] = field(default_factory=dict)  # keys that may be set here
    aliases: dict[str, list[str]] = field(default_factory=dict)  # key → keys that are just ${key}
    watched: set[str] = field(default_factory=set)  # keys that something more intricate depends on
    missing: list[str] = field(default_factory=list)
    is_opaque: bool = False  # something in it is beyond these rules


class Composition:
    """The configuration of one choice of config groups, ready for overrides of values.

    Args:
        cfg: as composed by Hydra, without `hydra`.
        choices: the option of each config group.
        dora: tells which keys do not count for the signature.
        reference: what it is compared with, for the signature; None: itself, before any override.

    Raises:
        OmegaConfBaseException: if an interpolation cannot be resolved.
    """

    def __init__(
        self, cfg: DictConfig, choices: Mapping[str, Any], dora: DoraConfig, reference: "Composition | None" = None
    ) -> None:
        self.cfg, self.choices, self.reference = cfg, dict(choices), reference or self
        scan = _scan(cfg)
        self.missing = frozenset(scan.missing)
        self.comparable = cfg  # with a text for `???`, which cannot be compared
        if self.missing:
            self.comparable = copy.deepcopy(cfg)
            for key in self.missing:
                OmegaConf.update(self.comparable, key, _NOT_SET)
        self.resolved = plain_of(self.comparable, resolve=True)
        raw = plain_of(cfg, resolve=False)
        self._loose = [(path, value) for path, value in leaves_of(raw) if dora.is_excluded(dotted(path))]
        self._leaves = {key: path for key, path in scan.leaves.items() if is_plain(at(self.resolved, path))}
        self._aliases, self._watched = scan.aliases, scan.watched
        for target in list(self._aliases):
            if target not in self._leaves:  # a section, or nothing we may set
                self._watched.add(target)
        self._above = {key[:dot] for key in self._watched for dot in _dots(key)}
        ours, self._reference = dict(leaves_of(self.resolved)), dict(leaves_of((reference or self).resolved))
        self._is_opaque = scan.is_opaque or ours.keys() != self._reference.keys()
        self._always: dict[Path, Any] = {}  # what differs without overrides; NaN does from itself
        if not self._is_opaque:
            self._always = {path: value for path, value in ours.items() if differs(value, self._reference[path])}
            self._is_opaque = any(isinstance(value, list) and at(raw, p) != value for p, value in self._always.items())

    def change(self, overrides: Sequence[Override]) -> dict[str, Any] | None:
        """Values that overrides set, with those that follow by interpolation; None if it takes Hydra to tell."""
        if self._is_opaque:
            return None
        values: dict[str, Any] = {}
        for override in overrides:
            if override.type is not OverrideType.CHANGE or not _is_of_values(override):
                return None
            if override.key_or_group not in self._leaves:
                return None
            value = override.value()
            if not is_plain(value):
                return None
            values[override.key_or_group] = value
        pending = list(values)
        while pending:
            key = pending.pop()
            if key in self._above or key in self._watched or any(key[:dot] in self._watched for dot in _dots(key)):
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
            if differs(value, self._reference[path]):
                changed[path] = value
            else:
                changed.pop(path, None)
        return [(dotted(path), changed[path]) for path in sorted(changed)]

    def build(self, overrides: Sequence[Override]) -> DictConfig:
        """Return the configuration that Hydra would compose with these overrides of values."""
        cfg = copy.deepcopy(self.cfg)
        for override in overrides:
            OmegaConf.update(cfg, override.key_or_group, copy.deepcopy(override.value()), merge=True)
        return cfg

    def apply(self, overrides: Sequence[Override]) -> DictConfig | None:
        """Configuration with overrides laid over it by Hydra itself; None if they have a say in the composition.

        Raises:
            HydraException: if Hydra refuses them.
        """
        if not all(_is_of_values(override) for override in overrides):
            return None
        cfg = copy.deepcopy(self.cfg)
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)
        return cfg

    def frozen(self, values: Mapping[str, Any]) -> Plain:
        """Frozen form of the configuration with some values set; see `freeze_values`."""
        resolved = copy.deepcopy(self.resolved)
        for key, value in values.items():
            put(resolved, self._leaves[key], copy.deepcopy(value))
        return self.freeze_values(resolved)

    def freeze_values(self, resolved: Plain) -> Plain:
        """Frozen form of a resolved configuration, to be given to OmegaConf again.

        Keys that count for the signature are resolved. Those that do not stay as the presets have them, with their
        interpolations: each run gives its own, from its environment and its command line.
        """
        frozen: Plain = escaped(resolved)
        for path, value in self._loose:
            if isinstance(at(frozen, path[:-1]), dict):
                put(frozen, path, copy.deepcopy(value))
        return frozen


def plain_of(cfg: DictConfig, *, resolve: bool) -> Plain:
    """Configuration as nested plain containers."""
    container: Any = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(container, dict)
    return container


def _scan(cfg: DictConfig) -> _Scan:
    found = _Scan()
    _scan_section(cfg, (), found)
    return found


def _scan_section(section: DictConfig, path: Path, found: _Scan) -> None:
    if OmegaConf.get_type(section) is not dict or OmegaConf.is_readonly(section):
        found.is_opaque = True  # a structured config checks and converts what it is given
        return
    for key in section:
        if not isinstance(key, str):
            found.is_opaque = True
            return
        here = (*path, key)
        node: Any = section._get_node(key)
        if node._is_interpolation():
            _scan_reference(node._value(), here, found)
        elif isinstance(node, DictConfig) and not node._is_none():
            _scan_section(node, here, found)
            continue
        elif isinstance(node, ListConfig) and not node._is_none():
            _watch(OmegaConf.to_container(node), here, found)
        elif not isinstance(node, AnyNode | ListConfig):
            found.is_opaque = True
        elif OmegaConf.is_missing(section, key):
            found.missing.append(dotted(here))
        if not any(_SPECIAL.search(part) for part in here):
            found.leaves[dotted(here)] = here


def _scan_reference(text: Any, path: Path, found: _Scan) -> None:
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        _watch(text, path, found)
        return
    found.aliases.setdefault(_absolute(match[1], path), []).append(dotted(path))


def _watch(value: Any, path: Path, found: _Scan) -> None:
    """Note which keys the interpolations in a value depend on."""
    if isinstance(value, list | dict):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            _watch(item, (*path, str(key)), found)
        return
    if not isinstance(value, str):
        return
    before = ""
    while "${" in value and value != before:
        before = value
        found.watched.update(_absolute(match, path) for match in _REFERENCE.findall(value))
        value = _NO_KEYS.sub("", _REFERENCE.sub("", value))
    found.is_opaque |= "${" in value


def _absolute(reference: str, path: Path) -> str:
    name = reference.lstrip(".")
    levels = len(reference) - len(name)
    return name if levels == 0 else dotted((*path[: max(len(path) - levels, 0)], name))


def _is_of_values(override: Override) -> bool:
    is_hydra = override.key_or_group == "hydra" or override.is_hydra_override()
    return override.value_type is ValueType.ELEMENT and override.package is None and not is_hydra


def _dots(key: str) -> list[int]:
    return [index for index, letter in enumerate(key) if letter == "."]
