"""The mutual information between the codebooks of a run, as a table whose cells are shaded."""

from dataclasses import dataclass

import numpy as np

from audiotok.errors import ResultsError
from audiotok.results.experiments import Experiments
from audiotok.results.plots import metric_label, pair_matrix
from audiotok.results.tables import format_value
from audiotok.text import clean_text

_SHADES = 5  # classes shade-0 to shade-4 of charts.css


@dataclass(frozen=True)
class Matrix:
    """A square table."""

    title: str  # what it shows
    label: str  # metric with its unit
    cells: list[list[tuple[str, int]]]  # text and shade, 0 for the lowest value of the matrix


def codebook_matrix(experiments: Experiments, sig: str) -> Matrix | None:
    """Mutual information between each two codebooks of a run; None if it was not measured."""
    try:
        values = pair_matrix(experiments, sig)
    except ResultsError:
        return None
    finite = values[np.isfinite(values)]
    low, size = (finite.min(), np.ptp(finite) or 1.0) if len(finite) else (0.0, 1.0)
    shades = np.nan_to_num((values - low) / size * (_SHADES - 1)).round().astype(int)
    cells = [
        [
            (format_value(float(value)) if np.isfinite(value) else "", int(shade))
            for value, shade in zip(*row, strict=True)
        ]
        for row in zip(values, shades, strict=True)
    ]
    return Matrix(clean_text(f"Mutual information between the codebooks of {sig}"), metric_label("evaluate.mi"), cells)
