"""Collectives that flashy does not have; they do nothing in a single process.

A collective hangs unless all ranks reach it, so callers decide on values that are the same everywhere.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return distributed.get_rank() if is_distributed() else 0


def is_distributed() -> bool:
    """Whether several processes train together."""
    return world_size() > 1


def is_source() -> bool:
    """Whether this process is the one whose choices count."""
    return rank() == 0


def sum_over_ranks_(tensor: Tensor) -> Tensor:
    """Replace tensor by its sum over all ranks."""
    if is_distributed():
        distributed.all_reduce(tensor)
    return tensor


def take_from_source_(tensor: Tensor) -> Tensor:
    """Replace tensor by the one of rank 0."""
    if is_distributed():
        distributed.broadcast(tensor, src=0)
    return tensor


def shared_randint(low: int, high: int, device: torch.device) -> int:
    """Random number in [low, high], the same on every rank; `device`: where collectives work."""
    draw = torch.randint(low, high + 1, (1,))
    if is_distributed():
        draw = take_from_source_(draw.to(device))
    return int(draw)


def gather_objects(own: Any) -> list[Any]:
    """Small object of each rank, in their order, the same list on all of them."""
    if not is_distributed():
        return [own]
    objects: list[Any] = [None] * world_size()
    distributed.all_gather_object(objects, own)
    return objects


def object_of_source(own: Any) -> Any:
    """Small object of rank 0; the other ranks wait for it."""
    if not is_distributed():
        return own
    box = [own]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


class Agreement:
    """The largest request of all ranks, received by all of them at the same call.

    A call starts an exchange and returns the result of the one before, so that no rank waits and no device is
    synchronised: a request of one step arrives at the next. A single process gets its own at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._underway: tuple[distributed.Work, Tensor] | None = None

    def __call__(self, request: int) -> int:
        """Request a number, 0 for nothing; every rank must call this equally often."""
        if not is_distributed():
            return request
        result = self.finish()
        box = torch.full((1,), request, dtype=torch.int32, device=self.device)
        work = distributed.all_reduce(box, distributed.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._underway = work, box
        return result

    def finish(self) -> int:
        """Wait for the exchange under way, if any."""
        if self._underway is None:
            return 0
        (work, box), self._underway = self._underway, None
        work.wait()
        return int(box)


def gather_clips(clips: Tensor) -> Tensor:
    """Clips of all ranks, in the order in which one process would have read them, without graph.

    Clip j of rank r becomes clip j * world_size + r, as a loader deals the data set out; `own_clips` is the inverse.

    Args:
        clips: [B, ...], of the same shape on every rank, on a device where collectives work.

    Returns:
        [B * world_size, ...], the same on every rank.
    """
    clips = clips.detach()
    if not is_distributed():
        return clips
    ranks = [torch.empty_like(clips, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(ranks, clips.contiguous())
    return torch.stack(ranks, dim=1).flatten(0, 1)


def own_clips(clips: Tensor) -> Tensor:
    """This rank's part [B, ...] of gathered clips [B * world_size, ...]."""
    return clips[distributed.get_rank() :: world_size()] if is_distributed() else clips
