"""Experiments as tables: `runs`, one row each; `history`, one per stage and epoch; `samples`."""

import gc
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audiotok.results.cache import Block, StaleCacheError
from audiotok.results.codecs import (
    CHECKPOINT,
    CODEC_SIG,
    codec_frame,
    codec_reference,
    codec_signatures,
    extended_codecs,
    is_joined,
    missing_codecs,
)
from audiotok.results.declared import declare_project
from audiotok.results.folders import (
    Roots,
    experiment_folders,
    grid_signatures,
    is_signature,
    list_grids,
    list_signatures,
    output_roots,
    require_signatures,
    samples_frame,
)
from audiotok.results.metrics import CODEC, metric_direction, metric_rank
from audiotok.results.read import hashable, natural, stage_rank
from audiotok.results.records import Experiment, load_records
from audiotok.results.selection import counted
from audiotok.text import clean_text

BEST_BY = ("valid.msspec", "valid.ce")  # of codecs, of language models: the first that any run has
_KEYS = ("sig", "stage", "epoch")
_THREADS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiments:
    """Experiments as tables; `history` and `samples` are read on first use."""

    name: str  # name of the grid, or `signatures`, or `all`
    roots: tuple[Path, ...]  # results folders
    # One row per experiment, sorted by its parameters, those of its codec first; columns in docs/results.md.
    runs: pd.DataFrame
    parameters: tuple[str, ...]  # columns of `runs` that are parameters
    metrics: tuple[str, ...]  # columns of `runs` that are metrics, `stage.metric` each
    records: tuple[Experiment, ...]  # what the rows were made of, in the same order

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per experiment, stage and epoch; there may be epochs that are newer than `runs`.

        Columns: sig (category, in the order of `runs`), stage (category, in the order they run), epoch (int32, from 1);
        rows are sorted by these three. Then one float64 column per metric: NaN where not measured.
        """
        return self.read_history()

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per audio file: sig, epoch, kind (reference or estimate), clip, path; see `folders.samples_frame`."""
        return samples_frame({record.sig: record.folder for record in self.records})

    def read_history(self, stages: Iterable[str] | None = None, metrics: Iterable[str] | None = None) -> pd.DataFrame:
        """Part of `history`: some stages, some metrics (without their stage); far cheaper with ten thousand runs."""
        stages, metrics = (None if names is None else set(names) for names in (stages, metrics))
        records: Sequence[Experiment] = self.records
        for cached in (True, False):
            try:
                return _history_frame(records, stages, metrics)
            except StaleCacheError:  # rewritten by another process: the same numbers are there, or later ones
                folders = {root: [own.folder for own in records if root in own.folder.parents] for root in self.roots}
                found = {record.folder: record for record in load_records(folders, cached=cached)}
                records = [found[record.folder] for record in records]
        return _history_frame(records, stages, metrics)

    @property
    def swept(self) -> list[str]:
        """Parameters that differ between the experiments; all of them when there is one experiment.

        Of the codec that a run builds on, its own parameters stand for the key that names it.
        """
        names = [name for name in self.parameters if name != CHECKPOINT or not is_joined(self.runs)]
        if len(self.runs) == 1:
            return names
        return [name for name in names if self.runs[name].map(repr).nunique() > 1]

    def counted(self, *, unfinished: bool = False) -> "Experiments":
        """The same grid with the runs that count; see `selection.counted`."""
        return self.take(self.runs.index.isin(counted(self.runs, unfinished=unfinished).index).tolist())

    def take(self, rows: Sequence[bool]) -> "Experiments":
        """The same grid with some of its rows."""
        if all(rows):
            return self
        records = tuple(compress(self.records, rows))
        return replace(self, runs=self.runs[list(rows)].reset_index(drop=True), records=records)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.runs["state"].value_counts().items())
        return f"{self.name}: {len(self.runs)} experiments ({counts or 'none'})"


