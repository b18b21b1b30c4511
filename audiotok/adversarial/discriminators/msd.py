"""Multi-scale discriminator: grouped, strided 1D convolutions over the signal at several sample rates.

Source: Kumar et al., "MelGAN", NeurIPS 2019, section 2.2; parameter names as in AudioCraft. There, every
scale sees the signal at its full rate because the result of the downsampling is dropped; here each scale sees
it downsampled.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from audiotok.adversarial.discriminators.base import (
    LEAKY_RELU,
    FeatureMaps,
    MultiDiscriminator,
    make_activation,
)
from audiotok.errors import ConfigError
from audiotok.modules.conv import NormConv1d


class ScaleDiscriminator(nn.Module):
    """Discriminator on a waveform.

    Args:
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        kernel_sizes: two odd numbers: their product is the first kernel, each of them one of the last two.
        filters: channels of the first convolution.
        max_filters: bound on the channels.
        downsample_scales: one inner convolution each: growth of its channels and default stride.
        inner_kernel_sizes: taps of the inner convolutions; 10 * scale + 1 when None.
        groups: groups of the inner convolutions; a quarter of their input channels when None.
        strides: of the inner convolutions; the scales when None.
        paddings: of the inner convolutions; half the default kernel when None.
        norm: normalisation of the convolutions, see `audiotok.modules.conv`.
        activation: name in torch.nn.
        activation_params: its arguments; a slope of 0.2 when None.
        pad: padding module of torch.nn before the first convolution.
        pad_params: its further arguments.

    Shape:
        wav [B, C, T] -> (logit [B, out_channels, T'], feature maps, the logit last).

    Raises:
        ConfigError: if kernel_sizes are not two odd numbers or a list has not one value per downsampling
            scale.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        kernel_sizes: Sequence[int] = (5, 3),
        filters: int = 16,
        max_filters: int = 1024,
        downsample_scales: Sequence[int] = (4, 4, 4, 4),
        inner_kernel_sizes: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        paddings: Sequence[int] | None = None,
        norm: str = "weight_norm",
        activation: str = LEAKY_RELU,
        activation_params: Mapping[str, Any] | None = None,
        pad: str = "ReflectionPad1d",
        pad_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(kernel_sizes, downsample_scales, inner_kernel_sizes, groups, strides, paddings)
        self.activation = make_activation(activation, activation_params)
        first = kernel_sizes[0] * kernel_sizes[1]
        padding = getattr(nn, pad)((first - 1) // 2, **(pad_params or {}))
        head = nn.Sequential(padding, NormConv1d(in_channels, filters, first, norm=norm))
        self.convs = nn.ModuleList([head])
        channels = filters
        for i, scale in enumerate(downsample_scales):
            wider = min(channels * scale, max_filters)
            conv = NormConv1d(
                channels,
                wider,
                inner_kernel_sizes[i] if inner_kernel_sizes else 10 * scale + 1,
                stride=strides[i] if strides else scale,
                padding=paddings[i] if paddings else 5 * scale,
                groups=groups[i] if groups else channels // 4,
                norm=norm,
            )
            self.convs.append(conv)
            channels = wider
        wider = min(channels * 2, max_filters)
        a, b = kernel_sizes
        self.convs.append(NormConv1d(channels, wider, a, padding=(a - 1) // 2, norm=norm))
        self.conv_post = NormConv1d(wider, out_channels, b, padding=(b - 1) // 2, norm=norm)

    def forward(self, wav: torch.Tensor) -> tuple[torch.Tensor, FeatureMaps]:
        """Return the logit, and the activations with the logit as their last."""
        maps: FeatureMaps = []
        x = wav
        for conv in self.convs:
            x = self.activation(conv(x))
            maps.append(x)
        logit = self.conv_post(x)
        return logit, [*maps, logit]


class MultiScaleDiscriminator(MultiDiscriminator):
    """One `ScaleDiscriminator` per scale; scale i sees the signal averaged and decimated i times.

    Args:
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        downsample_factor: decimation from one scale to the next, averaged over twice as many samples.
        scale_norms: normalisation of each scale; their number is the number of scales.
        kwargs: further arguments of `ScaleDiscriminator`.

    Shape:
        wav [B, in_channels, T] -> (logits, feature maps), see `MultiDiscriminator`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        downsample_factor: int = 2,
        scale_norms: Sequence[str] = ("weight_norm", "weight_norm", "weight_norm"),
        kernel_sizes: Sequence[int] = (5, 3),
        **kwargs: Any,
    ) -> None:
        discriminators = [
            ScaleDiscriminator(in_channels, out_channels, kernel_sizes, norm=norm, **kwargs) for norm in scale_norms
        ]
        # The first kernel mirrors half of itself at each end of the most decimated signal.
        decimation = downsample_factor ** (len(discriminators) - 1) if discriminators else 1
        super().__init__(discriminators, in_channels, kernel_sizes[0] * kernel_sizes[1] // 2 * decimation + 1)
        self.downsample = nn.AvgPool1d(2 * downsample_factor, downsample_factor, padding=downsample_factor)

    def _views(self, wav: torch.Tensor) -> Iterator[torch.Tensor]:
        for index in range(self.num_discriminators):
            if index:
                wav = self.downsample(wav)
            yield wav


def _check_sizes(kernel_sizes: Sequence[int], downsample_scales: Sequence[int], *lists: Sequence[int] | None) -> None:
    if len(kernel_sizes) != 2 or any(size % 2 == 0 for size in kernel_sizes):
        raise ConfigError(f"msd.kernel_sizes={list(kernel_sizes)}; give two odd numbers.")
    wrong = [list(values) for values in lists if values and len(values) != len(downsample_scales)]
    if wrong:
        raise ConfigError(
            f"msd has lists {wrong} beside downsample_scales={list(downsample_scales)}; "
            "inner_kernel_sizes, groups, strides and paddings take one value per scale, or null."
        )
