"""Runs that build on codecs, as language models do: a row per codec, and which runs are replicates of a condition.

The runs of one codec share its weights, so they are no independent replicates of how that codec was trained: where a
condition has several codecs, each counts once, with the mean over its runs.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from audiotok.results.codecs import CODEC_SEED, CODEC_SIG, is_joined
from audiotok.results.metrics import CODEC, known_metric, several_codecs
from audiotok.results.selection import counted
from audiotok.results.tables import Estimate, require_columns

if TYPE_CHECKING:
    from audiotok.results.experiments import Experiments

_MAX_NAMED = 5


def counts_codecs(runs: pd.DataFrame, by: Sequence[str]) -> bool:
    """Whether any condition has several codecs, so that codecs rather than runs are the replicates of them all."""
    if CODEC_SIG not in runs.columns:
        return False
    codecs = [runs[CODEC_SIG]] if not by else [members[CODEC_SIG] for _, members in _groups(runs, by)]
    return any(each.nunique() > 1 for each in codecs)


def replicates(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str], *, codecs: bool) -> pd.DataFrame:
    """The independent observations of each condition, a row each.

    Args:
        runs: one row per run.
        by: columns that make a condition.
        metrics: columns to average.
        codecs: whether they are codecs (`counts_codecs`): then the mean over the runs of each codec in each condition,
            with the codec's `sig`; a run on no codec stands for itself. Else the runs themselves, but what was measured
            of a codec stands in its first run only, for more runs of it measure nothing new of it.

    Raises:
        ResultsError: if a column does not exist.
    """
    require_columns(runs, [*by, *metrics])
    if CODEC_SIG not in runs.columns:
        return runs
    keys = list(dict.fromkeys([*by, CODEC_SIG]))
    units = runs[CODEC_SIG].where(runs[CODEC_SIG].notna(), runs["sig"])
    finite = runs.assign(**{name: _finite(runs[name]) for name in metrics}, **{CODEC_SIG: units})
    if not codecs:
        again = finite.duplicated(keys).to_numpy()
        own = [name for name in metrics if name.startswith(CODEC)]
        return finite.assign(**{name: finite[name].mask(again) for name in own})
    constant = [name for name in runs.columns if str(name).startswith(CODEC) and name not in (*keys, *metrics)]
    rows = []
    for _, members in _groups(finite, keys):
        first = members.iloc[0]
        row: dict[Hashable, Any] = {name: first[name] for name in (*keys, *constant)}
        rows.append(row | {name: members[name].mean() for name in metrics} | {"sig": first[CODEC_SIG]})
    return pd.DataFrame(rows, columns=[*keys, *constant, *metrics, "sig"])


def pairing(baseline: Iterable[str], *, codecs: bool) -> str:
    """Column by which conditions are paired with a baseline, given its parameters.

    Runs are paired by their seed. Codecs (see `replicates`) by theirs where the baseline is one of codecs; otherwise
    both conditions have the same codecs, and each is its own pair.
    """
    if not codecs:
        return "seed"
    return CODEC_SEED if any(name.startswith(CODEC) for name in baseline) else CODEC_SIG


def codec_rows(
    experiments: "Experiments", *, seeds: Sequence[str] = ("seed",), unfinished: bool = False
) -> pd.DataFrame:
    """A row per codec, and per value of what else differs: its columns, and its runs averaged over the seeds.

    Returns:
        `codec.sig`, the parameters that differ, `state` (how many runs are in which), `n` (runs that count: those that
        have completed, or all that have measured anything if `unfinished`), then the metrics: of the codec as they
        are, of its runs an `Estimate`.
    """
    runs = experiments.runs
    swept = [name for name in experiments.swept if name.startswith(CODEC) or name not in seeds]
    keys = list(dict.fromkeys([CODEC_SIG, *swept]))
    metrics = list(experiments.metrics)
    finite = runs.assign(**{name: _finite(runs[name]) for name in metrics})
    own = [name for name in metrics if not name.startswith(CODEC)]
    rows = []
    for _, members in _groups(finite, keys):
        here = members[members[own].notna().any(axis=1)] if unfinished else counted(members)
        first = members.iloc[0]
        row: dict[str, Any] = {name: first[name] for name in keys}
        states = members["state"].value_counts().items()
        row |= {"state": ", ".join(f"{count} {state}" for state, count in states), "n": len(here)}
        means, spreads, counts = here[own].mean(), here[own].std(ddof=1), here[own].count()
        for name in metrics:
            codec = name.startswith(CODEC)
            row[name] = first[name] if codec else Estimate(means[name], spreads[name], int(counts[name]))
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, "state", "n", *metrics])


def code_lines(experiments: "Experiments") -> list[str]:
    """Lines about which numbers of language models compare between the codecs that they are on."""
    runs = experiments.runs
    lines = []
    if "evaluate.gap_converged" in runs and (falling := runs["sig"][runs["evaluate.gap_converged"] == 0].tolist()):
        more = f" and {len(falling) - _MAX_NAMED} more" * (len(falling) > _MAX_NAMED)
        lines.append(
            f"not converged, so that their gaps mean little: {', '.join(falling[:_MAX_NAMED])}{more}; the valid curves "
            "still fall, train longer (optim.epochs)"
        )
    if not any(map(_of_codes, experiments.metrics)) or not is_joined(runs) or not several_codecs(runs):
        return lines
    lines.append(
        "ce, ppl and bits are of each codec's own codes: fewer bits of worse codes are no gain, so none is best; "
        "the gap compares within one pattern and frame rate"
    )
    if f"{CODEC}evaluate.protocol" in runs and runs[f"{CODEC}evaluate.protocol"].nunique() > 1:
        lines.append("codec.evaluate was measured in different ways; see `audiotok results` of the grid of the codecs")
    return lines


def _of_codes(column: str) -> bool:
    metric = None if column.startswith(CODEC) else known_metric(column)
    return metric is not None and metric.of_codes


def _finite(values: "pd.Series[Any]") -> "pd.Series[Any]":
    numbers = values.astype(np.float64)
    return numbers.where(np.isfinite(numbers))


def _groups(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Any, pd.DataFrame]]:
    """Groups in the order in which they first appear."""
    return list(runs.groupby(list(by), sort=False, dropna=False))
