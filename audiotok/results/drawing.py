"""Names of `audiotok.results.plots` in their earlier place."""

from audiotok.results.plots import metric_label, save_figure

__all__ = ["metric_label", "save_figure"]
