"""Experiments as tables: `runs`, one row each; `history`, one per stage and epoch; `samples`, one per audio file."""

import difflib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.block import StaleBlockError
from audiotok.results.curves import apart, best_epochs, history_frame, last_values
from audiotok.results.experiments import Experiment, load_records, read_experiment
from audiotok.results.files import uncollected
from audiotok.results.folders import (
    Roots,
    experiment_folders,
    grid_signatures,
    list_signatures,
    output_roots,
    require_signatures,
)
from audiotok.results.history import metric_rank
from audiotok.results.metrics import metric_direction
from audiotok.results.read import hashable, natural
from audiotok.results.samples import samples_frame

BEST_BY = "valid.msspec"
_FACTS = (
    "sig", "state", "reason", "epochs", "last_epoch", "best_epoch", "duration", "gpu_hours", "host", "commit",
    "problems",
)  # fmt: skip
_ATTEMPTS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiments:
    """Experiments as tables; `history` and `samples` are read when first asked for.

    Attributes:
        name: name of the grid, or what was asked for.
        roots: results folders.
        runs: one row per experiment, sorted by its parameters; columns in docs/results.md.
        parameters: columns of `runs` that are parameters.
        metrics: columns of `runs` that are metrics, `stage.metric` each.
        records: what the rows were made of, in the same order.
    """

    name: str
    roots: tuple[Path, ...]
    runs: pd.DataFrame
    parameters: tuple[str, ...]
    metrics: tuple[str, ...]
    records: tuple[Experiment, ...]

    @property
    def root(self) -> Path:
        """The first results folder."""
        return self.roots[0]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per experiment, stage and epoch, see `curves.history_frame`; some may have come in since `runs`."""
        return self.read_history()

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per audio file: sig, epoch, kind (reference or estimate), clip, path; see `samples.samples_frame`."""
        return samples_frame(self.records)

    def read_history(self, stages: Iterable[str] | None = None, metrics: Iterable[str] | None = None) -> pd.DataFrame:
        """Part of `history`: some stages, some metrics (without their stage); far cheaper with ten thousand runs."""
        stages, metrics = (None if names is None else tuple(names) for names in (stages, metrics))
        records: Sequence[Experiment] = self.records
        for _ in range(_ATTEMPTS):
            try:
                return history_frame(records, stages, metrics)
            except StaleBlockError:  # others have rewritten the cache; it has the same numbers, or later ones
                records = self._read_again()
        return history_frame([read_experiment(record.folder) for record in self.records], stages, metrics)

    def _read_again(self) -> list[Experiment]:
        """The same records, as their files are now."""
        folders = [record.folder for record in self.records]
        groups = {root: [folder for folder in folders if root in folder.parents] for root in self.roots}
        found = {record.folder: record for record in load_records(groups)}
        return [found[folder] for folder in folders]

    @property
    def swept(self) -> list[str]:
        """Parameters that differ between the experiments; all of them when there is one experiment."""
        if len(self.runs) == 1:
            return list(self.parameters)
        return [name for name in self.parameters if self.runs[name].map(repr).nunique() > 1]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.runs["state"].value_counts().items())
        return f"{self.name}: {len(self.runs)} experiments ({counts or 'none'})"


