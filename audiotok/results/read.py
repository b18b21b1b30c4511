"""Files of an experiment to Python values: JSON that may be damaged, Hydra overrides, `frozen.json`, `history.json`.

Nothing here raises for a damaged file: what cannot be read is left out, and a line about it goes to `problems`.
"""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from audiotok import files
from audiotok.files import MAX_DIGITS, UnreadableError

FROZEN_FILE = "frozen.json"
STAGES = ("train", "valid", "evaluate", "generate")

History = list[dict[str, dict[str, float]]]
"""One {stage: {metric: number}} per epoch, epoch 1 first. A metric may be in some epochs only: evaluation is rare."""

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster
_NULL = re.compile(r"null\Z", re.IGNORECASE)
_BOOL = re.compile(r"(?:true|false)\Z", re.IGNORECASE)
_INT = re.compile(rf"[+-]?(?:0|[1-9][0-9_]{{0,{MAX_DIGITS - 1}}})\Z")  # a longer one stays text, as in JSON
_FLOAT = re.compile(
    r"[+-]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:e[+-]?[0-9]+)?|[0-9][0-9_]*\.(?:e[+-]?[0-9]+)?"
    r"|[0-9][0-9_]*e[+-]?[0-9]+|inf|nan)\Z",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}\Z")
_MAX_REFERENCES = 10
_MAX_METRICS, _MAX_VALUES = 50_000, 2**24  # of one experiment; values of a stage, with those not measured
_MAX_NAMED = 5  # problems of one file


def read_json_file(path: Path, kind: type, problems: list[str]) -> tuple[Any, bytes]:
    """Read a JSON file that should hold a list or a dict: content and text; None if missing or damaged, see above."""
    raw = b""
    try:
        raw = files.read_bytes(path)
        return files.content_of(path, raw, kind, parse_json), raw
    except FileNotFoundError:
        pass
    except UnreadableError as error:
        problems.append(encodable(f"{path.name} cannot be read: {error.reason}"))
    return None, raw


def parse_json(raw: bytes) -> Any:
    """Parse JSON, without lone surrogates.

    Raises:
        ValueError: if it is not JSON, or nested too deep; see `files.parse_json`.
    """
    content = files.parse_json_fast(raw)
    return _without_surrogates(content) if b"\\ud" in raw.lower() else content


def _without_surrogates(content: Any) -> Any:
    if isinstance(content, dict):
        return {encodable(key): _without_surrogates(value) for key, value in content.items()}
    if isinstance(content, list):
        return list(map(_without_surrogates, content))
    return encodable(content) if type(content) is str else content


def encodable(text: str) -> str:
    """Text without the lone surrogates that JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _HydraLoader(_BaseLoader):  # type: ignore[misc]
    """Safe YAML loader whose plain scalars follow Hydra's grammar: `1e-5` is a number, `yes` and `010` are strings."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  filled below, by PyYAML's own means


for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _HydraLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


def parse_value(text: str) -> Any:
    """Parse the right-hand side of an override, such as `3`, `"a b"`, `[0.1, 1]`; the text itself if it cannot be."""
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return _parse_scalar(text)
    try:  # JSON first: it joins the surrogate pairs that json.dumps writes, which YAML would not
        return files.parse_json(text)
    except ValueError:
        pass
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def parse_yaml(text: str) -> Any:
    """Parse YAML as Hydra has it.

    Raises:
        ValueError: if it is not YAML, has aliases, or is nested too deep; see `files.check_yaml`.
    """
    try:
        files.check_yaml(text)
        return yaml.load(text, Loader=_HydraLoader)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"it is not YAML ({type(error).__name__})") from error


def parse_overrides(argv: Iterable[str]) -> dict[str, Any]:
    """Parse Hydra overrides; the last one of a key wins, as in Hydra, and `~key` gives None.

    Returns:
        Values by key without `+`, in the order of the first appearance of each key.
    """
    values: dict[str, Any] = {}
    for override in argv:
        key, value = _parse_override(override)
        values[key] = copy.deepcopy(value) if isinstance(value, list | dict) else value
    return values


