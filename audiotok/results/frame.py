"""Records to pandas: one row per experiment (`runs`) and one per experiment, epoch and stage (`history`)."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results.files import encodable
from audiotok.results.history import best_epoch, history_frame, last_metrics, metric_rank
from audiotok.results.metrics import metric_direction
from audiotok.results.parameters import SavedConfig
from audiotok.results.xps import (
    Experiment,
    experiment_folder,
    grid_signatures,
    list_signatures,
    output_root,
    read_experiment,
    require_signatures,
)

BEST_BY = "valid.msspec"
_FACTS = ("sig", "state", "reason", "epochs", "last_epoch", "best_epoch", "duration", "host", "problems")


@dataclass(frozen=True)
class Experiments:
    """Experiments as tables.

    Attributes:
        name: name of the grid, or what was asked for.
        root: results folder.
        runs: one row per experiment, sorted by its parameters; columns in docs/results.md.
        history: sig, epoch (from 1), stage, then one float64 column per metric; NaN where not measured.
        parameters: columns of `runs` that are parameters.
        records: what the rows were made of, in the same order.
    """

    name: str
    root: Path
    runs: pd.DataFrame
    history: pd.DataFrame
    parameters: tuple[str, ...]
    records: tuple[Experiment, ...]

    @property
    def swept(self) -> list[str]:
        """Parameters that differ between the experiments; all of them when there is one experiment."""
        if len(self.runs) == 1:
            return list(self.parameters)
        return [name for name in self.parameters if self.runs[name].map(repr).nunique() > 1]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.runs["state"].value_counts().items())
        return f"{self.name}: {len(self.runs)} experiments ({counts or 'none'})"


def load_grid(name: str, root: str | Path | None = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load a grid.

    Args:
        name: name of the grid as given to `dora grid`, e.g. `compression.encodec_mmd_32khz`.
        root: results folder; default $AUDIOTOK_OUTPUT_DIR, else ./outputs.
        best_by: `stage.metric` that chooses `best_epoch`; its direction is the one declared in METRICS.

    Raises:
        ResultsError: if the folder or the grid does not exist, or `best_by` has no better direction.
    """
    folders = [experiment_folder(root, sig, name) for sig in grid_signatures(root, name)]
    return _load(name, output_root(root), folders, best_by)


def load_sigs(sigs: Iterable[str], root: str | Path | None = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load experiments by signature, from any grid; see `load_grid`."""
    folders = [experiment_folder(root, sig) for sig in require_signatures(root, sigs)]
    return _load("signatures", output_root(root), folders, best_by)


def load_all(root: str | Path | None = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load every experiment of a results folder; see `load_grid`."""
    return load_sigs(list_signatures(root), root, best_by=best_by)


def _load(name: str, root: Path, folders: Sequence[Path], best_by: str) -> Experiments:
    metric_direction(best_by)  # refuse it before reading a thousand files
    records = [read_experiment(folder) for folder in folders]
    keys = _parameter_keys(records)
    rows = [(_parameter_values(record, keys), record) for record in records]
    rows.sort(key=lambda row: ([_natural(value) for value in row[0]], row[1].sig))
    records = [record for _, record in rows]
    parameters = {key: [values[index] for values, _ in rows] for index, key in enumerate(keys)}
    runs, names = _runs_frame(records, parameters, best_by)
    history = history_frame([(record.sig, record.history) for record in records])
    return Experiments(name, root, runs, history, names, tuple(records))


def _runs_frame(
    records: Sequence[Experiment], parameters: dict[str, list[Any]], best_by: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row per experiment, and the columns that are parameters."""
    last = [last_metrics(record.history) for record in records]
    metrics = sorted(dict.fromkeys(column for row in last for column in row), key=metric_rank)
    taken = {*_FACTS, *metrics}
    named = {f"param.{key}" if key in taken else key: values for key, values in parameters.items()}
    facts = [_facts(record, best_by) for record in records]
    columns: dict[str, Any] = {"sig": [record.sig for record in records], **named}
    columns |= {fact: [row[fact] for row in facts] for fact in _FACTS[1:-1]}
    columns |= {name: np.array([row.get(name, math.nan) for row in last], np.float64) for name in metrics}
    columns["problems"] = ["; ".join(record.problems) for record in records]
    return pd.DataFrame(columns).astype({"best_epoch": "Int64"}), tuple(named)


def _parameter_keys(records: Iterable[Experiment]) -> list[str]:
    """Keys that any experiment overrides, as they appear; the seed last, since repeats belong together."""
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    return sorted(keys, key=lambda key: key.rpartition(".")[2] == "seed")


def _parameter_values(record: Experiment, keys: Sequence[str]) -> list[Any]:
    if all(key in record.overrides for key in keys):
        return [_hashable(record.overrides[key]) for key in keys]
    saved = SavedConfig(record.folder)
    record.problems.extend(saved.problems)
    return [_hashable(record.overrides[key] if key in record.overrides else saved.get(key)) for key in keys]


def _hashable(value: Any) -> Any:
    """Lists to tuples and dicts to JSON, so that rows can be grouped by any parameter."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    return encodable(value) if isinstance(value, str) else value


def _natural(value: Any) -> tuple[int, Any]:
    """Sort key over mixed values: none, then numbers, texts (n2 before n10), lists element by element."""
    if value is None or value != value:
        return 0, 0
    if isinstance(value, bool | int | float):
        return 1, value
    if isinstance(value, tuple):
        return 3, tuple(map(_natural, value))
    parts = re.split(r"0*([0-9]+)", str(value))  # texts and digits take turns; longer digits are larger
    return 2, [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


def _facts(record: Experiment, best_by: str) -> dict[str, Any]:
    return {
        "state": record.state,
        "reason": record.reason,
        "epochs": len(record.history),
        "last_epoch": max((n for n, stages in enumerate(record.history, 1) if any(stages.values())), default=0),
        "best_epoch": best_epoch(record.history, best_by),
        "duration": _duration(record),
        "host": encodable(str(record.status.get("host") or "")),
    }


def _duration(record: Experiment) -> float:
    """Seconds of work: all stages of all epochs, else what the status tells of its last job."""
    durations = [
        metrics["duration"] for stages in record.history for metrics in stages.values() if "duration" in metrics
    ]
    if durations:
        return math.fsum(durations)
    start, end = record.status.get("started"), record.status.get("ended") or record.status.get("updated")
    return float(end - start) if isinstance(start, int | float) and isinstance(end, int | float) else math.nan
