"""Metrics of reconstructed clips over the evaluate stage: each clip once, whatever the ranks; what fails is counted."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

import numpy as np
from torch import Tensor

from audiotok.data import SegmentInfo
from audiotok.distributed import gather_objects, is_source, rank, world_size
from audiotok.errors import DataError
from audiotok.metrics.quality import SetMetric, SignalMetric
from audiotok.solvers.metric_workers import Measured, MetricWorkers, measure, result_of

logger = logging.getLogger(__name__)

Place = tuple[str, float]  # of a clip: its file, and where it starts in it, s


class ClipMetrics:
    """Computes metrics as clips come, those with `parallel = True` in worker processes; to be used as a block.

    Args:
        metrics: of one clip, by name.
        sets: of all clips together, by name.
        clips: how many clips the stage has, over all ranks.
    """

    def __init__(self, metrics: Mapping[str, SignalMetric], sets: Mapping[str, SetMetric], clips: int) -> None:
        self._metrics, self._sets, self._clips = dict(metrics), dict(sets), clips
        self._workers = MetricWorkers({n: m for n, m in metrics.items() if getattr(m, "parallel", False)})
        self._results: dict[Place, dict[str, Measured | Future[Measured]]] = {}
        self._infos: list[SegmentInfo] = []
        self._set_reasons: list[tuple[str, str]] = []
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._workers.close(finish=kind is None)

    def add(
        self,
        estimates: Tensor,
        references: Tensor,
        infos: Sequence[SegmentInfo],
        vectors: Callable[[int], Tensor] | None = None,
    ) -> None:
        """Take the clips [B, C, T] of a batch; `vectors` gives the `quantized` of one of them, see `SetMetric`."""
        estimates, references = estimates.detach().float().cpu(), references.float().cpu()
        for index, info in enumerate(infos):
            position = self._seen * world_size() + rank()
            self._seen += 1
            place = str(info.path), info.start_s
            # A loader repeats the first clips at the end, and takes another where a file cannot be read.
            if position >= self._clips or place in self._results:
                continue
            self._infos.append(info)
            estimate, reference = (wavs[index, :, : info.n_frames] for wavs in (estimates, references))
            self._results[place] = {name: self._measure(name, estimate, reference) for name in self._metrics}
            self._update_sets(estimate, reference, vectors, index)

    def _measure(self, name: str, estimate: Tensor, reference: Tensor) -> "Measured | Future[Measured]":
        metric = self._metrics[name]
        if getattr(metric, "parallel", False):
            return self._workers.submit(name, estimate, reference)
        return measure(metric, estimate, reference)

    def _update_sets(
        self, estimate: Tensor, reference: Tensor, vectors: Callable[[int], Tensor] | None, index: int
    ) -> None:
        quantized: Tensor | None = None
        for name, metric in self._sets.items():
            if quantized is None and vectors is not None and getattr(metric, "needs_quantized", False):
                quantized = vectors(index).float().cpu()
            try:
                metric.update(estimate=estimate, reference=reference, quantized=quantized)
            except DataError as error:
                self._set_reasons.append((name, str(error)))

    def metrics(self) -> dict[str, float]:
        """Means over clips with their errors, and values of sets; every rank must call this, and gets the same.

        `NAME_err` is the standard error of the mean, with recordings, not clips, as independent draws; absent with less
        than two of them. What no clip has a value of is left out.
        """
        own = {
            place: {name: one if isinstance(one, Measured) else result_of(one) for name, one in found.items()}
            for place, found in self._results.items()
        }
        clips: dict[Place, dict[str, Measured]] = {}
        for found in gather_objects(own):
            clips |= found | clips  # the first rank's of a clip that two ranks have read
        values: dict[str, float] = {}
        for name in self._metrics:
            values |= _mean(name, {place: found[name] for place, found in clips.items()})
        return values | self._set_values()

    def infos(self) -> list[SegmentInfo]:
        """The clips of all ranks, each once, sorted by track and start; every rank must call this."""
        clips = {(str(info.path), info.start_s): info for own in gather_objects(self._infos) for info in own}
        return sorted(clips.values(), key=lambda info: (info.track, info.start_s))

    def _set_values(self) -> dict[str, float]:
        values: dict[str, float] = {}
        if not self._sets:
            return values
        reasons = [one for ranks in gather_objects(self._set_reasons) for one in ranks]
        for name in self._sets:
            _log_reasons(name, Counter(reason for of, reason in reasons if of == name))
        for name, parts in _by_name(gather_objects(self._sets)).items():
            whole = parts[0]
            try:
                for part in parts[1:]:
                    whole.merge(part)
                value = whole.compute()
            except DataError as error:
                _warn("%s is left out: %s", name, error)
                continue
            if math.isfinite(value):
                values[name] = value
            else:
                _warn("%s is left out: the value is not finite", name)
        return values


def _by_name(ranks: list[dict[str, SetMetric]]) -> dict[str, list[Any]]:
    return {name: [own[name] for own in ranks] for name in ranks[0]}


def _mean(name: str, found: Mapping[Place, Measured]) -> dict[str, float]:
    """Mean over the clips that have a value, and its standard error; reasons of the others go to the log."""
    _log_reasons(name, Counter(one.reason for one in found.values() if one.reason))
    good = {place: one.value for place, one in found.items() if not one.reason}
    if not good:
        _warn("%s is left out: none of %d clips has a value", name, len(found))
        return {}
    mean = math.fsum(good.values()) / len(good)
    recordings: dict[str, list[float]] = {}
    for (path, _), value in sorted(good.items()):
        recordings.setdefault(path, []).append(value - mean)
    n = len(recordings)
    if n < 2:
        return {name: mean}
    # Clips of one recording resemble each other: their deviations add up before they are squared.
    spread = float(np.linalg.norm([math.fsum(own) for own in recordings.values()]))
    return {name: mean, f"{name}_err": math.sqrt(n / (n - 1)) * spread / len(good)}


def _log_reasons(name: str, reasons: "Counter[str]") -> None:
    for reason, count in reasons.most_common():
        _warn("%s has no value for %d clip%s: %s", name, count, "s" * (count > 1), reason)


def _warn(message: str, *args: object) -> None:
    """A line of the log, once and not on each rank."""
    if is_source():
        logger.warning(message, *args)
