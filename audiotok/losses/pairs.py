"""What every loss on a pair of signals checks before it computes."""

import torch

from audiotok.errors import DataError


def check_pair(estimate: torch.Tensor, reference: torch.Tensor) -> None:
    """Refuse a pair that is not twice the same [B, C, T] with at least one sample.

    Raises:
        DataError: naming both shapes.
    """
    if estimate.dim() != 3 or estimate.shape != reference.shape or estimate.numel() == 0:
        raise DataError(
            f"estimate is {list(estimate.shape)} and reference {list(reference.shape)}; "
            "both must have the same shape [B, C, T] and hold samples: trim or pad one of them."
        )


def check_length(wav: torch.Tensor, minimum: int, purpose: str) -> None:
    """Refuse a signal [B, C, T] too short for what comes next.

    Raises:
        DataError: naming the length found, the one needed (in samples) and the purpose.
    """
    if wav.shape[-1] < minimum:
        raise DataError(f"a signal of {wav.shape[-1]} samples is too short; {purpose} needs {minimum} or more.")
