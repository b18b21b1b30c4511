"""Published numbers of other codecs, to stand beside the own ones; of another test set, so that they do not compare."""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

SOURCE = "Kumar et al., High-Fidelity Audio Compression with Improved RVQGAN, NeurIPS 2023"
REMARK = (
    f"Published rows are from {SOURCE}: 10 s clips of speech, music and sounds at 44.1 kHz, -16 LUFS. Their test set "
    "is another one: they give the order of magnitude, and no run is better or worse than they are."
)


class Published(NamedTuple):
    """A row of the table of Kumar et al."""

    name: str
    values: dict[str, float]  # by `stage.metric`


def _row(name: str, kbps: float, mel: float, stft: float, visqol: float, sisdr: float) -> Published:
    names = ("mel_distance", "stft_distance", "visqol", "sisdr")
    values = dict(zip(names, (mel, stft, visqol, sisdr), strict=True))
    return Published(f"{name}, {kbps:g} kb/s", {f"evaluate.{metric}": value for metric, value in values.items()})


PUBLISHED = (
    _row("EnCodec 24 kHz", 1.5, 2.11, 4.30, 2.82, -0.02),
    _row("EnCodec 24 kHz", 6, 1.83, 4.10, 3.05, 5.99),
    _row("EnCodec 24 kHz", 24, 1.61, 3.97, 3.16, 9.59),
    _row("DAC 44.1 kHz", 1.78, 1.39, 1.95, 3.76, 2.16),
    _row("DAC 44.1 kHz", 2.67, 1.28, 1.85, 3.90, 4.41),
    _row("DAC 44.1 kHz", 5.33, 1.07, 1.69, 4.09, 8.13),
    _row("DAC 44.1 kHz", 8, 0.93, 1.60, 4.18, 10.75),
)


def published_table(metrics: Iterable[str]) -> pd.DataFrame:
    """The published rows: a column of names, and those of some `stage.metric` that there are; empty without any."""
    shown = [name for name in metrics if name in PUBLISHED[0].values]
    rows = [{"published": row.name, **{name: row.values[name] for name in shown}} for row in PUBLISHED if shown]
    return pd.DataFrame(rows, columns=["published", *shown])
