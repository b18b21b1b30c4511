"""The few collectives that keep codebooks identical on every rank; they do nothing in a single process.

A collective hangs unless all ranks reach it, so callers decide on values that are the same everywhere.
"""

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_source() -> bool:
    """Whether this process is the one whose choices count."""
    return not is_distributed() or distributed.get_rank() == 0


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
    """Random number in [low, high], the same on every rank; device is where collectives work."""
    draw = torch.randint(low, high + 1, (1,))
    if is_distributed():
        draw = take_from_source_(draw.to(device))
    return int(draw)
