"""From overrides to an experiment: its signature as Dora computes it, its frozen configuration, the way it runs."""

from audiotok.experiments.main import ExperimentMain, experiment_main

__all__ = ["ExperimentMain", "experiment_main"]