def load_grid(name: str, root: Roots = None, *, best_by: str | None = None) -> Experiments:
    """Load a grid.

    Args:
        name: name of the grid as given to `dora grid`, e.g. `compression.encodec_mmd_32khz`.
        root: results folder, or several; default $AUDIOTOK_OUTPUT_DIR, else ./outputs. Of an experiment that is in
            several, the one with the latest sign of life counts, and its `problems` name the others.
        best_by: `stage.metric` that chooses `best_epoch`, in the direction declared in METRICS; default `valid.msspec`,
            or `valid.ce` where no run has that.

    Raises:
        ResultsError: if the folder or the grid does not exist, or `best_by` has no better direction.
    """
    return _load(name, output_roots(root), {name: grid_signatures(root, name)}, best_by)


def load_sigs(sigs: Iterable[str], root: Roots = None, *, best_by: str | None = None) -> Experiments:
    """Load experiments by signature, from any grid; see `load_grid`."""
    return _load("signatures", output_roots(root), {None: require_signatures(root, sigs)}, best_by)


def load_named(names: Sequence[str], root: Roots = None, *, best_by: str | None = None) -> Experiments:
    """Load several grids and experiments as one; see `load_grid`.

    Args:
        names: of grids, and signatures, each once. With more than one grid `runs` has a column `grid`, which names the
            grids that a run is of.
        root: results folder, or several.
        best_by: as in `load_grid`.
    """
    grids = {grid for base in output_roots(root) for grid in list_grids(base)}
    sigs = [name for name in names if name not in grids and is_signature(name)]
    groups: dict[str | None, list[str]] = {name: grid_signatures(root, name) for name in names if name not in sigs}
    if sigs:
        groups[None] = require_signatures(root, sigs)
    experiments = _load(" + ".join(dict.fromkeys(names)), output_roots(root), groups, best_by)
    if len(groups) == 1:
        return experiments
    known = {name: set(members) for name, members in groups.items() if name is not None}
    column = [", ".join(name for name, own in known.items() if sig in own) for sig in experiments.runs["sig"]]
    runs = experiments.runs.assign(grid=column) if "grid" not in experiments.runs else experiments.runs
    return replace(experiments, runs=runs[["sig", "grid", *(name for name in runs if name not in ("sig", "grid"))]])


def load_all(root: Roots = None, *, best_by: str | None = None) -> Experiments:
    """Load every experiment of a results folder, or of several; see `load_grid`."""
    return _load("all", output_roots(root), {None: list_signatures(root)}, best_by)


def _load(
    name: str, roots: Sequence[Path], groups: Mapping[str | None, Sequence[str]], best_by: str | None
) -> Experiments:
    """Load experiments, given by the grid whose links lead to them."""
    declare_project()
    if best_by is not None:
        metric_direction(best_by)  # first: an error before a thousand files are read
    folders: dict[Path, dict[str, Path]] = {root: {} for root in roots}
    for root, (grid, each) in product(roots, groups.items()):
        folders[root] |= experiment_folders(root, each, grid)
    sigs = list(dict.fromkeys(sig for each in groups.values() for sig in each))
    found = {sig for each in folders.values() for sig in each}
    folders[roots[0]] |= {sig: roots[0] / "xps" / sig for sig in sigs if sig not in found}  # rows for what is missing
    enabled = gc.isenabled()
    gc.disable()  # the collector would go over a million new objects again and again, and find nothing to free
    try:
        records = _newest(load_records({root: list(each.values()) for root, each in folders.items()}))
        return _with_codecs(_tables(name, roots, records, best_by))
    finally:
        if enabled:
            gc.enable()


