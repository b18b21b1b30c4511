"""Metrics that a user declares: in the table `[tool.audiotok.metrics]` of the project's pyproject.toml, or by option.

    [tool.audiotok.metrics]
    brightness = "higher"
    roughness = { direction = "near_zero", unit = "dB", description = "of whole clips", depends_on = ["rough.*"] }

The file is read as data; nothing of it is run.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from audiotok.errors import ResultsError
from audiotok.results.metrics import Direction, Metric, declare, known_metric

_FILE = "pyproject.toml"
_KEYS = ("direction", "unit", "description", "depends_on")
_DIRECTIONS = ", ".join(get_args(Direction))


def declare_project(folder: Path | None = None) -> None:
    """Declare the metrics of the nearest pyproject.toml of a folder and its parents, in place of those before.

    Args:
        folder: default the current one.

    Raises:
        ResultsError: if the file cannot be read, or declares what is no metric.
    """
    here = (folder or Path.cwd()).absolute()
    path = next((parent / _FILE for parent in (here, *here.parents) if (parent / _FILE).is_file()), None)
    found: Any = {}
    if path is not None:
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"cannot read {path}, whose [tool.audiotok.metrics] declares metrics: {error}."
            ) from error
    for key in ("tool", "audiotok", "metrics"):
        found = found.get(key, {}) if isinstance(found, dict) else found
    where = f"{path}, [tool.audiotok.metrics]"
    if not isinstance(found, dict):
        raise ResultsError(f"{where}: a table expected, such as pesq = 'higher'.")
    declare({name: _metric(name, value, where) for name, value in found.items()}, project=True)


def declare_options(texts: Sequence[str]) -> None:
    """Declare metrics given as NAME=DIRECTION, before those of the project and in place of earlier ones.

    Raises:
        ResultsError: if one has not this form.
    """
    found = {}
    for text in texts:
        name, _, direction = text.partition("=")
        if not name.strip() or direction.strip() not in get_args(Direction):
            raise ResultsError(f"--direction {text}: NAME=DIRECTION expected, the direction one of: {_DIRECTIONS}.")
        found[name.strip()] = _metric(name.strip(), direction.strip(), "--direction")
    declare(found, project=False)


def _metric(name: str, value: Any, where: str) -> Metric:
    """A metric from its direction, or its table; what is not given stays as it was known."""
    table: Mapping[str, Any] = value if isinstance(value, dict) else {"direction": value}
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        raise ResultsError(f"{where}: {name} has {', '.join(unknown)}; allowed are: {', '.join(_KEYS)}.")
    if table.get("direction") not in get_args(Direction):
        raise ResultsError(f"{where}: {name} has the direction {table.get('direction')!r}, not one of: {_DIRECTIONS}.")
    depends_on = table.get("depends_on", ())
    texts = [table.get("unit", ""), table.get("description", "")]
    if not isinstance(depends_on, list | tuple) or not all(isinstance(text, str) for text in (*texts, *depends_on)):
        raise ResultsError(f"{where}: {name}: unit and description are texts, depends_on is a list of texts.")
    before = known_metric(name if "." in name else f".{name}") or Metric("neutral", "", "")
    given: dict[str, Any] = {key: tuple(item) if key == "depends_on" else item for key, item in table.items()}
    return before._replace(**given)
