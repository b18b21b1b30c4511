"""Does a parameter matter? One test over a whole factorial design, by permutation within blocks.

Runs that are alike in everything but the parameter make a block (the same seed, the same number of codebooks, …). If
the parameter does nothing, the runs of a block could as well have had each other's values, so every arrangement of the
values within the blocks is as likely as the one found. This holds for any law of the values, also of whole numbers
and with another spread in each block (Edgington and Onghena, "Randomization Tests", 2007, chapter 6). The statistic is
the sum of squares between the means of the parameter's values, after the mean of each block is taken out. With few
arrangements all are counted, otherwise 9999 are drawn and the one found counts as one more (Phipson and Smyth, 2010).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiotok.results.metrics import Floats, differing_settings
from audiotok.results.statistics import holm
from audiotok.results.tables import format_value, require_columns

ALPHA = 0.05
DRAWS = 9999
SEED = 0  # of the arrangements drawn: the same data gives the same p-value
_EXACT = 20_000  # arrangements, up to which all are counted
_TOLERANCE = 1e-9  # by which sums of the same numbers in another order may differ


class BlockTest(NamedTuple):
    """Outcome of one test."""

    explained: float  # share of the variance within blocks that the parameter explains, 0 to 1
    p: float  # NaN where every arrangement has the same statistic
    smallest_p: float  # that any arrangement of these values could have


def block_test(values: Floats, levels: Sequence[int], blocks: Sequence[int], draws: int = DRAWS) -> BlockTest:
    """Permutation test within blocks.

    Args:
        values: of the runs, finite.
        levels: number of the parameter's value of each run, from 0.
        blocks: number of the block of each run; a block has several levels.
        draws: arrangements to draw, where there are more than can be counted.
    """
    order = np.argsort(blocks, kind="stable")
    labels = np.asarray(levels, np.int64)[order]
    bounds = np.cumsum([0, *np.unique(blocks, return_counts=True)[1]]).tolist()
    parts = [slice(low, high) for low, high in itertools.pairwise(bounds)]
    residuals = values[order]
    for part in parts:
        residuals[part] -= residuals[part].mean()
    onehot = np.eye(int(labels.max(initial=-1)) + 1)[labels]
    counts = onehot.sum(axis=0)
    exact = math.prod(math.factorial(part.stop - part.start) for part in parts) <= _EXACT
    sums = _every_sum(residuals, onehot, parts) if exact else _drawn_sums(residuals, onehot, parts, draws)
    used = np.flatnonzero(counts)
    statistics = (sums[:, used] ** 2 / counts[used]).sum(axis=1)
    total = float((residuals**2).sum())
    found = float(((residuals @ onehot)[used] ** 2 / counts[used]).sum())
    most = max(found, float(statistics.max(initial=0.0)))
    slack = _TOLERANCE * total
    if not exact:
        statistics = np.append(statistics, found)
    smallest = float((statistics >= most - slack).mean())
    p = float((statistics >= found - slack).mean()) if smallest < 1 else math.nan
    return BlockTest(found / total if total > 0 else math.nan, p, smallest)


def _every_sum(residuals: Floats, onehot: Floats, parts: Sequence[slice]) -> Floats:
    """Sums of the levels [arrangements, levels] in every arrangement of the values within their blocks."""
    sums = np.zeros((1, onehot.shape[1]))
    for part in parts:
        orders = np.array(list(itertools.permutations(range(part.stop - part.start))))
        of_block = residuals[part][orders] @ onehot[part]
        sums = (sums[:, None] + of_block).reshape(-1, onehot.shape[1])
    return sums


def _drawn_sums(residuals: Floats, onehot: Floats, parts: Sequence[slice], draws: int) -> Floats:
    """The same of arrangements drawn at random."""
    rng = np.random.default_rng(SEED)
    sums = np.zeros((draws, onehot.shape[1]))
    for part in parts:
        sums += rng.permuted(np.broadcast_to(residuals[part], (draws, part.stop - part.start)), axis=1) @ onehot[part]
    return sums


def pooled(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str], blocks: Sequence[str]) -> pd.DataFrame:
    """Whether each parameter changes each metric, over all runs that differ in it alone.

    Args:
        runs: one row per run.
        by: parameters to test, each by itself; runs of a block are equal in the others.
        metrics: columns to test.
        blocks: further columns in which runs of a block are equal: the other parameters that differ, and the seed.

    Returns:
        One row per parameter and metric: `parameter`, `metric`, `levels` (values of the parameter), `blocks`, `n` (runs
        in them; the others have no partner that differs in this parameter alone), then what `BlockTest` holds, and
        `p_holm`, corrected for all rows of the table. A metric that is measured under the parameter
        (`Metric.depends_on`) is not tested.

    Raises:
        ResultsError: if a column does not exist.
    """
    require_columns(runs, [*by, *metrics, *blocks])
    rows = []
    for parameter in by:
        alike = [name for name in dict.fromkeys([*by, *blocks]) if name != parameter]
        for metric in metrics:
            finite = runs[np.isfinite(runs[metric].to_numpy(np.float64))]
            level, block = _numbers(finite, [parameter]), _numbers(finite, alike)
            several = pd.Series(level).groupby(block).transform("nunique").to_numpy() > 1
            level, block = level[several], block[several]
            found = BlockTest(math.nan, math.nan, math.nan)
            if len(level) and parameter not in differing_settings(runs, metric):
                found = block_test(finite[metric].to_numpy(np.float64)[several], level.tolist(), block.tolist())
            rows.append((parameter, metric, len(set(level)), len(set(block)), len(level), *found))
    columns = ["parameter", "metric", "levels", "blocks", "n", *BlockTest._fields]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"].to_numpy(float))
    return table


def _numbers(runs: pd.DataFrame, names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number for each combination of values of some columns, lists and missing values among them."""
    keys = list(zip(*(runs[name].map(repr) for name in names), strict=True)) if names else [()] * len(runs)
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([known[key] for key in keys], np.int64)


def pooled_lines(table: pd.DataFrame, blocks: Sequence[str]) -> list[str]:
    """Sentences about a table of `pooled`: what was compared with what, and where no p below 0.05 is possible."""
    lines = [
        "values of a parameter are compared between runs that are equal in all of: "
        f"{', '.join(blocks) or 'nothing else'} and the other parameters here"
    ]
    for parameter, rows in table.groupby("parameter", sort=False):
        smallest = rows["smallest_p"].min()
        if rows["n"].max() == 0:
            lines.append(f"{parameter}: no two runs differ in it alone, so it cannot be tested")
        elif not smallest < ALPHA:
            shown = format_value(float(smallest))
            lines.append(
                f"{parameter}: no p below {ALPHA} is possible with {rows['blocks'].max()} blocks of "
                f"{rows['levels'].max()} values (the smallest is {shown}); more seeds or values make one possible"
            )
    return lines
