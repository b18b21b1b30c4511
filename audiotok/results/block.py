"""Blocks: the histories of many experiments by columns, and what a table needs of them without reading them again.

Numbers stay float64, as JSON gave them. A stage keeps only the metrics that it has, so nothing is stored for the
metrics of other stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from audiotok.results.history import StageTable

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


class Values(Protocol):
    """A matrix [metrics, rows] that may lie on disk."""

    def rows(self, wanted: Sequence[int]) -> Floats:
        """Rows of the matrix [len(wanted), rows].

        Raises:
            StaleBlockError: if they are no longer there.
        """
        ...


class StaleBlockError(Exception):
    """The file that held the values was replaced, or is damaged; load again."""


@dataclass(frozen=True)
class Held:
    """Values in memory [metrics, rows]."""

    array: Floats

    def rows(self, wanted: Sequence[int]) -> Floats:
        """Rows of the matrix."""
        return self.array[list(wanted)]


@dataclass(frozen=True)
class StageRows:
    """One stage of all experiments of a block, one experiment after the other.

    Attributes:
        names: metrics, M of them.
        lengths: rows of each experiment [E].
        epochs: epoch (from 1) of each row [R].
        values: [M, R]; NaN where not measured.
    """

    names: tuple[str, ...]
    lengths: Integers
    epochs: Integers
    values: Values


@dataclass(frozen=True)
class Block:
    """Experiments by columns.

    Attributes:
        entries: what is known of each experiment besides, E of them; JSON can hold it.
        columns: `stage.metric`, C of them.
        last: last value that was measured [E, C]; NaN without one.
        counts: how many were measured, NaN included [E, C].
        lowest: epoch of the lowest finite value, the first among equals; 0 without one [E, C].
        highest: epoch of the highest one, likewise [E, C].
        stages: rows by stage.
    """

    entries: list[dict[str, Any]]
    columns: tuple[str, ...] = ()
    last: Floats = field(default_factory=lambda: np.empty((0, 0)))
    counts: Integers = field(default_factory=lambda: np.empty((0, 0), np.int32))
    lowest: Integers = field(default_factory=lambda: np.empty((0, 0), np.int32))
    highest: Integers = field(default_factory=lambda: np.empty((0, 0), np.int32))
    stages: Mapping[str, StageRows] = field(default_factory=dict)


def single_block(entry: dict[str, Any], tables: Sequence[StageTable]) -> Block:
    """Block of one experiment."""
    columns: list[str] = []
    summaries: list[tuple[Floats, Integers, Integers, Integers]] = []
    stages: dict[str, StageRows] = {}
    for table in tables:
        columns += [f"{table.stage}.{name}" for name in table.names]
        summaries.append(_summary(table))
        length = np.array([len(table.epochs)], np.int32)
        held = Held(np.ascontiguousarray(table.values.T))
        stages[table.stage] = StageRows(table.names, length, table.epochs, held)
    if not summaries:
        return concat_blocks([Block([entry])])
    last, counts, lowest, highest = (np.concatenate(parts)[None] for parts in zip(*summaries, strict=True))
    return Block([entry], tuple(columns), last, counts, lowest, highest, stages)


def concat_blocks(blocks: Sequence[Block]) -> Block:
    """One block of many; its values are in memory.

    Raises:
        StaleBlockError: if values of one are no longer there.
    """
    columns = tuple(dict.fromkeys(column for block in blocks for column in block.columns))
    entries = [entry for block in blocks for entry in block.entries]
    last = np.full((len(entries), len(columns)), np.nan)
    counts, lowest, highest = (np.zeros(last.shape, np.int32) for _ in range(3))
    place = {column: index for index, column in enumerate(columns)}
    start = 0
    for block in blocks:
        stop = start + len(block.entries)
        at = [place[column] for column in block.columns]
        if at:
            last[start:stop, at], counts[start:stop, at] = block.last, block.counts
            lowest[start:stop, at], highest[start:stop, at] = block.lowest, block.highest
        start = stop
    names = dict.fromkeys(stage for block in blocks for stage in block.stages)
    stages = {stage: _concat_stage(blocks, stage) for stage in names}
    return Block(entries, columns, last, counts, lowest, highest, stages)


def take(block: Block, wanted: Sequence[int]) -> Block:
    """Block of some of the experiments of another one, in memory.

    Raises:
        StaleBlockError: if its values are no longer there.
    """
    chosen = list(wanted)
    stages = {}
    for stage, rows in block.stages.items():
        index = row_index(rows.lengths, chosen)
        held = Held(rows.values.rows(range(len(rows.names)))[:, index])
        stages[stage] = StageRows(rows.names, rows.lengths[chosen], rows.epochs[index], held)
    return Block(
        entries=[block.entries[index] for index in chosen],
        columns=block.columns,
        last=block.last[chosen],
        counts=block.counts[chosen],
        lowest=block.lowest[chosen],
        highest=block.highest[chosen],
        stages=stages,
    )


def row_index(lengths: Integers, wanted: Sequence[int]) -> NDArray[np.int64]:
    """Rows that belong to some experiments, in the order given, where experiment i has `lengths[i]` rows."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    chosen = np.asarray(wanted, np.int64)
    return ranges(starts[chosen], lengths[chosen])


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Integers start, start + 1, ..., start + length - 1 of each range, one range after the other."""
    sizes = np.asarray(lengths, np.int64)
    before = np.cumsum(sizes) - sizes
    return np.repeat(np.asarray(starts, np.int64) - before, sizes) + np.arange(sizes.sum(), dtype=np.int64)


def _summary(table: StageTable) -> tuple[Floats, Integers, Integers, Integers]:
    """Last value, count, and epochs of the lowest and highest finite value of each metric."""
    values, present = table.values, table.present
    counts = present.sum(axis=0, dtype=np.int32)
    final = len(values) - 1 - present[::-1].argmax(axis=0)
    finite = np.isfinite(values)
    some = finite.any(axis=0)
    lowest = table.epochs[np.where(finite, values, np.inf).argmin(axis=0)]
    highest = table.epochs[np.where(finite, values, -np.inf).argmax(axis=0)]
    last = values[final, np.arange(values.shape[1])]
    return last, counts, np.where(some, lowest, 0).astype(np.int32), np.where(some, highest, 0).astype(np.int32)


def _concat_stage(blocks: Sequence[Block], stage: str) -> StageRows:
    found = [block.stages.get(stage) for block in blocks]
    names = tuple(dict.fromkeys(name for rows in found if rows is not None for name in rows.names))
    place = {name: index for index, name in enumerate(names)}
    parts, epochs, lengths = [], [np.empty(0, np.int32)], []
    for block, rows in zip(blocks, found, strict=True):
        if rows is None:
            lengths.append(np.zeros(len(block.entries), np.int32))
            continue
        part = rows.values.rows(range(len(rows.names)))
        if rows.names != names:
            part, narrow = np.full((len(names), part.shape[1]), np.nan), part
            part[[place[name] for name in rows.names]] = narrow
        parts.append(part)
        epochs.append(rows.epochs)
        lengths.append(rows.lengths)
    return StageRows(names, np.concatenate(lengths), np.concatenate(epochs), Held(np.concatenate(parts, axis=1)))
