"""Metrics over the clips of a stage: each once, in whatever process, with reasons for what has no value."""

import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.data import SegmentInfo
from audiotok.errors import DataError
from audiotok.solvers import clip_metrics, metric_workers
from audiotok.solvers.clip_metrics import ClipMetrics
from audiotok.solvers.metric_workers import MetricWorkers, measure, own_cpus, result_of

PLACES = [("a", 0.0), ("a", 1.0), ("b", 0.0), ("c", 0.0), ("a", 0.0), ("b", 0.0)]  # the last two are repeats


class First:
    """The first sample of the estimate; negative ones have no value."""

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        if estimate[0, 0] < 0:
            raise DataError("it is negative")
        return float(estimate[0, 0])


class Slow(First):
    """The same in a worker, which a value of 1000 kills, a signal not."""

    parallel = True

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        if estimate[0, 0] == 1000:
            os.kill(os.getpid(), signal.SIGKILL)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), signum)
        return super().__call__(estimate=estimate, reference=reference)


class Asleep(Slow):
    """Never done."""

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        time.sleep(3600)
        return 0.0


class Total:
    """Sum of the first samples of all clips."""

    needs_quantized = True

    def __init__(self) -> None:
        self.sum, self.shapes = 0.0, set[tuple[int, ...]]()

    def update(self, *, estimate: Tensor, reference: Tensor, quantized: Tensor | None) -> None:
        assert quantized is not None
        self.shapes.add(tuple(quantized.shape))
        if estimate[0, 0] < 0:
            raise DataError("it is negative")
        self.sum += float(estimate[0, 0])

    def merge(self, other: Self) -> None:
        self.sum += other.sum

    def compute(self) -> float:
        if not self.sum:
            raise DataError("no clips")
        return self.sum


def info(place: tuple[str, float], frames: int = 4) -> SegmentInfo:
    return SegmentInfo(Path(place[0]), place[1], frames, 4, 16000, place[0])


def add(measures: ClipMetrics, values: Sequence[float], places: Sequence[tuple[str, float]] = PLACES) -> None:
    clips = torch.tensor(values)[:, None, None].expand(-1, 1, 4)
    places = places[: len(values)]
    measures.add(clips, torch.zeros_like(clips), list(map(info, places)), lambda index: torch.zeros(2, 3, 5))


def test_means_are_over_clips_that_have_a_value_each_once(caplog: pytest.LogCaptureFixture) -> None:
    with ClipMetrics({"first": First()}, {"total": Total()}, clips=4) as measures:
        add(measures, [1.0, 3.0, -1.0, 8.0, 1.0, -1.0])
        found = measures.metrics()
        assert [(str(clip.path), clip.start_s) for clip in measures.infos()] == sorted(set(PLACES))
    assert found["first"] == 4 and found["total"] == 12
    # Two recordings have values: a with deviations -3 - 1, c with 4.
    assert found["first_err"] == pytest.approx(math.sqrt(2) * math.sqrt(16 + 16) / 3)
    assert caplog.messages == [
        "first has no value for 1 clip: it is negative",
        "total has no value for 1 clip: it is negative",
    ]


def test_what_no_clip_has_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with ClipMetrics({"first": First()}, {"total": Total()}, clips=4) as measures:
        add(measures, [-1.0, -2.0])
        assert measures.metrics() == {}
    assert "first is left out: none of 2 clips has a value" in caplog.messages
    assert "total is left out: no clips" in caplog.messages


def test_the_error_is_that_of_means_of_recordings_of_equal_size() -> None:
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).abs()
    places = [(name, float(start)) for name in "abcde" for start in range(4)]
    with ClipMetrics({"first": First()}, {}, clips=20) as measures:
        add(measures, values.flatten().tolist(), places)
        found = measures.metrics()
    means = values.double().mean(1).numpy()
    assert found["first"] == pytest.approx(means.mean())
    assert found["first_err"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(5))


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_clips_and_count_each_once(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]
    monkeypatch.setattr(clip_metrics, "world_size", lambda: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(clip_metrics, "rank", lambda rank=rank: rank)
        parts.append(ClipMetrics({"first": First()}, {"total": Total()}, clips=4))
        add(parts[-1], values[rank::ranks], PLACES[rank::ranks])
    gathered = {"_results": 0, "_set_reasons": 1, "_sets": 2}
    calls = iter(gathered)
    monkeypatch.setattr(clip_metrics, "gather_objects", lambda _, calls=calls: _all(parts, next(calls)))
    found = parts[0].metrics()
    assert found["first"] == 2.5 and found["total"] == 10


def _all(parts: list[ClipMetrics], name: str) -> list[Any]:
    return [getattr(part, name) for part in parts]


def test_only_what_is_audio_is_measured() -> None:
    class Length(First):
        def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
            return float(estimate.shape[-1] + reference.shape[-1])

    with ClipMetrics({"length": Length()}, {}, clips=1) as measures:
        measures.add(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), [info(("a", 0.0), frames=3)])
        assert measures.metrics() == {"length": 6}


def test_an_error_of_a_package_and_a_value_that_is_not_finite_are_reasons() -> None:
    def broken(*, estimate: Tensor, reference: Tensor) -> float:
        raise KeyError("model")

    def endless(*, estimate: Tensor, reference: Tensor) -> float:
        return math.inf

    clip = torch.zeros(1, 4)
    assert measure(First(), clip + math.nan, clip).reason == "the reconstruction is not finite"
    assert measure(broken, clip, clip).reason == "KeyError: 'model'"
    assert measure(endless, clip, clip).reason == "the value is not finite"
    assert all(math.isnan(measure(metric, clip, clip).value) for metric in (broken, endless))


def test_slow_metrics_run_in_workers_that_signals_do_not_reach_and_that_may_die(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_workers, "own_cpus", lambda: 1)
    with caplog.at_level(logging.WARNING), ClipMetrics({"slow": Slow()}, {}, clips=9) as measures:
        add(measures, [1.0, -1.0])
        assert measures.metrics() == {"slow": 1}
        add(measures, [1.0, -1.0, 1000.0])  # the first two are known
        assert measures.metrics() == {"slow": 1}
        add(measures, [3.0], [("d", 0.0)])  # in a new worker
        assert measures.metrics()["slow"] == 2
    assert "slow has no value for 1 clip: it is negative" in caplog.messages
    assert "slow has no value for 1 clip: a worker process was killed, for want of memory perhaps" in caplog.messages


def test_workers_end_with_the_block_whatever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(MetricWorkers, "close", lambda self, *, finish: ended.append(finish))
    with ClipMetrics({}, {}, clips=1):
        pass
    with pytest.raises(SystemExit), ClipMetrics({}, {}, clips=1):
        raise SystemExit(143)
    assert ended == [True, False]


def test_workers_do_not_outlive_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_workers, "own_cpus", lambda: 1)
    with pytest.raises(SystemExit), ClipMetrics({"asleep": Asleep()}, {}, clips=4) as measures:
        add(measures, [1.0, 2.0])
        raise SystemExit(143)
    assert not [child for child in multiprocessing.active_children() if isinstance(child, SpawnProcess)]


def test_cpus_are_shared_by_ranks_that_may_use_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert own_cpus() == 8
    monkeypatch.setattr(metric_workers, "gather_objects", lambda own: [own, own, ("elsewhere", own[1])])
    assert own_cpus() == 4


def test_a_broken_pool_is_a_reason() -> None:
    class Broken:
        def result(self) -> None:
            raise BrokenProcessPool

    assert "killed" in result_of(Broken()).reason  # type: ignore[arg-type]
