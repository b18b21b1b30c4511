"""Metrics: their directions and units, declared here only; and which number of which epoch stands for a run.

Names are those the solver writes into `history.json`, whatever the stage (`train`, `valid`, `evaluate`, ...).
"""

import difflib
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.read import stage_rank

Direction = Literal["higher", "lower", "near_zero", "neutral"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

_MMD = ("mmd.sigmas", "mmd.estimator", "mmd.stream", "mmd.between", "mmd.delay", "mmd.num_batches_mmd")
_MEL = ("sample_rate", "mel.*")


class Metric(NamedTuple):
    """One metric."""

    direction: Direction
    """Which values are better. `near_zero`: those closer to 0, and within its error of 0 all are equal: an estimate of
    what is never below 0 scatters around 0, and one further below is no better. `neutral`: none. Neither of these two
    can choose a best epoch."""
    unit: str  # empty if it has none
    description: str  # a few words for a report
    of_codes: bool = False  # whether it is about the codes of one codec, and says nothing between codecs
    depends_on: tuple[str, ...] = ()
    """Parameters, or patterns such as `mel.*`, that set how it is measured: values under different ones do not
    compare."""


METRICS: dict[str, Metric] = {
    "sisnr": Metric("higher", "dB", "scale-invariant signal to noise ratio"),
    "sisdr": Metric("higher", "dB", "scale-invariant signal to distortion ratio of whole clips"),
    "mel_distance": Metric(
        "lower",
        "",
        "distance of mel spectrograms, as published for DAC",
        depends_on=("sample_rate", "metrics.mel_distance.*"),
    ),
    "stft_distance": Metric(
        "lower",
        "",
        "distance of spectrograms, as published for DAC",
        depends_on=("sample_rate", "metrics.stft_distance.*"),
    ),
    "visqol": Metric("higher", "MOS", "ViSQOL, audio mode, from 1 to 5"),
    "pesq": Metric("higher", "MOS", "PESQ of speech, from 1 to 4.64"),
    "stoi": Metric("higher", "", "short-time objective intelligibility of speech, up to 1"),
    "gap": Metric(
        "near_zero", "bit", "what predicting codebooks side by side costs: bits_parallel - bits_chain, a frame"
    ),
    "bits_parallel": Metric("lower", "bit", "negative log-likelihood of a frame, codebooks side by side", True),
    "bits_chain": Metric("lower", "bit", "negative log-likelihood of a frame, codebooks one after another", True),
    "gap_alone": Metric("near_zero", "bit", "gap without the past: what the codebooks of a step share"),
    "bits_alone": Metric("lower", "bit", "negative log-likelihood of a frame without the past, side by side", True),
    "gap_converged": Metric("neutral", "", "1 if the valid curves of both heads no longer fall, else 0"),
    "gap_fall": Metric("neutral", "bit", "by how much a frame the valid curves fell at last"),
    "gap_recordings": Metric("neutral", "", "recordings that the gap is over"),
    "ce": Metric("lower", "nat", "cross-entropy of a code, mean over codebooks", True),
    "ce_chain": Metric("lower", "nat", "cross-entropy of a code given those before it in the step", True),
    "ppl": Metric("lower", "", "perplexity of a code, mean over codebooks", True),
    "bits_frame": Metric("lower", "bit", "negative log-likelihood of a frame", True),
    "bits_frame_chain": Metric("lower", "bit", "negative log-likelihood of a frame by the chain head", True),
    "bits_s": Metric("lower", "bit/s", "negative log-likelihood of a second", True),
    "fmd": Metric("lower", "", "Fréchet distance of log-mel frames"),
    "fmd_chain": Metric("lower", "", "fmd of what the chain head draws"),
    "fmd_gap": Metric("lower", "", "fmd - fmd_chain: what drawing codebooks side by side costs in sound"),
    "fmd_prompted": Metric("lower", "", "fmd of continuations"),
    "fmd_prompted_chain": Metric("lower", "", "fmd of continuations that the chain head draws"),
    "fmd_prompted_gap": Metric("lower", "", "fmd_prompted - fmd_prompted_chain"),
    "fcd": Metric("lower", "", "Fréchet distance of the codec's own vectors, over their variance", True),
    "fcd_chain": Metric("lower", "", "fcd of what the chain head draws", True),
    "fcd_gap": Metric("lower", "", "fcd - fcd_chain", True),
    "fcd_prompted": Metric("lower", "", "fcd of continuations", True),
    "fcd_prompted_chain": Metric("lower", "", "fcd of continuations that the chain head draws", True),
    "fcd_prompted_gap": Metric("lower", "", "fcd_prompted - fcd_prompted_chain", True),
    "mel": Metric("lower", "", "L1 distance between log-mel spectrograms", depends_on=_MEL),
    "msspec": Metric(
        "lower",
        "",
        "L1 and L2 distance between mel spectrograms at several scales",
        depends_on=("sample_rate", "msspec.*"),
    ),
    "mrstft": Metric(
        "lower", "", "distance between magnitude spectrograms at several scales", depends_on=("sample_rate", "mrstft.*")
    ),
    "l1": Metric("lower", "", "mean absolute error of the waveform"),
    "l2": Metric("lower", "", "mean squared error of the waveform"),
    "mmd": Metric(
        "near_zero",  # most estimators may be negative
        "",
        "squared MMD between the joint law of the codebooks and the product of their laws",
        depends_on=_MMD,
    ),
    "evaluate.mmd": Metric(
        "near_zero", "", "squared MMD of the codebooks, minus the mean over shuffles", depends_on=("metrics.mmd.*",)
    ),
    "mmd_share": Metric("neutral", "", "gradient of the MMD at the latent, relative to that of the balanced losses"),
    "mi": Metric(
        "near_zero",
        "bit",
        "mutual information between codebooks, mean over pairs, minus that of shifted ones",
        depends_on=("metrics.dependence.*",),
    ),
    "nmi": Metric(
        "near_zero",
        "",
        "mutual information between codebooks, 0 by chance, 1 if each determines the other",
        depends_on=("metrics.dependence.*",),
    ),
    "mi_groups": Metric(
        "near_zero",
        "bit",
        "mutual information between groups of like codes, a lower bound",
        depends_on=("metrics.dependence.*",),
    ),
    "mi_delay": Metric(
        "near_zero",
        "bit",
        "mutual information between codebooks in delayed alignment",
        depends_on=("metrics.dependence.*",),
    ),
    "mi_groups_delay": Metric(
        "near_zero",
        "bit",
        "mutual information between groups of codes in delayed alignment",
        depends_on=("metrics.dependence.*",),
    ),
    "mi_p": Metric("neutral", "", "p-value of the mutual information; small means dependent"),
    "mmd_p": Metric("neutral", "", "p-value of the MMD; small means dependent"),
    "tc_tree": Metric("near_zero", "bit", "lower bound of the total correlation", depends_on=("metrics.dependence.*",)),
    "usage": Metric("higher", "", "share of the codes in use"),
    "dead": Metric("lower", "", "codes not in use, all codebooks together"),
    "entropy": Metric("higher", "bit", "entropy of a codebook, mean over codebooks"),
    "perplexity": Metric("higher", "", "codes in effective use, mean over codebooks"),
    "entropy_bitrate": Metric("neutral", "kb/s", "bit rate after ideal entropy coding of each codebook"),
    "bandwidth": Metric("neutral", "kb/s", "bit rate of the codes"),
    "adv": Metric("neutral", "", "adversarial loss of the generator"),
    "feat": Metric("neutral", "", "feature matching loss"),
    "d_loss": Metric("neutral", "", "loss of the discriminators"),
    "loss": Metric("neutral", "", "sum that a language model is trained on: cross-entropies of all its heads"),
    "g_loss": Metric("neutral", "", "sum of the balanced losses of the generator"),
    "penalty": Metric("neutral", "", "commitment loss of the quantizer"),
    "grad_norm": Metric("neutral", "", "norm of the gradient of the codec, before clipping"),
    "clipped": Metric("neutral", "", "share of updates whose gradient was clipped"),
    "skipped": Metric("neutral", "", "share of updates that were skipped, as something was not finite"),
    "protocol": Metric("neutral", "", "number of how evaluate measures: runs with the same one compare"),
    "duration": Metric("neutral", "s", "wall time of the stage"),
}

HEADLINE = (
    "evaluate.gap", "evaluate.bits_parallel", "evaluate.bits_chain", "evaluate.gap_err", "evaluate.gap_alone",
    "generate.fmd", "generate.fmd_chain", "generate.fmd_gap", "codec.evaluate.sisdr", "codec.evaluate.mi_groups",
    "codec.evaluate.mel_distance", "codec.evaluate.visqol", "valid.ce", "evaluate.ce", "evaluate.bits_frame",
    "train.mmd", "valid.msspec", "valid.sisnr", "valid.mmd", "evaluate.sisdr", "evaluate.mel_distance",
    "evaluate.stft_distance", "evaluate.visqol", "evaluate.sisnr", "evaluate.mel", "evaluate.mi_groups", "evaluate.mmd",
    "evaluate.mmd_p", "evaluate.usage",
)  # fmt: skip
"""The columns that a table shows by default, of those that there are: of a language model the gap beside both
likelihoods that it is the difference of; of a codec how good it is, and how independent its codebooks."""
CODEC = "codec."  # begins columns that a run has from the codec that it builds on
_OF_SHUFFLES = ("evaluate.mi_groups", "evaluate.mmd", "evaluate.mmd_p")
_WHY_MISSING = (
    "What cannot be measured, such as p-values from few clips, or is switched off is left out; the run's log says why."
)
_DECLARED: ChainMap[str, Metric] = ChainMap({}, {})  # by option, by the project: before METRICS; see `declared.py`
_ORDER = {name: rank for rank, name in enumerate(METRICS)}
_OF_CODEBOOKS = re.compile(r"(?:_q[0-9]{1,2})+\Z")


def known_metric(column: str) -> Metric | None:
    """What is declared of the metric of a column `stage.metric` or `codec.stage.metric`, or follows; None if nothing.

    Of `ce_q1` it is what is declared of `ce`; `gap_err` is the standard error of `gap`.
    """
    own = column.removeprefix(CODEC)
    _, _, name = own.partition(".")
    if not name:
        return None  # metrics are of a stage
    names = (own, name, _OF_CODEBOOKS.sub("", name))
    found = next((known[each] for known in (_DECLARED, METRICS) for each in names if each in known), None)
    if found is None and name.endswith("_err") and (of := known_metric(f".{name.removesuffix('_err')}")) is not None:
        return Metric("neutral", of.unit, f"standard error over recordings: {of.description}", of.of_codes)
    return found


def declare(metrics: Mapping[str, Metric], *, project: bool) -> None:
    """Set the metrics that the project declares, or those given by option, in place of earlier ones."""
    _DECLARED.maps[1 if project else 0] = dict(metrics)


def several_codecs(table: pd.DataFrame) -> bool:
    """Whether a table is about several codecs, whose codes have no likelihoods that compare (`Metric.of_codes`)."""
    if f"{CODEC}sig" in table.columns:
        return bool(table[f"{CODEC}sig"].nunique(dropna=False) > 1)
    return any(str(name).startswith(CODEC) for name in table.columns)


def differing_settings(runs: pd.DataFrame, column: str) -> list[str]:
    """Parameters that set how a metric is measured (`Metric.depends_on`) and differ between the rows that have it."""
    metric = known_metric(column)
    runs = runs[runs[column].notna()] if column in runs.columns else runs
    prefix = CODEC * column.startswith(CODEC)
    patterns = [f"{prefix}{name}" for name in metric.depends_on] if metric else []
    names = [str(name) for name in runs.columns if any(fnmatchcase(str(name), pattern) for pattern in patterns)]
    return [name for name in names if runs[name].map(repr).nunique() > 1]


def metric_in(runs: pd.DataFrame, column: str) -> Metric | None:
    """What is known of a metric, without a better direction where its values in these rows do not compare.

    These are likelihoods of the codes of several codecs, and values measured under different settings.
    """
    metric = known_metric(column)
    if metric is None or metric.direction == "neutral":
        return metric
    return metric._replace(direction="neutral") if not_compared(runs, column) else metric


def not_compared(runs: pd.DataFrame, column: str) -> str:
    """Why the values of a metric do not compare between these rows, as half a sentence; empty where they do."""
    if settings := differing_settings(runs, column):
        return f"is measured under {', '.join(settings)}, which differ, so its values do not compare"
    metric = known_metric(column)
    if metric is not None and metric.of_codes and several_codecs(runs):
        return "is of each codec's own codes, so its values do not compare"
    return ""


def setting_lines(runs: pd.DataFrame, metrics: Iterable[str]) -> list[str]:
    """Lines that name the metrics that were measured under different settings, and these settings."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in metrics:
        if names := differing_settings(runs, name):
            found.setdefault(tuple(names), []).append(name)
    return [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} measured under {', '.join(settings)}, which differ: "
        "such values do not compare, and none is marked as best"
        for settings, names in found.items()
    ]


def selection_line(best_by: str | None, metrics: Iterable[str]) -> str:
    """A warning where the epoch is chosen by what is then reported; empty if it is not."""
    if best_by is None:
        return ""
    stage = best_by.partition(".")[0]
    same = [name for name in metrics if name.partition(".")[0] == stage]
    if not same:
        return ""
    example = ", such as valid.msspec" * (stage != "valid")
    return (
        f"--best-by {best_by} chooses the epoch by the data that {', '.join(same)} {'is' if len(same) == 1 else 'are'} "
        f"reported of: the best of many epochs looks better than it is; choose by another stage{example}"
    )


def goodness(values: Floats, direction: Direction) -> Floats:
    """Values turned so that more is better: of `lower` with the other sign, of `near_zero` minus the distance from 0.

    Raises:
        ValueError: if the direction is neutral.
    """
    if direction == "neutral":
        raise ValueError("a neutral metric has no better values")
    return {"higher": values, "lower": -values, "near_zero": -np.abs(values)}[direction]


def metric_direction(column: str) -> Literal["higher", "lower"]:
    """Which way a `stage.metric` column, such as `valid.msspec`, is better.

    Raises:
        ResultsError: if the metric is unknown, has no better direction, or scatters around 0.
    """
    metric = known_metric(column)
    direction = None if metric is None else metric.direction
    if direction == "higher" or direction == "lower":
        return direction
    found = "is not a known stage.metric" if metric is None else "has no better direction"
    if direction == "near_zero":
        found = "is an estimate that scatters around 0, whose lowest value is the luck of an epoch"
    every = {**METRICS, **_DECLARED}.items()
    allowed = ", ".join(name for name, known in every if known.direction in ("higher", "lower"))
    raise ResultsError(f"cannot choose a best epoch by {column!r}: it {found}; metrics that can: {allowed}.")


def metric_rank(column: str) -> tuple[int, int]:
    """Order of `stage.metric` columns: stages as they run, metrics as in METRICS, unknown ones as they appeared."""
    stage, _, name = column.partition(".")
    return stage_rank(stage), _ORDER.get(name, len(_ORDER))


class _Runs(Protocol):
    """What is needed of `Experiments`, whose module imports this one."""

    @property
    def name(self) -> str: ...

    @property
    def runs(self) -> pd.DataFrame: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def read_history(self, stages: Iterable[str], metrics: Iterable[str]) -> pd.DataFrame: ...


def require_metric(experiments: _Runs, name: str) -> str:
    """Check that some run has a metric, such as `evaluate.sisdr`, and return its name.

    Raises:
        ResultsError: if no run has it; the message holds the nearest ones.
    """
    known = experiments.metrics
    if name in known:
        return name
    if not known:
        raise ResultsError(f"no metric {name!r} in {experiments.name}: nothing has been measured yet.")
    suffix = name.rpartition(".")[2]
    same = [other for other in known if other.partition(".")[2] == suffix]
    near = dict.fromkeys([*same, *difflib.get_close_matches(name, known, n=5, cutoff=0.3)])
    names = f"{', '.join(near or known)} ({len(known)} in all)"
    why = f" {_WHY_MISSING}" * (name.startswith("evaluate.") and suffix in METRICS)
    raise ResultsError(f"no run of {experiments.name} has the metric {name!r}; the nearest: {names}.{why}")


def unmeasured(experiments: _Runs) -> str:
    """A line that counts runs whose codebooks were evaluated, but not some of their dependence; empty without such."""
    runs = experiments.runs
    if "evaluate.usage" not in experiments.metrics:
        return ""
    evaluated = runs[runs["evaluate.usage"].notna()]
    counts = {
        name: int(evaluated[name].isna().sum()) if name in evaluated.columns else len(evaluated)
        for name in _OF_SHUFFLES
    }
    missing = ", ".join(f"{name} of {count}" for name, count in counts.items() if count)
    return f"not measured in {len(evaluated)} evaluated runs: {missing}. {_WHY_MISSING}" if missing else ""


def metric_values(experiments: _Runs, name: str, *, best_by: str | None = None) -> pd.Series:
    """One value of a metric for each run.

    Args:
        experiments: the runs.
        name: `stage.metric`.
        best_by: `stage.metric` whose best epoch counts, the first among equals and among the epochs that have
            measured both; None: the last epoch that has measured `name`, as always for columns of the codec.

    Returns:
        float64 Series over signatures, in the order of `runs`; NaN where nothing was measured, or not a number.

    Raises:
        ResultsError: if no run has a metric of that name, or `best_by` has no better direction.
    """
    require_metric(experiments, name)
    if best_by is None or name.startswith(CODEC):
        return experiments.runs.set_index("sig")[name].astype(np.float64)
    sign = 1.0 if metric_direction(best_by) == "higher" else -1.0
    require_metric(experiments, best_by)
    scores = _finite_values(experiments, best_by).rename("score") * -sign
    epochs = _finite_values(experiments, name).to_frame().join(scores)
    epochs = epochs.dropna().sort_values("score", kind="stable").groupby(level="sig", observed=True).head(1)
    best: pd.Series = epochs[name].groupby(level="sig", observed=True).first()
    return best.reindex(experiments.runs["sig"]).astype(np.float64)


def pareto_front(runs: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Rows that no other row beats by being at least as good in both metrics (`stage.metric`) and better in one.

    Returns:
        Boolean Series with the index of `runs`; False where a value is missing. Equal points are on it together.

    Raises:
        ResultsError: if a metric has no better direction, or its values do not compare between these rows.
    """
    scores = np.stack([_goodness_of(runs, name) for name in (x, y)], axis=1)  # higher is better in both
    front = np.array(np.isfinite(scores).all(axis=1))
    for row in np.flatnonzero(front):
        beaten_by = (scores >= scores[row]).all(axis=1) & (scores > scores[row]).any(axis=1)
        front[row] = not beaten_by.any()
    return pd.Series(front, index=runs.index)


def _finite_values(experiments: _Runs, name: str) -> pd.Series:
    """Finite values of a metric, indexed by sig and epoch, in the order of epochs."""
    stage, _, metric = name.partition(".")
    rows: pd.Series = experiments.read_history([stage], [metric]).set_index(["sig", "epoch"])[metric]
    measured: pd.Series = rows[np.isfinite(rows)].rename(name).sort_index(level="epoch", kind="stable")
    return measured


def _goodness_of(runs: pd.DataFrame, name: str) -> Floats:
    metric = known_metric(name)
    if metric is None or metric.direction == "neutral":
        raise ResultsError(f"{name} has no better direction; --direction {name.rpartition('.')[2]}=higher declares it.")
    if why := not_compared(runs, name):
        raise ResultsError(f"{name} {why}; choose runs that were measured alike.")
    return goodness(runs[name].to_numpy(np.float64), metric.direction)
