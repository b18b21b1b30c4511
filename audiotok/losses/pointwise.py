"""Losses that compare two signals sample by sample."""

import torch
from torch import nn
from torch.nn import functional as F

from audiotok.losses.pairs import check_pair


class L1Loss(nn.Module):
    """Mean absolute difference; 0 for identical signals, lower is better.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.
    """

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss; DataError if the shapes differ."""
        check_pair(estimate, reference)
        return F.l1_loss(estimate, reference)


class L2Loss(nn.Module):
    """Mean squared difference; 0 for identical signals, lower is better.

    Shape:
        estimate [B, C, T], reference [B, C, T] -> scalar.
    """

    def forward(self, *, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the loss; DataError if the shapes differ."""
        check_pair(estimate, reference)
        return F.mse_loss(estimate, reference)
