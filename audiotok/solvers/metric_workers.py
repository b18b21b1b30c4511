"""Processes that compute slow metrics of clips beside the trainer."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from audiotok.data.dataset import shield_worker
from audiotok.distributed import gather_objects
from audiotok.errors import DataError, first_line
from audiotok.metrics.quality import SignalMetric

_PENDING = 3  # clips for each worker that wait or are computed: more would only take memory
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

Clip = NDArray[np.float32]


class Measured(NamedTuple):
    """Value of a metric of a clip, or why there is none."""

    value: float  # finite, or NaN
    reason: str  # empty if there is a value


def measure(metric: SignalMetric, estimate: torch.Tensor, reference: torch.Tensor) -> Measured:
    """Value of a clip [C, T], or why there is none: one clip, or one package, must not end a training of days."""
    if not bool(torch.isfinite(estimate).all()):
        return Measured(float("nan"), "the reconstruction is not finite")
    try:
        value = metric(estimate=estimate, reference=reference)
    except DataError as error:
        return Measured(float("nan"), first_line(error))
    except Exception as error:  # of a package that a metric wraps
        return Measured(float("nan"), f"{type(error).__name__}: {first_line(error)}")
    return Measured(value, "") if np.isfinite(value) else Measured(float("nan"), "the value is not finite")


class MetricWorkers:
    """Worker processes, started as clips come and ended with the block; every rank must make one.

    Stop signals do not reach them, and they end with their parent, however it ends.

    Args:
        metrics: by name.
    """

    def __init__(self, metrics: Mapping[str, SignalMetric]) -> None:
        self._metrics = dict(metrics)
        self._count = own_cpus() if metrics else 0
        self._pool: ProcessPoolExecutor | None = None
        self._pending: set[Future[Measured]] = set()

    def submit(self, name: str, estimate: torch.Tensor, reference: torch.Tensor) -> "Future[Measured]":
        """Compute a metric of a clip [C, T]; waits where enough clips do."""
        while len(self._pending) >= _PENDING * self._count:
            self._pending = wait(self._pending, return_when=FIRST_COMPLETED).not_done
        clips = estimate.numpy(), reference.numpy()  # tensors would travel through shared memory, which is small
        try:
            future = self._submit(name, *clips)
        except BrokenProcessPool:  # a worker was killed: its clips have no value, the next ones get new workers
            self._pool = None
            future = self._submit(name, *clips)
        self._pending.add(future)
        return future

    def _submit(self, name: str, estimate: Clip, reference: Clip) -> "Future[Measured]":
        if self._pool is None:
            # Not forked: this process has threads and maybe a GPU, which a fork would break.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, _begin, (self._metrics,))
        with _signals_blocked():  # by the workers too, which are started here, from their first moment
            return self._pool.submit(_measure_in_worker, name, estimate, reference)

    def close(self, *, finish: bool) -> None:
        """End the workers; without `finish`, at once, whatever they are at."""
        if self._pool is not None:
            for child in [] if finish else multiprocessing.active_children():
                if isinstance(child, SpawnProcess):  # data workers are of another kind
                    child.kill()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def result_of(future: "Future[Measured]") -> Measured:
    """What a worker has found; waits for it."""
    try:
        return future.result()
    except BrokenProcessPool:
        return Measured(float("nan"), "a worker process was killed, for want of memory perhaps")


def own_cpus() -> int:
    """CPUs of this process, shared evenly with the ranks that may use the same ones; every rank must call this."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    own = socket.gethostname(), sorted(usable)
    return max(1, len(own[1]) // gather_objects(own).count(own))


_METRICS: dict[str, SignalMetric] = {}  # of a worker


def _begin(metrics: dict[str, SignalMetric]) -> None:
    shield_worker(0)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(1)
    _METRICS.update(metrics)


def _end_with(sentinel: int) -> None:
    wait_for_end([sentinel])
    os._exit(0)


def _measure_in_worker(name: str, estimate: Clip, reference: Clip) -> Measured:
    return measure(_METRICS[name], torch.from_numpy(estimate), torch.from_numpy(reference))


@contextmanager
def _signals_blocked() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