@lru_cache(maxsize=2**14)
def _parse_override(override: str) -> tuple[str, Any]:
    """Key and value; experiments of a grid share most of their overrides."""
    key, separator, text = override.partition("=")
    removed = key.startswith("~")
    return key.strip().lstrip("+~"), None if removed or not separator else parse_value(text)


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


class SavedConfig:
    """Configuration of an experiment as submitted (`frozen.json`, which may be missing), read on first use."""

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self._folder = folder

    def get(self, key: str) -> Any:
        """Value of a dotted key, or of a configuration group; None where there is none.

        A value that is one plain `${other.key}` is followed; other interpolations stay as text.
        """
        value = _lookup(self._config, key)
        # A group has no dots. Where there is a key of its name too, such as `solver`, it is a section or a name.
        choices = self._frozen.get("choices")
        if isinstance(choices, dict) and key in choices and "." not in key and isinstance(value, str | dict | None):
            return choices[key]
        for _ in range(_MAX_REFERENCES):
            match = _REFERENCE.match(value) if isinstance(value, str) else None
            if match is None:
                break
            value = _lookup(self._config, match[1])
        return value

    @cached_property
    def _frozen(self) -> dict[str, Any]:
        return read_json_file(self._folder / FROZEN_FILE, dict, self.problems)[0] or {}

    @cached_property
    def _config(self) -> Any:
        text = self._frozen.get("cfg_yaml")  # instead of `cfg`, where JSON cannot hold it
        if not isinstance(text, str):
            return self._frozen.get("cfg")
        try:
            return parse_yaml(text)
        except ValueError as error:
            self.problems.append(encodable(f"{FROZEN_FILE} cannot be read: {error}"))
            return None


def _lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(part)
    return config


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


class StageTable(NamedTuple):
    """What one stage of one experiment measured."""

    stage: str
    names: tuple[str, ...]  # metrics, in the order they appeared
    epochs: NDArray[np.int32]  # numbers (from 1) of the epochs that measured anything [N]
    values: NDArray[np.float64]  # [N, metrics]; NaN where not measured
    # Last value that was measured, which may be NaN; epochs of the lowest and of the highest finite value, the first
    # among equals, 0 without one [metrics, 3].
    summary: NDArray[np.float64]


def read_history(path: Path, problems: list[str]) -> History:
    """Read `history.json`; without the file, no epoch is done yet.

    An epoch or a metric that is not what it should be is left out, with one line for each kind of damage; a null
    counts as NaN.
    """
    return _clean(read_json_file(path, list, problems)[0] or [], path.name, problems)


def read_tables(path: Path, problems: list[str]) -> tuple[int, list[StageTable]]:
    """Read `history.json` by columns; see `read_history`.

    Returns:
        Number of epochs in the file, and a table for each stage that measured anything, in the order they run.
    """
    epochs, raw = read_json_file(path, list, problems)
    if not epochs:
        return 0, []
    history = epochs if _is_clean(epochs) else _clean(epochs, path.name, problems)
    stages = sorted(dict.fromkeys(chain.from_iterable(history)), key=stage_rank)
    colons = raw.count(b":")
    if colons > _MAX_METRICS or colons * len(history) > _MAX_VALUES:  # else there cannot be too many
        names = [len(set().union(*(epoch[stage] for epoch in history if stage in epoch))) for stage in stages]
        if sum(names) > _MAX_METRICS or max(names, default=0) * len(history) > _MAX_VALUES:
            found = f"{sum(names)} metrics in {len(history)} epochs"
            problems.append(f"{path.name} cannot be read: {found}, more than {_MAX_METRICS} or {_MAX_VALUES} values")
            return 0, []
    tables = [table for stage in stages if (table := _stage_table(history, stage)) is not None]
    # Colons of the text against keys of the result: cheaper than to look for repeated keys in every file.
    if colons != sum(map(len, chain(history, *map(dict.values, history)))):
        twice = [f"{name} stands twice in an epoch; the last one counts" for name in _repeated(raw)]
        problems += _named(path.name, twice)
    return len(history), tables


