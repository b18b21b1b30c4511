"""Histories: `history.json` to records and to columns.

A history is a list of epochs, {stage: {metric: number}} each; epoch 1 comes first. A metric may be there in
some epochs only: evaluation is rare.
"""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audiotok.results.files import encodable, parse_json_file, read_bytes, read_json_file
from audiotok.results.metrics import METRICS

STAGES = ("train", "valid", "evaluate")

History = list[dict[str, dict[str, float]]]


class StageTable(NamedTuple):
    """What one stage of one experiment measured.

    Attributes:
        stage: its name.
        names: metrics, in the order they appeared.
        epochs: numbers (from 1) of the epochs that measured anything [N].
        values: [N, metrics]; NaN where not measured.
        present: [N, metrics]; False where not measured, True for a NaN that was.
    """

    stage: str
    names: tuple[str, ...]
    epochs: NDArray[np.int32]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]


def read_history(path: Path, problems: list[str]) -> History:
    """Read `history.json`: one {stage: {metric: number}} per epoch.

    An epoch or a metric that is not what it should be is left out and told once; a null counts as NaN.

    Args:
        path: the file; none means no epoch is done yet.
        problems: told what could not be read.
    """
    return _clean(read_json_file(path, list, problems) or [], path.name, problems)


def read_tables(path: Path, problems: list[str]) -> tuple[int, list[StageTable]]:
    """Read `history.json` by columns; see `read_history`.

    Returns:
        Number of epochs in the file, and a table for each stage that measured anything, in the order they run.
    """
    raw = read_bytes(path, problems)
    epochs = None if raw is None else parse_json_file(raw, path.name, list, problems)
    if raw is None or not epochs:
        return 0, []
    history = epochs if _is_clean(epochs) else _clean(epochs, path.name, problems)
    stages = sorted(dict.fromkeys(chain.from_iterable(history)), key=stage_rank)
    tables = [table for stage in stages if (table := _stage_table(history, stage)) is not None]
    if raw.count(b":") != sum(map(len, chain(history, *map(dict.values, history)))):  # most often: all is well
        problems += [f"{path.name}: {name} stands twice in an epoch; the last one counts" for name in _repeated(raw)]
    return len(history), tables


def stage_rank(stage: str) -> int:
    """Stages in the order they run; unknown ones last."""
    return _rank(stage, STAGES)


def metric_rank(column: str) -> tuple[int, int]:
    """Order of `stage.metric` columns: stages as they run, metrics as in METRICS, unknown ones as they appeared."""
    stage, _, name = column.partition(".")
    return stage_rank(stage), name_rank(name)


def name_rank(name: str) -> int:
    """Metrics in the order of METRICS, unknown ones last."""
    return _rank(name, _METRIC_ORDER)


def _is_clean(epochs: list[Any]) -> bool:
    """Tell whether all is as the trainer writes it: objects of objects of floats."""
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
    problems += [f"{file}: {problem}" for problem in found]
    return history


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
    """Columns of a stage; mostly all its epochs have the same metrics, and it is a matter of one pass."""
    epochs = [number for number, stages in enumerate(history, 1) if stages.get(stage)]
    if not epochs:
        return None
    rows = [history[number - 1][stage] for number in epochs]
    orders = dict.fromkeys(map(tuple, rows))
    names = tuple(dict.fromkeys(chain.from_iterable(orders)))
    shape = (len(rows), len(names))
    if len(orders) == 1:
        flat = chain.from_iterable(map(dict.values, rows))
        values = np.fromiter(flat, np.float64, count=shape[0] * shape[1]).reshape(shape)
        present = np.ones(shape, np.bool_)
    else:
        values = np.array([[row.get(name, math.nan) for name in names] for row in rows], np.float64)
        present = np.array([[name in row for name in names] for row in rows], np.bool_)
    return StageTable(stage, names, np.array(epochs, np.int32), values, present)


def _repeated(raw: bytes) -> list[str]:
    """Keys that stand twice in one object; JSON allows it, and readers keep the last one without a word."""
    found: dict[str, None] = {}

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            found.update(dict.fromkeys(name for name in content if names.count(name) > 1))
        return content

    json.loads(raw, object_pairs_hook=collect)
    return [encodable(name) for name in found]


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


_METRIC_ORDER = tuple(METRICS)
