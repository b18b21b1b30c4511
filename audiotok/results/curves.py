"""Numbers of records to one tidy table: a row per experiment, stage and epoch."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audiotok.results.block import Block, ranges, row_index
from audiotok.results.experiments import Experiment
from audiotok.results.history import name_rank, stage_rank

_THREADS = 2
KEYS = ("sig", "stage", "epoch")


def history_frame(
    records: Sequence[Experiment], stages: Iterable[str] | None = None, metrics: Iterable[str] | None = None
) -> pd.DataFrame:
    """Put all epochs in one tidy table.

    Args:
        records: experiments with different signatures, in the order wanted.
        stages: those wanted; default all.
        metrics: those wanted, without their stage; default all.

    Returns:
        sig (category, in the order of the records), stage (category, in the order they run), epoch (int32, from 1);
        rows are sorted by these three. Then one float64 column per metric: NaN where not measured.

    Raises:
        StaleBlockError: if the cache was rewritten since the records were read.
    """
    blocks = _by_block(records)
    wanted = _stages(blocks, None if stages is None else set(stages))
    names = _names(blocks, wanted, None if metrics is None else set(metrics))
    lengths = np.zeros((len(records), len(wanted)), np.int64)
    for block, members, places in blocks:
        for column, stage in enumerate(wanted):
            if stage in block.stages:
                lengths[members, column] = block.stages[stage].lengths[places]
    starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
    size = int(lengths.sum())
    epochs = np.empty(size, np.int32)
    values = np.empty((len(names), size))
    with ThreadPoolExecutor(_THREADS) as pool:  # most of the time goes to the kernel and to checksums, without the lock
        list(pool.map(lambda row: np.copyto(row, math.nan), values))
        jobs = [
            pool.submit(_fill, block, stage, places, starts[members, column], names, epochs, values)
            for block, members, places in blocks
            for column, stage in enumerate(wanted)
            if stage in block.stages
        ]
        for job in jobs:
            job.result()
    sigs = np.repeat(np.arange(len(records), dtype=np.int32), lengths.sum(axis=1))
    codes = np.repeat(np.tile(np.arange(len(wanted), dtype=np.int8), len(records)), lengths.ravel())
    frame = pd.DataFrame(values.T, columns=_columns(names), copy=False)
    frame.insert(0, "sig", _categories(sigs, [record.sig for record in records]))
    frame.insert(1, "stage", _categories(codes, wanted))
    frame.insert(2, "epoch", epochs)
    return frame


def last_values(records: Sequence[Experiment]) -> dict[str, NDArray[np.float64]]:
    """Last value of every `stage.metric` of each record, even where its last epochs did not measure it."""
    found: dict[str, NDArray[np.float64]] = {}
    for block, members, places in _by_block(records):
        measured = block.counts[places] > 0
        for column in np.flatnonzero(measured.any(axis=0)):
            name = block.columns[column]
            if name not in found:
                found[name] = np.full(len(records), math.nan)
            found[name][members] = block.last[places, column]
    return found


def best_epochs(records: Sequence[Experiment], column: str, *, highest: bool) -> NDArray[np.int32]:
    """Epoch (from 1) of the best finite value of a `stage.metric`, the first one among equals; 0 without one."""
    found = np.zeros(len(records), np.int32)
    for block, members, places in _by_block(records):
        if column in block.columns:
            best = block.highest if highest else block.lowest
            found[members] = best[places, block.columns.index(column)]
    return found


def _by_block(records: Sequence[Experiment]) -> list[tuple[Block, list[int], list[int]]]:
    """Blocks with the records that are in them, and their places there."""
    groups: dict[int, tuple[Block, list[int], list[int]]] = {}
    for index, record in enumerate(records):
        _, members, places = groups.setdefault(id(record.block), (record.block, [], []))
        members.append(index)
        places.append(record.place)
    return list(groups.values())


def _stages(blocks: Sequence[tuple[Block, list[int], list[int]]], wanted: set[str] | None) -> list[str]:
    found = dict.fromkeys(
        stage
        for block, _, places in blocks
        for stage, rows in block.stages.items()
        if (wanted is None or stage in wanted) and rows.lengths[places].any()
    )
    return sorted(found, key=stage_rank)


def _names(
    blocks: Sequence[tuple[Block, list[int], list[int]]], stages: Sequence[str], wanted: set[str] | None
) -> list[str]:
    """Metrics that any of the records measured in any of the stages, in the order of METRICS."""
    found: dict[str, None] = {}
    for block, _, places in blocks:
        counts = block.counts[places].sum(axis=0)
        measured = {column: count > 0 for column, count in zip(block.columns, counts, strict=True)}
        for stage in stages:
            names = block.stages[stage].names if stage in block.stages else ()
            found |= dict.fromkeys(name for name in names if measured[f"{stage}.{name}"])
    return sorted((name for name in found if wanted is None or name in wanted), key=name_rank)


def _fill(
    block: Block,
    stage: str,
    places: Sequence[int],
    starts: NDArray[np.int64],
    names: Sequence[str],
    epochs: NDArray[np.int32],
    values: NDArray[np.float64],
) -> None:
    """Put the rows of one stage of one block where they belong."""
    rows = block.stages[stage]
    source = row_index(rows.lengths, places)
    target: Any = ranges(starts, rows.lengths[places])
    if len(target) and target[-1] - target[0] == len(target) - 1 and (np.diff(target) == 1).all():
        target = slice(target[0], target[-1] + 1)
    epochs[target] = rows.epochs[source]
    whole = len(source) == len(rows.epochs) and bool((np.diff(source) == 1).all())
    there = [name for name in names if name in rows.names]
    for name, row in zip(there, rows.values.rows([rows.names.index(name) for name in there]), strict=True):
        values[names.index(name)][target] = row if whole else row[source]


def _categories(codes: NDArray[Any], names: Sequence[str]) -> "pd.Series[Any]":
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str")), copy=False)


def _columns(names: Sequence[str]) -> list[str]:
    """Columns of the metrics; one that is called like a key becomes `metric.<name>`."""
    return [apart(name, {*KEYS, *names}, "metric.") if name in KEYS else name for name in names]


def apart(name: str, taken: set[str], prefix: str) -> str:
    """Name with as many prefixes as it takes to differ from those taken."""
    while name in taken:
        name = prefix + name
    return name