def stage_rank(stage: str) -> int:
    """Stages in the order they run; unknown ones last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _is_clean(epochs: list[Any]) -> bool:
    """True if all is as the trainer writes it: objects of objects of floats."""
    if set(map(type, epochs)) != {dict}:
        return False
    stages = list(chain.from_iterable(map(dict.values, epochs)))
    if not set(map(type, stages)) <= {dict}:
        return False
    return set(map(type, chain.from_iterable(map(dict.values, stages)))) <= {float}


def _clean(epochs: list[Any], file: str, problems: list[str]) -> History:
    found: dict[str, None] = {}
    history: History = []
    for epoch in epochs:
        stages: dict[str, dict[str, float]] = {}
        if not isinstance(epoch, dict):
            found["an epoch that is not an object"] = None
            epoch = {}
        for stage, metrics in epoch.items():
            if not isinstance(metrics, dict):
                found[f"stage {stage} is not an object"] = None
            else:
                stages[stage] = _numbers(stage, metrics, found)
        history.append(stages)
    problems += _named(file, found)
    return history


def _named(file: str, found: Collection[str]) -> list[str]:
    """A line for each of the first problems of a file, and one for the rest."""
    more = len(found) - _MAX_NAMED
    lines = [f"{file}: {problem}" for problem in islice(found, _MAX_NAMED)]
    return lines + [f"{file}: and {more} more like these"] * (more > 0)


def _numbers(stage: str, metrics: dict[str, object], found: dict[str, None]) -> dict[str, float]:
    numbers = {}
    for name, value in metrics.items():
        try:
            if value is not None and not isinstance(value, int | float):
                raise TypeError
            numbers[name] = math.nan if value is None else float(value)
        except (TypeError, OverflowError):
            found[f"{stage}.{name} is not a number"] = None
    return numbers


def _stage_table(history: History, stage: str) -> StageTable | None:
    """Columns of a stage, in one pass where all its epochs have the same metrics, as they mostly do."""
    found = {number: stages[stage] for number, stages in enumerate(history, 1) if stages.get(stage)}
    if not found:
        return None
    rows, epochs = list(found.values()), np.array(list(found), np.int32)
    orders = dict.fromkeys(map(tuple, rows))
    names = tuple(dict.fromkeys(chain.from_iterable(orders)))
    shape = (len(rows), len(names))
    if len(orders) == 1:
        flat = chain.from_iterable(map(dict.values, rows))
        values = np.fromiter(flat, np.float64, count=shape[0] * shape[1]).reshape(shape)
        last = values[-1]
    else:
        values = np.array([[row.get(name, math.nan) for name in names] for row in rows], np.float64)
        latest = {name: value for row in rows for name, value in row.items()}
        last = np.array([latest[name] for name in names], np.float64)
    finite = np.isfinite(values)
    lowest = epochs[np.where(finite, values, np.inf).argmin(axis=0)]
    highest = epochs[np.where(finite, values, -np.inf).argmax(axis=0)]
    some = finite.any(axis=0)
    return StageTable(stage, names, epochs, values, np.stack([last, lowest * some, highest * some], axis=1))


def _repeated(raw: bytes) -> list[str]:
    """Keys that stand twice in one object; JSON allows it, and parsers silently keep the last one."""
    found: dict[str, None] = {}

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            found.update(dict.fromkeys(name for name, count in Counter(names).items() if count > 1))
        return content

    json.loads(raw, object_pairs_hook=collect)
    return [encodable(name) for name in found]
