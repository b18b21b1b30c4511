"""Batches for one process: which indices it takes, how they travel to the workers, how errors come back."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

from torch.utils.data import DataLoader, Sampler

from audiotok.data.dataset import AudioDataset
from audiotok.data.segments import Batch, Item, collate
from audiotok.errors import ConfigError, DataError


class AudioLoader:
    """Batches [B, C, T] of one process's share of a dataset.

    A thin wrapper around a DataLoader: `set_epoch` reaches the sampler, and an error raised in a worker comes
    out as the same one-line DataError that it is without workers.
    """

    def __init__(self, dataset: AudioDataset, sampler: "ShardSampler", build: Callable[[], DataLoader[Item]]) -> None:
        self.dataset = dataset
        self._sampler = sampler
        self._build = build
        self._loader = build()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many of its batches are passed over without reading."""
        self.dataset.set_epoch(epoch)
        self._sampler.start = start

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._loader
            return
        except DataError as err:
            # A worker's error arrives with the worker's whole traceback as its message.
            message = str(err).rsplit("DataError: ", 1)[-1].strip()
            err.__traceback__ = None
        # Without the traceback, and outside the handler, nothing else holds the old loader: its workers end
        # here and at once. Left to the garbage collector they take torch's 5 s timeout to go.
        self._loader = self._build()
        raise DataError(message)


class ShardSampler(Sampler[tuple[int, int]]):
    """The (epoch, index) pairs of one process: every `world_size`-th index, as many for each process.

    Indices that do not divide evenly are either dropped (down to whole batches everywhere) or filled up by
    repeating the first ones (up to the same count everywhere).
    """

    def __init__(self, dataset: AudioDataset, *, batch_size: int, world_size: int, rank: int, drop_last: bool) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.world_size = world_size
        self.rank = rank
        self.start = 0  # batches to pass over
        unit = world_size * batch_size if drop_last else world_size
        whole = len(dataset) // unit if drop_last else math.ceil(len(dataset) / unit)
        self.total = whole * unit

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.dataset.epoch
        order = self.dataset.order(epoch)
        first = self.rank + self.start * self.batch_size * self.world_size
        for position in range(first, self.total, self.world_size):
            yield epoch, order[position % len(order)]


def shield_worker(worker_id: int) -> None:
    """Let a data worker outlive the signals that ask the trainer, or its whole process group, to stop.

    The trainer still reads until the step at hand is done; torch would turn the death of a worker into an error in the
    middle of it. Only the trainer itself ends its workers, which the sender of the signal tells.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform != "linux":  # others do not tell the sender
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def get_loader(
    dataset: AudioDataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    world_size: int = 1,
    rank: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> AudioLoader:
    """A loader over one process's share of a dataset.

    Args:
        dataset: with the same seed and epoch in every process.
        batch_size: per process: an update sees batch_size × world_size segments.
        num_workers: processes that read; 0 reads in this one. They persist over epochs.
        world_size: number of training processes.
        rank: of this one; it takes indices rank, rank + world_size, … All ranks get the same number of
            batches.
        drop_last: True drops what does not fill a batch in every process. False keeps all (the last batch
            may be smaller) and repeats up to world_size - 1 of the first indices, so that all ranks have as
            many.
        pin_memory: put batches where a GPU can fetch them.

    Raises:
        ConfigError: for a value out of its range, or if `drop_last` leaves no batch.
    """
    if batch_size < 1 or num_workers < 0 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size={batch_size}, num_workers={num_workers}, rank={rank}, world_size={world_size}: "
            "expected batch_size >= 1, num_workers >= 0 and 0 <= rank < world_size."
        )
    sampler = ShardSampler(dataset, batch_size=batch_size, world_size=world_size, rank=rank, drop_last=drop_last)
    if len(sampler) == 0:
        raise ConfigError(
            f"num_samples={len(dataset)} does not fill one batch of {batch_size} in each of {world_size} "
            "processes, and drop_last leaves out the rest: raise num_samples or lower batch_size."
        )
    build = partial(
        DataLoader,
        dataset,
        batch_size=batch_size,
        sampler=cast("Sampler[int]", sampler),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=shield_worker,
        collate_fn=collate,
        pin_memory=pin_memory,
    )
    return AudioLoader(dataset, sampler, build)