def load_grid(name: str, root: Roots = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load a grid.

    Args:
        name: name of the grid as given to `dora grid`, e.g. `compression.encodec_mmd_32khz`.
        root: results folder, or several; default $AUDIOTOK_OUTPUT_DIR, else ./outputs. Of an experiment that is in
            several, the one with the latest sign of life counts, and its `problems` say so.
        best_by: `stage.metric` that chooses `best_epoch`; its direction is the one declared in METRICS.

    Raises:
        ResultsError: if the folder or the grid does not exist, or `best_by` has no better direction.
    """
    return _load(name, output_roots(root), grid_signatures(root, name), best_by, grid=name)


def load_sigs(sigs: Iterable[str], root: Roots = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load experiments by signature, from any grid; see `load_grid`."""
    return _load("signatures", output_roots(root), require_signatures(root, sigs), best_by)


def load_all(root: Roots = None, *, best_by: str = BEST_BY) -> Experiments:
    """Load every experiment of a results folder, or of several; see `load_grid`."""
    return _load("all", output_roots(root), list_signatures(root), best_by)


def require_metric(experiments: Experiments, name: str) -> str:
    """Check that some run has a metric.

    Args:
        experiments: where to look.
        name: `stage.metric`, such as `evaluate.sisnr`.

    Returns:
        The name.

    Raises:
        ResultsError: if no run has it; the message holds the nearest ones.
    """
    if name in experiments.metrics:
        return name
    if not experiments.metrics:
        raise ResultsError(f"no metric {name!r} in {experiments.name}: nothing has been measured yet.")
    suffix = name.rpartition(".")[2]
    same = [known for known in experiments.metrics if known.partition(".")[2] == suffix]
    near = [*same, *difflib.get_close_matches(name, experiments.metrics, n=5, cutoff=0.3)]
    listed = ", ".join(dict.fromkeys(near or experiments.metrics))
    count = len(experiments.metrics)
    raise ResultsError(f"no run of {experiments.name} has the metric {name!r}; the nearest: {listed} ({count} in all).")


def _load(name: str, roots: Sequence[Path], sigs: Sequence[str], best_by: str, grid: str | None = None) -> Experiments:
    highest = metric_direction(best_by) == "higher"  # refuse it before reading a thousand files
    with uncollected():
        return _tables(name, roots, sigs, best_by, highest=highest, grid=grid)


def _tables(
    name: str, roots: Sequence[Path], sigs: Sequence[str], best_by: str, *, highest: bool, grid: str | None
) -> Experiments:
    found = {root: experiment_folders(root, sigs, grid) for root in roots}
    there = {sig for folders in found.values() for sig in folders}
    found[roots[0]] |= {
        sig: roots[0] / "xps" / sig for sig in sigs if sig not in there
    }  # a row that says what is wrong
    records = _newest(load_records({root: list(folders.values()) for root, folders in found.items()}))
    keys = _parameter_keys(records)
    rows = [([_value(record, key) for key in keys], record) for record in records]
    rows.sort(key=lambda row: ([natural(value) for value in row[0]], row[1].sig))
    records = [record for _, record in rows]
    values = {key: [row[index] for row, _ in rows] for index, key in enumerate(keys)}
    last = last_values(records)
    metrics = sorted(last, key=metric_rank)
    columns: dict[str, Any] = {"sig": [record.sig for record in records]}
    taken = {*_FACTS, *metrics}
    for key in keys:
        columns[apart(key, taken | columns.keys(), "param.")] = values[key]
    parameters = tuple(columns)[1:]
    columns |= _facts(records, best_epochs(records, best_by, highest=highest))
    columns |= {metric: last[metric] for metric in metrics}
    columns["problems"] = ["; ".join(record.problems) for record in records]
    return Experiments(name, tuple(roots), pd.DataFrame(columns), parameters, tuple(metrics), tuple(records))


def _facts(records: Sequence[Experiment], best: Any) -> dict[str, Any]:
    return {
        "state": [record.state for record in records],
        "reason": [record.reason for record in records],
        "epochs": np.array([record.epochs for record in records], np.int64),
        "last_epoch": np.array([record.last_epoch for record in records], np.int64),
        "best_epoch": pd.arrays.IntegerArray(best.astype(np.int64), best == 0),
        "duration": np.array([record.duration_s for record in records], np.float64),
        "gpu_hours": np.array([record.gpu_hours for record in records], np.float64),
        "host": [record.host for record in records],
        "commit": [record.commit for record in records],
    }


def _newest(records: Sequence[Experiment]) -> list[Experiment]:
    """One record of each signature: the one with the latest sign of life, which says where the others are."""
    groups: dict[str, list[Experiment]] = {}
    for record in records:
        groups.setdefault(record.sig, []).append(record)
    for copies in groups.values():
        if len(copies) > 1:
            copies.sort(key=lambda record: record.touched_s, reverse=True)
            others = ", ".join(str(copy.folder) for copy in copies[1:])
            copies[0].problems.append(f"also in {others}, which is older and not shown")
            logger.warning("%s: %s", copies[0].folder, copies[0].problems[-1])
    return [copies[0] for copies in groups.values()]


def _parameter_keys(records: Iterable[Experiment]) -> list[str]:
    """Keys that any experiment overrides, as they appear; the seed last, since repeats belong together."""
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    return sorted(keys, key=lambda key: key.rpartition(".")[2] == "seed")


def _value(record: Experiment, key: str) -> Any:
    return hashable(record.overrides[key]) if key in record.overrides else record.configured.get(key)
