"""What a report is asked to show, and what it shows unless asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audiotok.errors import ResultsError
from audiotok.results.experiments import Experiments
from audiotok.results.metrics import HEADLINE, require_metric


@dataclass(frozen=True)
class ReportOptions:
    """Choices of the reader.

    Attributes:
        by: parameters that make a condition; None: those that differ between the runs, without `seeds`.
        metrics: `stage.metric` names to judge by; None: the headline ones.
        seeds: parameter that is averaged over, and that pairs the runs of two conditions.
        baseline: values of some of `by`; the condition that the others are compared with.
        clips: clips to listen to per run.
        audio_mb: megabytes of audio and spectrograms in all.
    """

    by: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    seeds: str = "seed"
    baseline: Mapping[str, Any] | None = None
    clips: int = 8
    audio_mb: float = 200.0

    def __post_init__(self) -> None:
        if self.clips < 0 or not self.audio_mb >= 0:
            raise ResultsError(f"clips={self.clips}, audio_mb={self.audio_mb}; neither may be negative.")

    def conditions(self, experiments: Experiments) -> list[str]:
        """Parameters that make a condition.

        Raises:
            ResultsError: if the grid does not have one of them.
        """
        if self.by is None:
            several = len(experiments.runs) > 1
            return [name for name in experiments.swept if name != self.seeds] if several else []
        missing = [name for name in self.by if name not in experiments.parameters]
        if missing:
            known = ", ".join(experiments.parameters) or "none"
            raise ResultsError(f"no parameter {', '.join(missing)} in {experiments.name}; there are: {known}.")
        return list(dict.fromkeys(self.by))

    def check_baseline(self, experiments: Experiments, by: Sequence[str]) -> None:
        """Check that there is something to compare, and by what to pair it.

        Raises:
            ResultsError: if the baseline names no condition, or the runs have no seeds to pair them by.
        """
        unknown = [name for name in self.baseline or () if name not in by]
        if unknown:
            raise ResultsError(f"baseline {', '.join(unknown)} is not among the conditions: {', '.join(by) or 'none'}.")
        if self.baseline and self.seeds not in experiments.parameters:
            raise ResultsError(
                f"no parameter {self.seeds!r} in {experiments.name} to pair the runs of two conditions by; "
                "name it with seeds (--seeds), or leave the baseline out."
            )

    def judged(self, experiments: Experiments) -> list[str]:
        """Metrics to show.

        Raises:
            ResultsError: if no run has one of them.
        """
        if self.metrics is None:
            return [name for name in HEADLINE if name in experiments.metrics]
        return [require_metric(experiments, name) for name in dict.fromkeys(self.metrics)]
