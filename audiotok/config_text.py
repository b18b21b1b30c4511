r"""Configurations in files: what of them is saved as a reference rather than a value, and how files of others are read.

A text that reads the environment (`${oc.env:NAME}`), itself or through a key that it refers to, is saved as it stands
in the YAML files: what NAME holds may be a secret. Variables of audiotok itself, AUDIOTOK_…, are saved as values. The
sections `slurm` and `dora` are those of a machine and are never saved. In a file from elsewhere, references read keys
of that very file and nothing else.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from audiotok.files import check_yaml

LOCAL_SECTIONS = ("slurm", "dora")  # of a machine, not of training

Path = tuple[str, ...]
Plain = dict[str, Any]  # nested dicts, whose values are scalars and lists

_ESCAPED = re.compile(r"(\\*)\$\{")
REFERENCE = re.compile(r"\$\{\s*(\.*[A-Za-z_$][\w$-]*(?:\.[\w$-]+)*)\s*\}")  # ${a.b} or ${..b}
_OURS = re.compile(r"\$\{\s*oc\.env\s*:\s*AUDIOTOK_\w+\s*(?:,[^${}]*)?\}")
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:|\$\{[^:{}]*\0[^:{}]*:")  # or a resolver whose name is put together
_MAX_TEXT, _MAX_DEPTH, _MAX_STEPS = 1 << 20, 50, 20  # OmegaConf calls itself several times a level


def escaped(value: Any) -> Any:
    """Copy in which a text with `${` is escaped, so that OmegaConf reads it as that text."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return _ESCAPED.sub(lambda match: match[1] * 2 + r"\${", value)
    return value


def reads_environment(text: str) -> bool:
    """Whether an interpolation in a text reads a variable of the environment, but those named AUDIOTOK_…, ours."""
    before = ""
    while text != before:  # from the innermost out
        before, text = text, _OURS.sub("", REFERENCE.sub("\0", text))
    return _ENVIRONMENT.search(text) is not None


def calls_resolver(text: str) -> bool:
    """Whether a text has an interpolation other than `${a.b}`."""
    before = ""
    while text != before:
        before, text = text, REFERENCE.sub("", text)
    return "${" in text


def unresolved(raw: Mapping[str, Any]) -> list[Path]:
    """Paths of the values that read the environment, by their own text or through a key that they refer to."""
    texts = {path: found for path, value in _values(raw) if (found := [*_texts(value)])}
    tainted = {path for path, found in texts.items() if any(map(reads_environment, found))}
    more = tainted
    while more:
        names = {path[:depth] for path in tainted for depth in range(1, len(path) + 1)}
        more = {path for path, found in texts.items() if path not in tainted and _refers(path, found, tainted, names)}
        tainted |= more
    return sorted(tainted)


def keep_unresolved(values: Plain, raw: Mapping[str, Any]) -> None:
    """Put the text of `raw` into `values`, in place, where it reads the environment.

    Numbers and flags stay: they are no secrets, and the weights of a network are of no use without its sizes.
    """
    for path in unresolved(raw):
        section = value_at(values, path[:-1])
        if isinstance(section, dict) and path[-1] in section and not _is_number(section[path[-1]]):
            section[path[-1]] = value_at(raw, path)


def saved_text(cfg: DictConfig, raw: DictConfig) -> str:
    """YAML text of a resolved configuration as files may hold it.

    Args:
        cfg: the resolved configuration.
        raw: the same before it was resolved; what reads the environment, and paths of datasets, stand as there.
    """
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    source: Any = OmegaConf.to_container(raw)
    values: Plain = escaped({key: value for key, value in resolved.items() if key not in LOCAL_SECTIONS})
    keep_unresolved(values, source)
    paths = source.get("datasource")
    if isinstance(paths, dict) and isinstance(values.get("datasource"), dict):
        texts = {key: path for key, path in paths.items() if isinstance(path, str) and "${" not in path}
        values["datasource"].update(texts)  # as given: training has made them absolute
    return OmegaConf.to_yaml(OmegaConf.create(values))


def read_text(text: str) -> DictConfig:
    """Configuration of a text from elsewhere: `${a.b}` is the value at a.b, every other interpolation is text.

    Raises:
        ValueError: naming what is wrong, if it is no YAML of a mapping, too long, too deep, or has aliases.
    """
    values = parse_yaml(text)

    def resolved(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [resolved(item, (*path, str(index))) for index, item in enumerate(value)]
        for _ in range(_MAX_STEPS):
            match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if match is None:
                break
            path = absolute(match[1], path)
            found = value_at(values, path)
            if isinstance(found, dict | list):  # an alias of a section: only lists of plain values
                plain = isinstance(found, list) and not any(isinstance(item, dict | list) for item in found)
                return escaped(found) if plain else escaped(value)
            value = found
        return value if isinstance(value, str) and _is_escaped(value) else escaped(value)

    cfg = OmegaConf.create(resolved(values, ()))
    assert isinstance(cfg, DictConfig)
    return cfg


def parse_yaml(text: str) -> Plain:
    """YAML of a mapping, as OmegaConf reads it, with interpolations as they stand; ValueError as for `read_text`."""
    if len(text) > _MAX_TEXT:
        raise ValueError(f"a configuration of {len(text)} characters; at most {_MAX_TEXT} are read")
    try:
        check_yaml(text, _MAX_DEPTH)
        values = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # of yaml and OmegaConf, and of Python for numbers such as 0x; all about the text
        raise ValueError(f"its configuration cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict):
        raise ValueError("its configuration is no mapping")
    return {str(key): value for key, value in values.items()}


def inert(value: Any, trusted: Callable[[str], bool]) -> Any:
    """Copy in which a text that calls a resolver is escaped, unless it is trusted."""
    if isinstance(value, dict):
        return {key: inert(item, trusted) for key, item in value.items()}
    if isinstance(value, list):
        return [inert(item, trusted) for item in value]
    if isinstance(value, str) and "${" in value and not _is_escaped(value):
        return escaped(value) if calls_resolver(value) and not trusted(value) else value
    return value


def absolute(reference: str, path: Path) -> Path:
    """Path that a reference such as `a.b` or `..b` means for the value at `path`."""
    name = reference.lstrip(".")
    levels = len(reference) - len(name)
    return tuple(name.split(".")) if levels == 0 else (*path[: max(len(path) - levels, 0)], *name.split("."))


def value_at(section: Any, path: Path) -> Any:
    """Value at a path, None if there is none."""
    for key in path:
        if not isinstance(section, dict):
            return None
        section = section.get(key)
    return section


def _is_number(value: Any) -> bool:
    """Whether a value is a number or a flag, or a list of these."""
    return isinstance(value, int | float) or (isinstance(value, list) and all(map(_is_number, value)))


def _is_escaped(text: str) -> bool:
    r"""Whether every `${` of a text is one of text."""
    return all(len(match[1]) % 2 for match in _ESCAPED.finditer(text))


def _values(section: Mapping[str, Any], path: Path = ()) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    for key, value in section.items():
        here = (*path, str(key))
        found += _values(value, here) if isinstance(value, Mapping) else [(here, value)]
    return found


def _texts(value: Any) -> list[str]:
    """Interpolations in a value, at any depth of its lists."""
    if isinstance(value, Mapping):
        value = list(value.values())  # of a section within a list
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) and "${" in value and not _is_escaped(value) else []


def _refers(path: Path, texts: list[str], tainted: set[Path], names: set[Path]) -> bool:
    """Whether one of the texts at a path refers to what is tainted: by name, by a section above it, or through it."""
    for text in texts:
        if re.search(r"\$\{[^:{}]*\$\{", text):  # a reference that is put together may mean anything
            return True
        places = (path, (*path, "0"))  # relative references of items of a list start from the list
        for found in (absolute(match, place) for match in REFERENCE.findall(text) for place in places):
            if found in names or any(found[:depth] in tainted for depth in range(1, len(found))):
                return True
    return False
