"""Histories: `history.json` to records, and what is computed from them.

A history is a list of epochs, {stage: {metric: number}} each; epoch 1 comes first. A metric may be there in
some epochs only: evaluation is rare.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results.files import read_json_file
from audiotok.results.metrics import METRICS, metric_direction

STAGES = ("train", "valid", "evaluate")

History = list[dict[str, dict[str, float]]]


def read_history(path: Path, problems: list[str]) -> History:
    """Read `history.json`: one {stage: {metric: number}} per epoch.

    An epoch or a metric that is not what it should be is left out and told once; a null counts as NaN.

    Args:
        path: the file; none means no epoch is done yet.
        problems: told what could not be read.
    """
    epochs = read_json_file(path, list, problems)
    found: dict[str, None] = {}
    history: History = []
    for epoch in epochs or []:
        stages: dict[str, dict[str, float]] = {}
        if not isinstance(epoch, dict):
            found["an epoch that is not an object"] = None
            epoch = {}
        for stage, metrics in epoch.items():
            if not isinstance(metrics, dict):
                found[f"stage {stage} is not an object"] = None
            elif set(map(type, metrics.values())) <= {float}:
                stages[stage] = metrics  # the usual case, at full speed
            else:
                stages[stage] = _numbers(stage, metrics, found)
        history.append(stages)
    problems += [f"{path.name}: {problem}" for problem in found]
    return history


def last_metrics(history: History) -> dict[str, float]:
    """Last value of every `stage.metric`, even where the last epochs did not measure it."""
    last: dict[str, dict[str, float]] = {}
    for stages in history:
        for stage, metrics in stages.items():
            last.setdefault(stage, {}).update(metrics)
    return {f"{stage}.{name}": value for stage, metrics in last.items() for name, value in metrics.items()}


def best_epoch(history: History, best_by: str) -> int | None:
    """Epoch (from 1) of the best finite value; the first one among equals."""
    stage, _, metric = best_by.partition(".")
    sign = -1.0 if metric_direction(best_by) == "higher" else 1.0
    found = ((sign * stages.get(stage, {}).get(metric, math.nan), n) for n, stages in enumerate(history, 1))
    return min(((score, n) for score, n in found if math.isfinite(score)), default=(0.0, None))[1]


def metric_rank(column: str) -> tuple[int, int]:
    """Stages in the order they run, metrics in the order of METRICS, unknown ones last as they appeared."""
    stage, _, name = column.partition(".")
    return _rank(stage, STAGES), _rank(name, list(METRICS))


def history_frame(histories: Sequence[tuple[str, History]]) -> pd.DataFrame:
    """Put all epochs in one tidy table.

    Filled by blocks of one experiment and stage: by rows, a thousand histories would take far longer.

    Args:
        histories: (sig, history), in the order wanted.

    Returns:
        Columns sig, epoch (from 1), stage, then one float64 column per metric; NaN where not measured.
    """
    blocks = []
    for row, (_, history) in enumerate(histories):
        for stage in dict.fromkeys(stage for stages in history for stage in stages):
            epochs = [n for n, stages in enumerate(history, 1) if stages.get(stage)]
            blocks.append((row, stage, epochs, [history[n - 1][stage] for n in epochs]))
    names = dict.fromkeys(name for *_, rows in blocks for name in _names(rows))
    size = sum(len(epochs) for _, _, epochs, _ in blocks)
    metrics = {name: np.full(size, np.nan) for name in sorted(names, key=lambda name: _rank(name, list(METRICS)))}
    start = 0
    for _, _, epochs, rows in blocks:
        for name in _names(rows):
            metrics[name][start : start + len(epochs)] = [values.get(name, math.nan) for values in rows]
        start += len(epochs)
    keys = [(row, n, _rank(stage, STAGES), stage) for row, stage, epochs, _ in blocks for n in epochs]
    order = sorted(range(size), key=keys.__getitem__)
    columns: dict[str, Any] = {
        "sig": [histories[keys[i][0]][0] for i in order],
        "epoch": np.array([keys[i][1] for i in order], np.int64),
        "stage": [keys[i][3] for i in order],
    }
    columns |= {f"metric.{name}" if name in columns else name: values[order] for name, values in metrics.items()}
    return pd.DataFrame(columns)


def _names(rows: Sequence[dict[str, float]]) -> dict[str, None]:
    """Names in any of the rows; the rows of a stage mostly have the same ones, so whole sets are compared."""
    return dict.fromkeys(name for names in dict.fromkeys(map(tuple, rows)) for name in names)


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


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)
