"""Audio that the generate stage leaves in an experiment: `samples/reference/*` and `samples/epoch_0025/*`."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from audiotok.results.experiments import Experiment
from audiotok.results.files import encodable

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})
_EPOCH = re.compile(r"epoch_([0-9]{1,9})\Z")


def samples_frame(records: Sequence[Experiment]) -> pd.DataFrame:
    """List the audio files of experiments.

    A reconstruction and its reference have the same `clip`. A file that a job is still writing is listed all the same.

    Args:
        records: the experiments.

    Returns:
        One row per file: sig (category, in the order of the records), epoch (Int32; missing for references), kind
        (category: reference, estimate), clip (name without suffix), path (`Path`); sorted by these, epochs going up.
    """
    rows = [(index, *row) for index, record in enumerate(records) for row in sorted(_files(record.folder), key=_order)]
    sigs, epochs, kinds, clips, paths = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    order = pd.Index([record.sig for record in records], dtype="str")
    return pd.DataFrame(
        {
            "sig": pd.Categorical.from_codes(np.array(sigs, np.int32), order),
            "epoch": pd.array(epochs, "Int32"),
            "kind": pd.Categorical(kinds, ["reference", "estimate"]),
            "clip": pd.array(clips, "str"),
            "path": pd.Series(paths, dtype=object),
        }
    )


def _order(row: tuple[int | None, str, str, Path]) -> tuple[int, str]:
    return row[0] or 0, row[2]


def _files(folder: Path) -> Iterator[tuple[int | None, str, str, Path]]:
    """Epoch, kind, clip and path of each audio file."""
    for parent, _ in _scan(folder / "samples", files=False):
        match = _EPOCH.match(parent.name)
        if match is None and parent.name != "reference":
            continue
        epoch, kind = (None, "reference") if match is None else (int(match[1]), "estimate")
        for path, suffix in _scan(parent, files=True):
            if suffix in AUDIO_SUFFIXES and not path.name.startswith("."):
                yield epoch, kind, encodable(path.stem), path


def _scan(folder: Path, *, files: bool) -> list[tuple[Path, str]]:
    """Files, or folders, of a folder, with their suffix; none where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if (entry.is_file() if files else entry.is_dir())]
    except OSError:
        return []
    return [(folder / name, Path(name).suffix.lower()) for name in names]
