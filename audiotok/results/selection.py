"""Names of `audiotok.results.metrics` in their earlier place."""

from audiotok.results.metrics import metric_values, pareto_front

__all__ = ["metric_values", "pareto_front"]
