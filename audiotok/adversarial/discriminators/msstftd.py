"""Multi-scale STFT discriminator: 2D convolutions over complex spectrograms.

Source: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, section 3.4; parameter names as
released.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchaudio.transforms import Spectrogram

from audiotok.adversarial.discriminators.base import (
    LEAKY_RELU,
    FeatureMaps,
    MultiDiscriminator,
    make_activation,
)
from audiotok.errors import ConfigError
from audiotok.modules.conv import NormConv2d


class DiscriminatorSTFT(nn.Module):
    """Discriminator on one complex spectrogram, real and imaginary parts as channels.

    Args:
        filters: channels of the first convolution, which has no normalisation.
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        n_fft: FFT size in samples.
        hop_length: in samples.
        win_length: Hann window in samples.
        max_filters: bound on the channels.
        filters_scale: growth of the channels per dilated convolution.
        kernel_size: (time, frequency) of the first and the dilated convolutions.
        dilations: one dilated convolution each, along time.
        stride: (time, frequency) of the dilated convolutions.
        normalized: divide the STFT by the norm of its window.
        norm: normalisation of the convolutions, see `audiotok.modules.conv`.
        activation: name in torch.nn.
        activation_params: its arguments; a slope of 0.2 when None.

    Shape:
        wav [B, C, T] with T >= n_fft -> (logit [B, out_channels, frames, bins'], feature maps of the same
        layout).
    """

    def __init__(
        self,
        filters: int,
        in_channels: int = 1,
        out_channels: int = 1,
        n_fft: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        max_filters: int = 1024,
        filters_scale: int = 1,
        kernel_size: Sequence[int] = (3, 9),
        dilations: Sequence[int] = (1, 2, 4),
        stride: Sequence[int] = (1, 2),
        normalized: bool = True,
        norm: str = "weight_norm",
        activation: str = LEAKY_RELU,
        activation_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.activation = make_activation(activation, activation_params)
        self.spec_transform = Spectrogram(
            n_fft, win_length, hop_length, normalized=normalized, center=False, power=None
        )
        kernel, square = (kernel_size[0], kernel_size[1]), (kernel_size[0], kernel_size[0])
        self.convs = nn.ModuleList([NormConv2d(2 * in_channels, filters, kernel, padding=_same(kernel))])
        channels = filters
        for depth, dilation in enumerate(dilations):
            wider = min(filters_scale ** (depth + 1) * filters, max_filters)
            conv = NormConv2d(
                channels,
                wider,
                kernel,
                stride=tuple(stride),
                dilation=(dilation, 1),
                padding=_same(kernel, dilation),
                norm=norm,
            )
            self.convs.append(conv)
            channels = wider
        wider = min(filters_scale ** (len(dilations) + 1) * filters, max_filters)
        self.convs.append(NormConv2d(channels, wider, square, padding=_same(square), norm=norm))
        self.conv_post = NormConv2d(wider, out_channels, square, padding=_same(square), norm=norm)

    def forward(self, wav: torch.Tensor) -> tuple[torch.Tensor, FeatureMaps]:
        """Return the logit and the activations before it."""
        spectrum = self.spec_transform(wav)
        x = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)
        maps: FeatureMaps = []
        for conv in self.convs:
            x = self.activation(conv(x))
            maps.append(x)
        return self.conv_post(x), maps


class MultiScaleSTFTDiscriminator(MultiDiscriminator):
    """One `DiscriminatorSTFT` per FFT size.

    Args:
        filters: see `DiscriminatorSTFT`.
        in_channels: channels of the signal.
        out_channels: channels of the logits.
        sep_channels: judge every channel as a signal of its own, as if it were one more item of the batch.
        n_ffts: FFT sizes in samples.
        hop_lengths: one per FFT size, in samples.
        win_lengths: one per FFT size, in samples.
        kwargs: further arguments of `DiscriminatorSTFT`.

    Shape:
        wav [B, in_channels, T] with T >= max(n_ffts) -> (logits, feature maps), see `MultiDiscriminator`.

    Raises:
        ConfigError: if the lists differ in length or are empty.
    """

    def __init__(
        self,
        filters: int,
        in_channels: int = 1,
        out_channels: int = 1,
        sep_channels: bool = False,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (256, 512, 128),
        win_lengths: Sequence[int] = (1024, 2048, 512),
        **kwargs: Any,
    ) -> None:
        if not len(n_ffts) == len(hop_lengths) == len(win_lengths) > 0:
            counts = f"{len(n_ffts)} n_ffts, {len(hop_lengths)} hop_lengths, {len(win_lengths)} win_lengths"
            raise ConfigError(f"msstftd has {counts}; give as many of each, at least one.")
        channels = 1 if sep_channels else in_channels
        sizes = zip(n_ffts, hop_lengths, win_lengths, strict=True)
        discriminators = [DiscriminatorSTFT(filters, channels, out_channels, *size, **kwargs) for size in sizes]
        super().__init__(discriminators, in_channels, min_length=max(n_ffts))
        self.sep_channels = sep_channels

    def _views(self, wav: torch.Tensor) -> Iterator[torch.Tensor]:
        return super()._views(wav.reshape(-1, 1, wav.shape[-1]) if self.sep_channels else wav)


def _same(kernel: tuple[int, int], dilation: int = 1) -> tuple[int, int]:
    """Padding that keeps the size at stride 1, with dilation along time only."""
    return (kernel[0] - 1) * dilation // 2, (kernel[1] - 1) // 2
