"""What is found in a composed configuration: where values stand, and what depends on what."""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

from audiotok.experiments.plain import Path, dotted

_REFERENCE = re.compile(r"\$\{\s*(\.*[A-Za-z_$][\w$-]*(?:\.[\w$-]+)*)\s*\}")  # ${a.b} or ${..b}
_NO_KEYS = re.compile(r"\$\{\s*oc\.(?:env|decode)\s*:[^${}]*\}")  # resolvers that read no key of the configuration
_SPECIAL = re.compile(r"[.\[\]]")  # in a key: a dotted path cannot name it


@dataclass
class Scan:
    """What `scan` has found in a composed configuration."""

    leaves: dict[str, Path] = field(default_factory=dict)  # keys that may be set here
    aliases: dict[str, list[str]] = field(default_factory=dict)  # key → keys that are just ${key}
    watched: set[str] = field(default_factory=set)  # keys that something more intricate depends on
    missing: list[str] = field(default_factory=list)
    is_opaque: bool = False  # something in it is beyond these rules


def scan(cfg: DictConfig) -> Scan:
    """Go through all keys of a composed configuration."""
    found = Scan()
    _scan_section(cfg, (), found)
    return found


def _scan_section(section: DictConfig, path: Path, found: Scan) -> None:
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


def _scan_reference(text: Any, path: Path, found: Scan) -> None:
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        _watch(text, path, found)
        return
    found.aliases.setdefault(_absolute(match[1], path), []).append(dotted(path))


def _watch(value: Any, path: Path, found: Scan) -> None:
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
