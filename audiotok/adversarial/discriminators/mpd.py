"""Multi-period discriminator: 2D convolutions over the signal folded at several periods.

Source: Kong et al., "HiFi-GAN", NeurIPS 2020, section 2.3; parameter names as in AudioCraft.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from audiotok.adversarial.discriminators.base import (
    LEAKY_RELU,
    FeatureMaps,
    MultiDiscriminator,
    make_activation,
)
from audiotok.modules.conv import NormConv2d


class PeriodDiscriminator(nn.Module):
    """Discriminator on the signal folded into rows of `period` samples; convolutions run along the columns.

    Args:
        period: samples per row.
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        n_layers: convolutions before the last; all but the last of them are strided.
        kernel_sizes: taps of these and of the last convolution.
        stride: of the strided convolutions.
        filters: channels grow as filters * filters_scale^(depth + 1).
        filters_scale: growth of the channels.
        max_filters: bound on the channels.
        norm: normalisation of the convolutions, see `audiotok.modules.conv`.
        activation: name in torch.nn.
        activation_params: its arguments; a slope of 0.2 when None.

    Shape:
        wav [B, C, T] with T >= period -> (logit [B, out_channels, rows', period], feature maps, the logit
        last).
    """

    def __init__(
        self,
        period: int,
        in_channels: int = 1,
        out_channels: int = 1,
        n_layers: int = 5,
        kernel_sizes: Sequence[int] = (5, 3),
        stride: int = 3,
        filters: int = 8,
        filters_scale: int = 4,
        max_filters: int = 1024,
        norm: str = "weight_norm",
        activation: str = LEAKY_RELU,
        activation_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.activation = make_activation(activation, activation_params)
        self.period = period
        inner, last = kernel_sizes
        self.convs = nn.ModuleList()
        channels = in_channels
        for depth in range(n_layers):
            wider = min(filters * filters_scale ** (depth + 1), max_filters)
            hop = 1 if depth == n_layers - 1 else stride
            padding = ((inner - 1) // 2, 0)
            self.convs.append(NormConv2d(channels, wider, (inner, 1), stride=(hop, 1), padding=padding, norm=norm))
            channels = wider
        padding = ((last - 1) // 2, 0)
        self.conv_post = NormConv2d(channels, out_channels, (last, 1), padding=padding, norm=norm)

    def forward(self, wav: torch.Tensor) -> tuple[torch.Tensor, FeatureMaps]:
        """Return the logit, and the activations with the logit as their last."""
        missing = -wav.shape[-1] % self.period
        x = F.pad(wav, (0, missing), mode="reflect") if missing else wav
        x = x.reshape(*x.shape[:2], -1, self.period)
        maps: FeatureMaps = []
        for conv in self.convs:
            x = self.activation(conv(x))
            maps.append(x)
        logit = self.conv_post(x)
        return logit, [*maps, logit]


class MultiPeriodDiscriminator(MultiDiscriminator):
    """One `PeriodDiscriminator` per period.

    Args:
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        periods: in samples.
        kwargs: further arguments of `PeriodDiscriminator`.

    Shape:
        wav [B, in_channels, T] with T >= max(periods) -> (logits, feature maps), see `MultiDiscriminator`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        **kwargs: Any,
    ) -> None:
        discriminators = [PeriodDiscriminator(p, in_channels, out_channels, **kwargs) for p in periods]
        super().__init__(discriminators, in_channels, min_length=max(periods, default=1))
