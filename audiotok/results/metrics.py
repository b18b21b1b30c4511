"""Metrics: their directions and units, declared here only; and which number of which epoch stands for a run.

Names are those the solver writes into `history.json`, whatever the stage (`train`, `valid`, `evaluate`, ...).
"""

import difflib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.read import stage_rank

Direction = Literal["higher", "lower", "neutral"]


class Metric(NamedTuple):
    """One metric."""

    direction: Direction  # neutral ones cannot choose a best epoch
    unit: str  # empty if it has none
    description: str  # a few words for a report
    of_codes: bool = False  # whether it is about the codes of one codec, and says nothing between codecs


METRICS: dict[str, Metric] = {
    "sisnr": Metric("higher", "dB", "scale-invariant signal to noise ratio"),
    "sisdr": Metric("higher", "dB", "scale-invariant signal to distortion ratio of whole clips"),
    "mel_distance": Metric("lower", "", "distance of mel spectrograms, as published for DAC"),
    "stft_distance": Metric("lower", "", "distance of spectrograms, as published for DAC"),
    "visqol": Metric("higher", "MOS", "ViSQOL, audio mode, from 1 to 5"),
    "pesq": Metric("higher", "MOS", "PESQ of speech, from 1 to 4.64"),
    "stoi": Metric("higher", "", "short-time objective intelligibility of speech, up to 1"),
    "gap": Metric("lower", "bit", "what predicting codebooks side by side costs: bits_parallel - bits_chain, a frame"),
    "bits_parallel": Metric("lower", "bit", "negative log-likelihood of a frame, codebooks side by side", True),
    "bits_chain": Metric("lower", "bit", "negative log-likelihood of a frame, codebooks one after another", True),
    "gap_alone": Metric("lower", "bit", "gap without the past: what the codebooks of a step share"),
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
    "mel": Metric("lower", "", "L1 distance between log-mel spectrograms"),
    "msspec": Metric("lower", "", "L1 and L2 distance between mel spectrograms at several scales"),
    "mrstft": Metric("lower", "", "distance between magnitude spectrograms at several scales"),
    "l1": Metric("lower", "", "mean absolute error of the waveform"),
    "l2": Metric("lower", "", "mean squared error of the waveform"),
    "mmd": Metric("lower", "", "squared MMD between the joint law of the codebooks and the product of their laws"),
    "mmd_share": Metric("neutral", "", "gradient of the MMD at the latent, relative to that of the balanced losses"),
    "mi": Metric("lower", "bit", "mutual information between codebooks, mean over pairs, minus that of shifted ones"),
    "nmi": Metric("lower", "", "mutual information between codebooks, 0 by chance, 1 if each determines the other"),
    "mi_groups": Metric("lower", "bit", "mutual information between groups of like codes, a lower bound"),
    "mi_delay": Metric("lower", "bit", "mutual information between codebooks in delayed alignment"),
    "mi_groups_delay": Metric("lower", "bit", "mutual information between groups of codes in delayed alignment"),
    "mi_p": Metric("neutral", "", "p-value of the mutual information; small means dependent"),
    "mmd_p": Metric("neutral", "", "p-value of the MMD; small means dependent"),
    "tc_tree": Metric("lower", "bit", "lower bound of the total correlation"),
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
_ORDER = {name: rank for rank, name in enumerate(METRICS)}
_OF_CODEBOOKS = re.compile(r"(?:_q[0-9]{1,2})+\Z")


def known_metric(column: str) -> Metric | None:
    """What is declared of the metric of a column `stage.metric` or `codec.stage.metric`, or follows; None if nothing.

    Of `ce_q1` it is what is declared of `ce`; `gap_err` is the standard error of `gap`.
    """
    _, _, name = column.removeprefix(CODEC).partition(".")
    found = METRICS.get(name) or METRICS.get(_OF_CODEBOOKS.sub("", name))
    if found is None and name.endswith("_err") and (of := known_metric(f".{name.removesuffix('_err')}")) is not None:
        return Metric("neutral", of.unit, f"standard error over recordings: {of.description}", of.of_codes)
    return found


def several_codecs(table: pd.DataFrame) -> bool:
    """Whether a table is about several codecs, whose codes have no likelihoods that compare (`Metric.of_codes`)."""
    if f"{CODEC}sig" in table.columns:
        return bool(table[f"{CODEC}sig"].nunique(dropna=False) > 1)
    return any(str(name).startswith(CODEC) for name in table.columns)


def metric_direction(column: str) -> Literal["higher", "lower"]:
    """Which way a `stage.metric` column, such as `valid.msspec`, is better.

    Raises:
        ResultsError: if the metric is unknown, or has no better direction.
    """
    metric = known_metric(column)
    if metric is None or metric.direction == "neutral":
        allowed = ", ".join(name for name, known in METRICS.items() if known.direction != "neutral")
        found = "has no better direction" if metric else "is not a known stage.metric"
        raise ResultsError(f"cannot choose a best epoch by {column!r}: it {found}; metrics that have one: {allowed}.")
    return metric.direction


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
    sign = _sign(best_by)
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
        ResultsError: if a metric has no better direction.
    """
    scores = runs[[x, y]].to_numpy(np.float64) * [_sign(x), _sign(y)]  # higher is better in both
    front = np.isfinite(scores).all(axis=1)
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


def _sign(name: str) -> float:
    return 1.0 if metric_direction(name) == "higher" else -1.0
