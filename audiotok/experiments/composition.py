"""One choice of config groups, composed by Hydra once; overrides of single values are then applied to plain containers.

Source: the rules are those of `dora.hydra.HydraMain` and of Hydra's config loader. What cannot surely be done the same
way here is left to them: `Composition.change` then returns None.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from dora.conf import DoraConfig
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import DictConfig, OmegaConf

from audiotok.experiments.plain import Path, Plain, at, differs, dotted, escaped, is_plain, leaves_of, put, with_values
from audiotok.experiments.scan import scan

_NOT_SET = "??? (not set)"  # stands in a base for `???`; no override gives it by chance


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
        found = scan(cfg)
        self.missing = frozenset(found.missing)
        self.comparable = cfg  # with a text for `???`, which cannot be compared
        if self.missing:
            self.comparable = copy.deepcopy(cfg)
            for key in self.missing:
                OmegaConf.update(self.comparable, key, _NOT_SET)
        self.resolved = plain_of(self.comparable, resolve=True)
        raw = plain_of(cfg, resolve=False)
        self._loose = {path: value for path, value in leaves_of(raw) if dora.is_excluded(dotted(path))}
        self._leaves = {key: path for key, path in found.leaves.items() if is_plain(at(self.resolved, path))}
        self._aliases, self._watched = found.aliases, found.watched
        for target in list(self._aliases):
            if target not in self._leaves:  # a section, or nothing we may set
                self._watched.add(target)
        self._above = {key[:dot] for key in self._watched for dot in _dots(key)}
        ours, self._reference = dict(leaves_of(self.resolved)), dict(leaves_of((reference or self).resolved))
        self._is_opaque = found.is_opaque or ours.keys() != self._reference.keys()
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
        """Frozen form of the configuration with some values set; see `freeze_values`.

        It shares what is not changed with the other experiments of this composition: leave it as it is.
        """
        counted = {self._leaves[key]: value for key, value in values.items() if self._leaves[key] not in self._loose}
        return with_values(self._frozen, counted)

    @cached_property
    def _frozen(self) -> Plain:
        return self.freeze_values(self.resolved)

    def freeze_values(self, resolved: Plain) -> Plain:
        """Frozen form of a resolved configuration, to be given to OmegaConf again.

        Keys that count for the signature are resolved. Those that do not stay as the presets have them, with their
        interpolations: each run gives its own, from its environment and its command line.
        """
        frozen: Plain = escaped(resolved)
        for path, value in self._loose.items():
            if isinstance(at(frozen, path[:-1]), dict):
                put(frozen, path, copy.deepcopy(value))
        return frozen


def plain_of(cfg: DictConfig, *, resolve: bool) -> Plain:
    """Configuration as nested plain containers."""
    container: Any = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(container, dict)
    return container


def _is_of_values(override: Override) -> bool:
    is_hydra = override.key_or_group == "hydra" or override.is_hydra_override()
    return override.value_type is ValueType.ELEMENT and override.package is None and not is_hydra


def _dots(key: str) -> list[int]:
    return [index for index, letter in enumerate(key) if letter == "."]