def _with_codecs(experiments: Experiments) -> Experiments:
    """Add columns of the codecs that runs build on, by which they are sorted then; see docs/results.md."""
    configurations = [{**record.configured, **record.overrides} for record in experiments.records]
    references = [codec_reference(values) for values in configurations]
    if not any(references):
        return experiments
    sigs, roots = codec_signatures(configurations), experiments.roots
    found = {root: list(experiment_folders(root, sigs).values()) for root in roots}
    codecs = _tables("codecs", roots, _newest(load_records(found)), None)
    if line := missing_codecs(sigs, codecs.runs, roots):
        logger.warning("%s: %s", experiments.name, clean_text(line))
    for line in extended_codecs(experiments.records, references, codecs.records):
        logger.warning("%s: %s", experiments.name, clean_text(line))
    frame, parameters, metrics = codec_frame(references, codecs.runs, codecs.parameters, codecs.metrics)
    own = experiments.runs.columns
    if not own.intersection(frame.columns).empty:
        logger.warning("%s: runs have own keys that begin with %s; no codecs are shown", experiments.name, CODEC)
        return experiments
    runs = pd.concat([experiments.runs, frame], axis=1)
    first = ["sig", CODEC_SIG, *parameters, *experiments.parameters]
    last = [f"{CODEC}state", *experiments.metrics, *metrics, "problems"]
    runs = runs[[*first, *(name for name in own if name not in {*first, *last}), *last]]
    values = [runs[name].tolist() for name in parameters]
    order = sorted(range(len(runs)), key=lambda row: [natural(column[row]) for column in values])
    return replace(
        experiments,
        runs=runs.iloc[order].reset_index(drop=True),
        parameters=(*parameters, *experiments.parameters),
        metrics=(*experiments.metrics, *metrics),
        records=tuple(experiments.records[row] for row in order),
    )


def _tables(name: str, roots: Sequence[Path], records: list[Experiment], best_by: str | None) -> Experiments:
    # Parameters in the order they appear; the seed last, since repeats belong together.
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    order = sorted(keys, key=lambda key: key.rpartition(".")[2] == "seed")
    rows = [(record, {**record.configured, **record.overrides}) for record in records]
    values = {record.sig: [hashable(own.get(key)) for key in order] for record, own in rows}
    records = sorted(records, key=lambda record: ([natural(value) for value in values[record.sig]], record.sig))
    last = _last_values(records)
    metrics = sorted(last, key=metric_rank)
    columns: dict[str, Any] = {"sig": [record.sig for record in records]}
    best_by = best_by or next((column for column in BEST_BY if column in last), BEST_BY[0])
    best = _best_epochs(records, best_by, highest=metric_direction(best_by) == "higher")
    facts = {
        "state": [record.state for record in records],
        "reason": [record.reason for record in records],
        "epochs": np.array([record.epochs for record in records], np.int64),
        "last_epoch": np.array([record.last_epoch for record in records], np.int64),
        "best_epoch": pd.arrays.IntegerArray(best, best == 0),
        "duration": np.array([record.duration_s for record in records], np.float64),
        "gpu_hours": np.array([record.gpu_hours for record in records], np.float64),
        "host": [record.host for record in records],
        "commit": [record.commit for record in records],
    }
    if any(amended := [record.amended for record in records]):
        facts["amended"] = amended
    taken = {*facts, *metrics, "problems"}
    for index, key in enumerate(order):
        column = _distinct(key, taken | columns.keys(), "param.")
        columns[column] = [values[record.sig][index] for record in records]
    parameters = tuple(columns)[1:]
    columns |= facts | {metric: last[metric] for metric in metrics}
    columns["problems"] = ["; ".join(record.problems) for record in records]
    return Experiments(name, tuple(roots), pd.DataFrame(columns), parameters, tuple(metrics), tuple(records))


def _newest(records: Sequence[Experiment]) -> list[Experiment]:
    """One record of each signature: the one with the latest sign of life, whose problems name the others."""
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


