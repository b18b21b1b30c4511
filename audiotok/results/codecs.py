"""Columns of the codecs that runs build on, as language models do: which codec a run names, and what is known of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results.metrics import CODEC
from audiotok.status.amendments import EPOCHS
from audiotok.text import number_in

CHECKPOINT = "compression_model_checkpoint"
CODEC_SIG = f"{CODEC}sig"
CODEC_SEED = f"{CODEC}seed"
_SIGNATURE = re.compile(r"//sig/([0-9a-f]{4,64})\Z")
_MAX_NAMED = 5


def codec_reference(values: Mapping[str, Any]) -> str | None:
    """Codec in the configuration of a run: a signature, else as it stands (`//pretrained/demo`); None if none."""
    value = _checkpoint(values)
    found = _SIGNATURE.match(value)
    return found[1] if found else value or None


def codec_signatures(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Signatures of the codecs of some configurations, each once."""
    found = (_SIGNATURE.match(value) for value in dict.fromkeys(map(_checkpoint, runs)))
    return [match[1] for match in found if match]


def _checkpoint(values: Mapping[str, Any]) -> str:
    value = values.get(CHECKPOINT)
    return value if isinstance(value, str) else ""


def codec_frame(
    references: Sequence[str | None], codecs: pd.DataFrame, parameters: Sequence[str], metrics: Sequence[str]
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Columns of the codecs of some runs, a row per run; missing where the codec has no folder.

    Args:
        references: codec of each run; see `codec_reference`.
        codecs: a row per codec, with its parameters and metrics, which are columns.
        parameters: names of columns.
        metrics: names of columns.

    Returns:
        The columns, each beginning with `codec.`, and the names of those that are parameters and metrics.
    """
    names = {name: f"{CODEC}{name}" for name in ("state", *parameters, *metrics)}
    known = codecs.set_index("sig")[list(names)]
    there = {str(sig): row for row, sig in enumerate(known.index)}
    rows = [there.get(name or "", -1) for name in references]  # -1: what stands after the last one, which is missing
    columns: dict[str, Any] = {CODEC_SIG: pd.Series(list(references), dtype=object)}
    for name, column in names.items():
        if name in metrics:
            columns[column] = np.append(known[name].to_numpy(np.float64), np.nan)[rows]
        else:
            items = [*known[name].tolist(), None]
            columns[column] = pd.Series([items[row] for row in rows], dtype=object)
    return pd.DataFrame(columns), [names[name] for name in parameters], [names[name] for name in metrics]


def missing_codecs(sigs: Iterable[str], codecs: pd.DataFrame, roots: Iterable[Path]) -> str:
    """A line that names the codecs that have no folder; empty without such."""
    there = set(codecs["sig"])
    lost = [sig for sig in sigs if sig not in there]
    if not lost:
        return ""
    more = f" and {len(lost) - _MAX_NAMED} more" * (len(lost) > _MAX_NAMED)
    where = " or ".join(str(root / "xps") for root in roots)
    return f"no folder of the codec {', '.join(lost[:_MAX_NAMED])}{more} in {where}: its columns, codec.*, are empty"


def extended_codecs(runs: Sequence[Any], references: Sequence[str | None], codecs: Sequence[Any]) -> list[str]:
    """A line for each codec that has trained on since runs that build on it began: its columns are not what they read.

    Args:
        runs: records of runs.
        references: codec of each.
        codecs: records of codecs.
    """
    lines = []
    for codec in codecs:
        longer = [one for one in codec.amendments if EPOCHS in one["keys"]]
        went_on = [one for one in longer if codec.epochs > (number_in(one, "epochs_done") or 0)]
        time = max((number_in(one, "time") or 0.0 for one in went_on), default=0.0)
        pairs = zip(runs, references, strict=True)
        sigs = [
            run.sig for run, name in pairs if name == codec.sig and 0 < (number_in(run.status, "started") or 0) < time
        ]
        if sigs:
            more = f" and {len(sigs) - _MAX_NAMED} more" * (len(sigs) > _MAX_NAMED)
            what = "was extended since, and its columns, codec.*, are of its weights now"
            lines.append(f"codec {codec.sig} of {', '.join(sigs[:_MAX_NAMED])}{more} {what}")
    return lines


def is_joined(runs: pd.DataFrame) -> bool:
    """Whether runs name the codec that they build on."""
    return CODEC_SIG in runs.columns
