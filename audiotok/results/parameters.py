"""Parameters of an experiment: Hydra overrides parsed to values, and values of the saved configuration.

An override is read by Hydra's rules, not YAML 1.1's: `1e-5` is a number, `yes` and `010` are strings.
Configuration files are those Hydra leaves in `.hydra/` at the start of a run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

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
        key, separator, text = override.partition("=")
        removed = key.startswith("~")
        values[key.strip().lstrip("+~")] = None if removed or not separator else parse_value(text)
    return values


class SavedConfig:
    """What Hydra saved of one run: the chosen groups and the composed configuration (some 20 ms to read).

    Args:
        folder: folder of the experiment; its `.hydra` may be absent, before the first run.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self._config = self._read(folder / ".hydra" / "config.yaml")
        choices = _lookup(self._read(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices")
        self._choices: Mapping[str, Any] = choices if isinstance(choices, dict) else {}

    def get(self, key: str) -> Any:
        """Value of a dotted key, or of a configuration group; None where there is none.

        A value that is one plain `${other.key}` is followed; other interpolations stay as text.
        """
        if key in self._choices:  # first: the group `solver` may share its name with a key of the configuration
            return self._choices[key]
        value = _lookup(self._config, key)
        for _ in range(_MAX_REFERENCES):
            match = _REFERENCE.match(value) if isinstance(value, str) else None
            if match is None:
                break
            value = _lookup(self._config, match[1])
        return value

    def _read(self, path: Path) -> Any:
        try:
            return yaml.load(path.read_text(encoding="utf-8"), Loader=_HydraLoader)
        except FileNotFoundError:
            return None
        except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            self.problems.append(f"{path.name} cannot be read ({type(error).__name__})")
            return None


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
