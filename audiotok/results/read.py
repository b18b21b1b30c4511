"""Parameters of an experiment: Hydra overrides parsed to values, and values of the saved configuration.

An override is read by Hydra's rules, not YAML 1.1's: `1e-5` is a number, `yes` and `010` are strings.
The configuration is `frozen.json`, which is written at submission; before there was one, it is what Hydra leaves in
`.hydra/` at the start of a run.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from audiotok.results.files import encodable, read_json_file

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster
_NULL = re.compile(r"null\Z", re.IGNORECASE)
_BOOL = re.compile(r"(?:true|false)\Z", re.IGNORECASE)
_INT = re.compile(r"[+-]?(?:0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(
    r"[+-]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:e[+-]?[0-9]+)?|[0-9][0-9_]*\.(?:e[+-]?[0-9]+)?"
    r"|[0-9][0-9_]*e[+-]?[0-9]+|inf|nan)\Z",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}\Z")
_MAX_REFERENCES = 10


class _HydraLoader(_BaseLoader):  # type: ignore[misc]
    """Safe YAML loader whose plain scalars follow Hydra's grammar."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  filled below, by PyYAML's own means


for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _HydraLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


def parse_value(text: str) -> Any:
    """Parse the right-hand side of an override.

    Args:
        text: what follows `=`, e.g. `3`, `1e-4`, `null`, `"a b"`, `[0.1, 1]`, `{a: 1}`.

    Returns:
        None, a bool, a number, a string, a list or a dict; the text itself where it cannot be parsed.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return _parse_scalar(text)
    try:  # JSON first: it joins the surrogate pairs that json.dumps writes, which YAML would not
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, Loader=_HydraLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def parse_overrides(argv: Iterable[str]) -> dict[str, Any]:
    """Parse Hydra overrides; the last one of a key wins, as in Hydra.

    Args:
        argv: overrides such as `seed=3`, `+new=1`, `++force=2`; `~key` removes a key and gives None.

    Returns:
        Values by key, in the order of the first appearance of each key.
    """
    values: dict[str, Any] = {}
    for override in argv:
        key, value = _parse_override(override)
        values[key] = copy.deepcopy(value) if isinstance(value, list | dict) else value
    return values


class SavedConfig:
    """Configuration of one experiment: the composed values and the chosen groups, read when first asked for.

    Args:
        folder: folder of the experiment; it may hold neither file, before the first run.
    """

    FILES = ("frozen.json", ".hydra/config.yaml", ".hydra/hydra.yaml")

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self._folder = folder

    def get(self, key: str) -> Any:
        """Value of a dotted key, or of a configuration group; None where there is none.

        A value that is one plain `${other.key}` is followed; other interpolations stay as text.
        """
        value = _lookup(self._config, key)
        if _may_be_group(key, value) and key in self._choices:  # `solver` is a group and a key of the configuration
            return self._choices[key]
        for _ in range(_MAX_REFERENCES):
            match = _REFERENCE.match(value) if isinstance(value, str) else None
            if match is None:
                break
            value = _lookup(self._config, match[1])
        return value

    @cached_property
    def _frozen(self) -> dict[str, Any]:
        return read_json_file(self._folder / self.FILES[0], dict, self.problems) or {}

    @cached_property
    def _config(self) -> Any:
        frozen, text = self._frozen.get("cfg"), self._frozen.get("cfg_yaml")
        if isinstance(frozen, dict):
            return frozen
        return self._parse_yaml(text, self.FILES[0]) if isinstance(text, str) else self._read_yaml(self.FILES[1])

    @cached_property
    def _choices(self) -> Mapping[str, Any]:
        choices = self._frozen.get("choices")
        if not isinstance(choices, dict):
            choices = _lookup(self._read_yaml(self.FILES[2]), "hydra.runtime.choices")
        return choices if isinstance(choices, dict) else {}

    def _read_yaml(self, name: str) -> Any:
        try:
            return self._parse_yaml((self._folder / name).read_text(encoding="utf-8"), name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._unreadable(name, error)

    def _parse_yaml(self, text: str, name: str) -> Any:
        try:
            return yaml.load(text, Loader=_HydraLoader)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            return self._unreadable(name, error)

    def _unreadable(self, name: str, error: Exception) -> None:
        self.problems.append(f"{Path(name).name} cannot be read ({type(error).__name__})")


def hashable(value: Any) -> Any:
    """Lists to tuples and dicts to JSON, so that rows can be grouped by any parameter."""
    if isinstance(value, list | tuple):
        return tuple(map(hashable, value))
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    if isinstance(value, str):
        return encodable(value)
    return value if value is None or isinstance(value, bool | int | float) else encodable(str(value))


@lru_cache(maxsize=2**14)
def natural(value: Any) -> tuple[int, Any]:
    """Sort key over mixed values: none, then numbers, texts (n2 before n10), lists element by element."""
    if value is None or value != value:
        return 0, 0
    if isinstance(value, bool | int | float):
        return 1, value
    if isinstance(value, tuple):
        return 3, tuple(map(natural, value))
    parts = re.split(r"0*([0-9]+)", str(value))  # texts and digits take turns; longer digits are larger
    return 2, [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


@lru_cache(maxsize=2**14)
def _parse_override(override: str) -> tuple[str, Any]:
    """Key and value; experiments of a grid share most of their overrides."""
    key, separator, text = override.partition("=")
    removed = key.startswith("~")
    return key.strip().lstrip("+~"), None if removed or not separator else parse_value(text)


def _may_be_group(key: str, value: Any) -> bool:
    """Groups have no dots, and where the configuration has a key of that name, it is a section or a name."""
    return "." not in key and (value is None or isinstance(value, str | dict))


def _parse_scalar(text: str) -> bool | int | float | str | None:
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    try:
        if _INT.match(text):
            return int(text)
        if _FLOAT.match(text):
            return float(text)
    except ValueError:  # a stray underscore, or more digits than Python converts
        pass
    return text


def _lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(part)
    return config
