"""What each metric is: which way is better, in what unit. The one place where a direction is declared.

Names are those the solver writes into `history.json`, whatever the stage (`train`, `valid`, `evaluate`, ...).
"""

from typing import Literal, NamedTuple

from audiotok.errors import ResultsError

Direction = Literal["higher", "lower", "neutral"]


class Metric(NamedTuple):
    """One metric.

    Attributes:
        direction: which way is better; neutral ones cannot choose a best epoch.
        unit: unit of the number, empty when it has none.
        description: a few words for a report.
    """

    direction: Direction
    unit: str
    description: str


METRICS: dict[str, Metric] = {
    "sisnr": Metric("higher", "dB", "scale-invariant signal to noise ratio"),
    "visqol": Metric("higher", "MOS", "ViSQOL, audio mode, from 1 to 5"),
    "mel": Metric("lower", "", "L1 distance between log-mel spectrograms"),
    "msspec": Metric("lower", "", "L1 and L2 distance between mel spectrograms at several scales"),
    "mrstft": Metric("lower", "", "distance between magnitude spectrograms at several scales"),
    "l1": Metric("lower", "", "mean absolute error of the waveform"),
    "l2": Metric("lower", "", "mean squared error of the waveform"),
    "mmd": Metric("lower", "", "squared MMD between the joint law of the codebooks and the product of their laws"),
    "mi": Metric("lower", "bit", "mutual information between codebooks, mean over pairs, minus that of shuffled ones"),
    "nmi": Metric("lower", "", "mutual information between codebooks, 0 by chance, 1 if they tell each other"),
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
    "g_loss": Metric("neutral", "", "sum of the balanced losses of the generator"),
    "penalty": Metric("neutral", "", "commitment loss of the quantizer"),
    "grad_norm": Metric("neutral", "", "norm of the gradient of the codec, before clipping"),
    "duration": Metric("neutral", "s", "wall time of the stage"),
}

HEADLINE = (
    "train.mmd",
    "valid.msspec",
    "valid.sisnr",
    "valid.mmd",
    "evaluate.sisnr",
    "evaluate.mel",
    "evaluate.mi_groups",
    "evaluate.mmd",
    "evaluate.mmd_p",
    "evaluate.usage",
)
"""The columns that a table shows unless asked for others: how good the codec is, and how independent its codebooks."""


def metric_direction(column: str) -> Literal["higher", "lower"]:
    """Say which way a `stage.metric` column is better.

    Args:
        column: name such as `valid.msspec` (the part after the first dot is the metric).

    Raises:
        ResultsError: if the metric is unknown, or has no better direction.
    """
    _, _, name = column.partition(".")
    metric = METRICS.get(name)
    if metric is None or metric.direction == "neutral":
        allowed = ", ".join(name for name, known in METRICS.items() if known.direction != "neutral")
        found = "has no better direction" if metric else "is not a known stage.metric"
        raise ResultsError(f"cannot choose a best epoch by {column!r}: it {found}; metrics that have one: {allowed}.")
    return metric.direction
