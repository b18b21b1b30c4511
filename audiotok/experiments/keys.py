"""Overrides that name no key and no preset there is: the nearest names instead of Hydra's way to add the mistake.

Hydra reads `+losses.mdm=10` as a new key, which nothing reads, and so as another experiment with the old values. An
entry point that lists what may be added (`Additions`) has everything else refused.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException

from audiotok.config_text import Plain
from audiotok.errors import ConfigError
from audiotok.experiments.overrides import dotted, is_of_values, leaves_of
from audiotok.text import nearest_first

_SHOWN = 8
_GONE = object()


@dataclass(frozen=True)
class Additions:
    """Keys that overrides may add to those of the configuration.

    Args:
        free: names and patterns, such as `slurm.sbatch.*`.
        inherited: sections that may have any key of the section above them, such as `dataset.valid`.
    """

    free: Sequence[str] = ()
    inherited: Sequence[str] = ()

    def allow(self, key: str, cfg: Plain) -> bool:
        """Whether a key may be added to a configuration."""
        return self.name(key, cfg) or any(fnmatchcase(key, pattern) for pattern in self.free)

    def name(self, key: str, cfg: Plain) -> bool:
        """Whether a key that may be added is named here itself, not by a pattern: it needs no +."""
        section, _, name = key.rpartition(".")
        if section in self.inherited and _has(cfg, f"{section.rpartition('.')[0]}.{name}"):
            return True
        return key in self.free and isinstance(_walk(cfg, section)[0] if section else cfg, dict)

    def completed(self, argument: str, override: Override, cfg: Plain) -> str:
        """An override with the + that Hydra requires, where it sets a key that is named here."""
        if override.type is not OverrideType.CHANGE or not is_of_values(override) or "/" in override.key_or_group:
            return argument
        new = [key for key in keys_set(override.key_or_group, override.value(), cfg) if not _has(cfg, key)]
        return f"+{argument}" if new and all("." in key and self.name(key, cfg) for key in new) else argument


def check_keys(
    overrides: Sequence[Override], cfg: Plain, choices: Mapping[str, Any], additions: Additions | None
) -> None:
    """Refuse overrides of keys that do not exist and cannot be added.

    Args:
        overrides: as parsed; those of Hydra itself and of packages are left to Hydra.
        cfg: the configuration before them, resolved.
        choices: config groups with the option of each.
        additions: keys that `+` may add; None: any.

    Raises:
        ConfigError: with the nearest keys that there are.
    """
    for override in overrides:
        text, name = override.input_line or "", override.key_or_group
        if override.is_sweep_override():
            advice = f"one experiment takes one value, a list is {name}=[1, 2], and a grid file runs several"
            raise ConfigError(f"override {text!r} has several values; {advice}")
        if not is_of_values(override) or "/" in name:
            continue
        if override.is_add() and name in choices:
            raise ConfigError(f"override {text!r}: {name} is chosen already; leave out the +")
        for key in keys_set(name, override.value(), cfg):
            if _has(cfg, key):
                continue
            may_be_added = additions is None or additions.allow(key, cfg)
            if not (override.is_add() or override.is_force_add()):
                advice = f"; a new one is +{text}" if may_be_added and additions is not None else ""
                raise ConfigError(f"override {text!r}: there is no key {key}{advice}{_nearest(key, cfg, choices)}")
            if not may_be_added:
                raise ConfigError(f"override {text!r} adds a key that nothing reads{_nearest(key, cfg, choices)}")


def option_advice(
    error: ConfigCompositionException, argv: Sequence[str], options: Mapping[str, Collection[str]]
) -> str:
    """What to do about a preset that does not exist; "" if it is not one of the overrides that names it.

    Args:
        error: Hydra's.
        argv: the overrides.
        options: of each config group, those of groups within it too.
    """
    missing = getattr(error, "missing_cfg_file", "")
    for argument in argv:
        group, _, option = argument.lstrip("+").partition("=")
        if missing == f"{group}/{option}":
            known = nearest_first(option, options.get(group, ()))
            more = f" and {len(known) - _SHOWN} more" * (len(known) > _SHOWN)
            some = ", ".join(known[:_SHOWN]) or "none yet"
            return f"no {option!r} in config group {group}; choose one of: {some}{more}"
        if f"Could not override '{group}'" in str(error) and "/" in group:
            first, _, rest = group.partition("/")
            return f"override {argument!r}: {group} is not chosen by itself; write {first}={rest}/{option}"
    return ""


def keys_set(key: str, value: Any, cfg: Plain) -> Iterator[str]:
    """The keys that an override sets: those in a dictionary, where it is laid over a section."""
    if isinstance(value, dict) and isinstance(_walk(cfg, key)[0], dict):
        for name, item in value.items():
            yield from keys_set(f"{key}.{name}", item, cfg)
    else:
        yield key


def _has(cfg: Plain, key: str) -> bool:
    return _walk(cfg, key)[0] is not _GONE


def _walk(cfg: Plain, key: str) -> tuple[Any, str, Plain]:
    """The value of a key, and the innermost section on the way to it: its name and content."""
    name, section, value = "", cfg, cfg
    for part in key.split("."):
        if isinstance(value, list):
            break  # Hydra looks at indices itself
        if not isinstance(value, dict) or part not in value:
            return _GONE, name, section
        value = value[part]
        if isinstance(value, dict) and value:
            name, section = f"{name}.{part}".lstrip("."), value
    return value, name, section


def _nearest(key: str, cfg: Plain, choices: Mapping[str, Any]) -> str:
    """Advice: keys of that name elsewhere and those spelt alike, else all of the section."""
    known = [dotted(path) for path, _ in leaves_of(cfg)]
    known += [name for name, value in cfg.items() if isinstance(value, dict)] + list(choices)
    leaf = key.rpartition(".")[2]
    found = [name for name in known if name.rpartition(".")[2] == leaf]
    found = list(dict.fromkeys([*found, *difflib.get_close_matches(key, known, n=3, cutoff=0.7)]))
    if found:
        return f"; nearest: {', '.join(found[:_SHOWN])}"
    if cfg.get("solver", "") is None:
        return "; most keys come with a preset, such as solver=compression/demo"
    _, name, section = _walk(cfg, key)
    names = nearest_first(leaf, map(str, section))
    return f"; {name or 'the configuration'} has: {', '.join(names[:_SHOWN])}" + ", …" * (len(names) > _SHOWN)
