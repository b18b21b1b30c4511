"""Experiments back as tables: from the folders of a grid to DataFrames, without torch, Dora or Hydra."""

from audiotok.results.experiments import Experiments, load_all, load_grid, load_sigs
from audiotok.results.folders import grid_signatures, list_grids
from audiotok.results.metrics import METRICS, Metric, metric_direction, require_metric
from audiotok.results.records import Experiment, read_experiment
from audiotok.results.tables import format_table, headline_columns

__all__ = [
    "METRICS",
    "Experiment",
    "Experiments",
    "Metric",
    "format_table",
    "grid_signatures",
    "headline_columns",
    "list_grids",
    "load_all",
    "load_grid",
    "load_sigs",
    "metric_direction",
    "read_experiment",
    "require_metric",
]