def _history_frame(records: Sequence[Experiment], stages: set[str] | None, metrics: set[str] | None) -> pd.DataFrame:
    """Table of some stages and metrics, see `Experiments.history`.

    Raises:
        StaleCacheError: if the cache was rewritten since the records were read.
    """
    counts = [record.block.entries[record.place]["history"]["rows"] for record in records]
    there = dict.fromkeys(stage for each in counts for stage in each)
    chosen = sorted((stage for stage in there if stages is None or stage in stages), key=stage_rank)
    lengths = np.array([[each.get(stage, 0) for stage in chosen] for each in counts], np.int64)
    lengths = lengths.reshape(len(records), len(chosen))
    starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
    groups = _by_block(records)
    names = _metric_names(groups, chosen, metrics)
    rows = {name: row for row, name in enumerate(names)}
    epochs = np.empty(lengths.sum(), np.int32)
    values = np.empty((len(names), len(epochs)))

    def fill(block: Block, members: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        target: Any
        source: Any
        for (stage, name), column in block.read(chosen, names).items():
            if name is None:  # its epochs come first
                sizes = block.lengths(stage)
                target = _ranges(starts[members, chosen.index(stage)], sizes[places])
                whole = len(places) == len(sizes)
                source = slice(None) if whole else _ranges((np.cumsum(sizes) - sizes)[places], sizes[places])
            (epochs if name is None else values[rows[name]])[target] = column[source]

    with ThreadPoolExecutor(_THREADS) as pool:  # most of the time goes to the kernel and to checksums, without the GIL
        list(pool.map(lambda row: row.fill(math.nan), values))
        for job in [pool.submit(fill, *group) for group in groups]:  # all run, so that each damaged file is found
            job.result()
    sigs = np.repeat(np.arange(len(records), dtype=np.int32), lengths.sum(axis=1))
    codes = np.repeat(np.tile(np.arange(len(chosen), dtype=np.int8), len(records)), lengths.ravel())
    columns = [_distinct(name, {*_KEYS, *names}, "metric.") if name in _KEYS else name for name in names]
    frame = pd.DataFrame(values.T, columns=columns, copy=False)
    frame.insert(0, "sig", _categories(sigs, [record.sig for record in records]))
    frame.insert(1, "stage", _categories(codes, chosen))
    frame.insert(2, "epoch", epochs)
    return frame


def _ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Integers start, start + 1, ..., start + length - 1 of each range, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def _last_values(records: Sequence[Experiment]) -> dict[str, NDArray[np.float64]]:
    """Last value of every `stage.metric` of each record, even where its last epochs did not measure it."""
    found: dict[str, NDArray[np.float64]] = {}
    for block, members, places in _by_block(records):
        summary = block.summary[places]
        for column in np.flatnonzero(_measured(summary)):
            name = ".".join(block.names[column])
            if name not in found:
                found[name] = np.full(len(records), math.nan)
            found[name][members] = summary[:, column, 0]
    return found


def _best_epochs(records: Sequence[Experiment], column: str, *, highest: bool) -> NDArray[np.int64]:
    """Epoch (from 1) of the best finite value of a `stage.metric`, the first one among equals; 0 without one."""
    found = np.zeros(len(records))
    for block, members, places in _by_block(records):
        columns = [".".join(name) for name in block.names]
        if column in columns:
            found[members] = block.summary[places, columns.index(column), 2 if highest else 1]
    return np.nan_to_num(found).astype(np.int64)


_Group = tuple[Block, NDArray[np.int64], NDArray[np.int64]]


def _by_block(records: Sequence[Experiment]) -> list[_Group]:
    """Blocks; which of the records are in each; and their places in it, which go up."""
    groups: dict[int, tuple[Block, list[tuple[int, int]]]] = {}
    for member, record in enumerate(records):
        groups.setdefault(id(record.block), (record.block, []))[1].append((record.place, member))
    pairs = [(block, np.array(sorted(items), np.int64).T) for block, items in groups.values()]
    return [(block, members, places) for block, (places, members) in pairs]


def _measured(summary: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which metrics any of some experiments has measured, by their part of `Block.summary`."""
    return np.asarray(~np.isnan(summary[:, :, 1]).all(axis=0))


def _metric_names(groups: Sequence[_Group], stages: Sequence[str], metrics: set[str] | None) -> list[str]:
    """Metrics, by default all, that any of the records measured in any of the stages, in the order of METRICS."""
    found: dict[str, None] = {}
    for block, _, places in groups:
        measured = set(compress(block.names, _measured(block.summary[places])))
        for stage in stages:
            names = [name for name in block.metrics.get(stage, ()) if metrics is None or name in metrics]
            found |= dict.fromkeys(name for name in names if (stage, name) in measured)
    return sorted(found, key=lambda name: metric_rank(f".{name}"))


def _categories(codes: NDArray[Any], names: Sequence[str]) -> "pd.Series[Any]":
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str")), copy=False)


def _distinct(name: str, taken: set[str], prefix: str) -> str:
    """Name with as many prefixes as it takes to differ from those taken."""
    while name in taken:
        name = prefix + name
    return name
