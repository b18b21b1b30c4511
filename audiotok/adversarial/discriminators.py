"""Discriminators on waveforms and spectrograms; each maps wav [B, C, T] to (logits, feature maps).

Sources: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, section 3.4 (multi-scale STFT); Kong et
al., "HiFi-GAN", NeurIPS 2020, section 2.3 (multi-period); Kumar et al., "MelGAN", NeurIPS 2019, section 2.2
(multi-scale). Parameter names are AudioCraft's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.transforms import Spectrogram

from audiotok.errors import ConfigError, DataError
from audiotok.modules.conv import NormConv1d, NormConv2d, make_activation

FeatureMaps = list[torch.Tensor]
DiscriminatorOutput = tuple[list[torch.Tensor], list[FeatureMaps]]
_SLOPE = MappingProxyType({"negative_slope": 0.3})


class MultiDiscriminator(nn.Module):
    """Sub-discriminators that each judge a view of the same signal of at least `min_length` samples.

    Shape:
        wav [B, in_channels, T] -> (logits, feature maps): of each sub-discriminator a tensor, and a list of tensors.

    Raises:
        ConfigError: without sub-discriminators.
        DataError: if the signal has another number of channels or is too short.
    """

    def __init__(self, discriminators: Iterable[nn.Module], in_channels: int, min_length: int = 1) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)
        self.in_channels = in_channels
        self.min_length = min_length
        if not self.discriminators:
            raise ConfigError(f"{type(self).__name__} has no sub-discriminator; give at least one scale or period.")

    @property
    def num_discriminators(self) -> int:
        """Number of sub-discriminators."""
        return len(self.discriminators)

    def forward(self, wav: torch.Tensor) -> DiscriminatorOutput:
        """Judge wav with every sub-discriminator."""
        if wav.dim() != 3 or wav.shape[1] != self.in_channels or wav.shape[2] < self.min_length:
            raise DataError(
                f"{type(self).__name__} got {list(wav.shape)}; "
                f"expected [B, {self.in_channels}, T] with T of {self.min_length} samples or more."
            )
        logits, maps = [], []
        for discriminator, view in zip(self.discriminators, self._views(wav), strict=True):
            logit, features = discriminator(view)
            logits.append(logit)
            maps.append(features)
        return logits, maps

    def _views(self, wav: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what each sub-discriminator sees: by default the signal itself."""
        for _ in self.discriminators:
            yield wav


class DiscriminatorSTFT(nn.Module):
    """Discriminator on one complex spectrogram, real and imaginary parts as channels.

    Args:
        filters: channels of the first convolution, which has no normalisation.
        in_channels, out_channels: of the signal and of the logits.
        n_fft, hop_length, win_length: FFT size, hop and Hann window in samples.
        max_filters, filters_scale: bound on the channels, and their growth per dilated convolution.
        kernel_size: (time, frequency) of the first and the dilated convolutions.
        dilations: one dilated convolution each, along time.
        stride: (time, frequency) of the dilated convolutions.
        normalized: divide the STFT by the norm of its window.
        norm: normalisation of the convolutions, see `audiotok.modules.conv`.
        activation, activation_params: name in torch.nn, and its arguments.

    Shape:
        wav [B, C, T] with T >= n_fft -> (logit [B, out_channels, frames, bins'], feature maps of the same layout).
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
        activation: str = "LeakyReLU",
        activation_params: Mapping[str, Any] | None = _SLOPE,
    ) -> None:
        super().__init__()
        self.activation = _in_place(make_activation(activation, activation_params))
        self.spec_transform = Spectrogram(
            n_fft, win_length, hop_length, normalized=normalized, center=False, power=None
        )
        kernel, square = (kernel_size[0], kernel_size[1]), (kernel_size[0], kernel_size[0])
        # EnCodec leaves the first convolution without normalisation; its weights would not fit otherwise.
        self.convs = nn.ModuleList([NormConv2d(2 * in_channels, filters, kernel, padding=_same(kernel), norm="none")])
        channels, self.fast = filters, filters % 16 == 0
        for depth, dilation in enumerate(dilations):
            wider = min(filters_scale ** (depth + 1) * filters, max_filters)
            padding = _same(kernel, dilation)
            self.convs.append(NormConv2d(channels, wider, kernel, tuple(stride), padding, (dilation, 1), norm=norm))
            channels = wider
        wider = min(filters_scale ** (len(dilations) + 1) * filters, max_filters)
        self.convs.append(NormConv2d(channels, wider, square, padding=_same(square), norm=norm))
        self.conv_post = NormConv2d(wider, out_channels, square, padding=_same(square), norm=norm)

    def forward(self, wav: torch.Tensor) -> tuple[torch.Tensor, FeatureMaps]:
        """Return the logit and the activations before it."""
        parts = torch.view_as_real(self._spectrum(wav))  # [B, C, F, T, 2]
        x = parts.permute(0, 4, 1, 3, 2).flatten(1, 2)  # [B, 2C, T, F]: time before frequency, as in EnCodec
        # The layout in which convolutions of 16, 32 … channels are fastest; with fewer it is by far slower on a CPU.
        x = x.contiguous(memory_format=torch.channels_last if self.fast else torch.contiguous_format)
        x, maps = _activations(x, self.convs, self.activation)
        return self.conv_post(x), maps  # the logit is no feature map here, unlike in the other two: as in AudioCraft

    def _spectrum(self, wav: torch.Tensor) -> torch.Tensor:
        """What `spec_transform` returns, [B, C, F, T], in operations that torch.compile can follow."""
        stft, flat = self.spec_transform, wav.reshape(-1, wav.shape[-1])
        sizes = stft.n_fft, stft.hop_length, stft.win_length
        spectrum = torch.stft(flat, *sizes, stft.window, center=False, return_complex=True)
        if stft.normalized:
            spectrum = spectrum / stft.window.square().sum().sqrt()
        return spectrum.reshape(*wav.shape[:-1], *spectrum.shape[-2:])


class MultiScaleSTFTDiscriminator(MultiDiscriminator):
    """One `DiscriminatorSTFT`, whose arguments it takes, per FFT size.

    Args:
        filters, in_channels, out_channels, kwargs: see `DiscriminatorSTFT`.
        sep_channels: judge every channel as a signal of its own, as if it were one more item of the batch.
        n_ffts, hop_lengths, win_lengths: one of each per sub-discriminator, in samples.

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
        n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128),
        hop_lengths: Sequence[int] = (256, 512, 128, 64, 32),
        win_lengths: Sequence[int] = (1024, 2048, 512, 256, 128),
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


class PeriodDiscriminator(nn.Module):
    """Discriminator on the signal folded into rows of `period` samples; convolutions run along the columns.

    Args:
        period: samples per row.
        in_channels, out_channels, norm, activation, activation_params: see `DiscriminatorSTFT`.
        n_layers: convolutions before the last; all but the last of them are strided.
        kernel_sizes: taps of these and of the last convolution.
        stride: of the strided convolutions.
        filters, filters_scale, max_filters: channels are filters * filters_scale^(depth + 1), at most max_filters.

    Shape:
        wav [B, C, T] with T >= period -> (logit [B, out_channels, rows', period], feature maps, the logit last).
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
        activation: str = "LeakyReLU",
        activation_params: Mapping[str, Any] | None = _SLOPE,
    ) -> None:
        super().__init__()
        self.activation = _in_place(make_activation(activation, activation_params))
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
        x, maps = _activations(x.reshape(*x.shape[:2], -1, self.period), self.convs, self.activation)
        logit = self.conv_post(x)
        return logit, [*maps, logit]


class MultiPeriodDiscriminator(MultiDiscriminator):
    """One `PeriodDiscriminator`, whose arguments it takes, per period (in samples).

    Shape:
        wav [B, in_channels, T] with T >= max(periods) -> (logits, feature maps), see `MultiDiscriminator`.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, periods: Sequence[int] = (2, 3, 5, 7, 11), **kwargs: Any
    ) -> None:
        discriminators = [PeriodDiscriminator(p, in_channels, out_channels, **kwargs) for p in periods]
        super().__init__(discriminators, in_channels, min_length=max(periods, default=1))


class ScaleDiscriminator(nn.Module):
    """Discriminator on a waveform.

    Args:
        in_channels, out_channels, norm, activation, activation_params: see `DiscriminatorSTFT`.
        kernel_sizes: two odd numbers: their product is the first kernel, each of them one of the last two.
        filters, max_filters: channels of the first convolution, and a bound on those of all.
        downsample_scales: one inner convolution each: growth of its channels and default stride.
        inner_kernel_sizes: taps of the inner convolutions; 10 * scale + 1 when None.
        groups: groups of the inner convolutions; a quarter of their input channels when None.
        strides: of the inner convolutions; the scales when None.
        paddings: of the inner convolutions; half the default kernel when None.
        pad, pad_params: padding module of torch.nn before the first convolution, and its further arguments.

    Shape:
        wav [B, C, T] -> (logit [B, out_channels, T'], feature maps, the logit last).

    Raises:
        ConfigError: if kernel_sizes are not two odd numbers or a list has not one value per downsampling scale.
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
        groups: Sequence[int] | None = (4, 4, 4, 4),
        strides: Sequence[int] | None = None,
        paddings: Sequence[int] | None = None,
        norm: str = "weight_norm",
        activation: str = "LeakyReLU",
        activation_params: Mapping[str, Any] | None = _SLOPE,
        pad: str = "ReflectionPad1d",
        pad_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_scales(kernel_sizes, downsample_scales, inner_kernel_sizes, groups, strides, paddings)
        self.activation = _in_place(make_activation(activation, activation_params))
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
        x, maps = _activations(wav, self.convs, self.activation)
        logit = self.conv_post(x)
        return logit, [*maps, logit]


class MultiScaleDiscriminator(MultiDiscriminator):
    """One `ScaleDiscriminator`, whose arguments it takes, per scale; scale i sees the signal decimated i times.

    In AudioCraft every scale sees the signal at its full rate, because the result of the downsampling is dropped.

    Args:
        in_channels, out_channels, kernel_sizes, kwargs: see `ScaleDiscriminator`.
        downsample_factor: decimation from one scale to the next, averaged over twice as many samples.
        scale_norms: normalisation of each scale; their number is the number of scales.

    Shape:
        wav [B, in_channels, T] -> (logits, feature maps), see `MultiDiscriminator`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        downsample_factor: int = 2,
        scale_norms: Sequence[str] = ("spectral_norm", "weight_norm", "weight_norm"),
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
        yield wav
        for _ in self.discriminators[1:]:
            wav = self.downsample(wav)
            yield wav


def _activations(x: torch.Tensor, convs: nn.ModuleList, activation: nn.Module) -> tuple[torch.Tensor, FeatureMaps]:
    """Run x through the convolutions, each with its activation; returns the last result and all of them."""
    maps: FeatureMaps = []
    for conv in convs:
        x = activation(conv(x))
        maps.append(x)
    return x, maps


def _in_place(activation: nn.Module) -> nn.Module:
    """The same activation, which overwrites its input: no convolution needs its own output again."""
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope > 0:  # the sign is still there afterwards
        activation.inplace = True
    return activation


def _same(kernel: tuple[int, int], dilation: int = 1) -> tuple[int, int]:
    """Padding that keeps the size at stride 1, with dilation along time only."""
    return (kernel[0] - 1) * dilation // 2, (kernel[1] - 1) // 2


def _check_scales(kernel_sizes: Sequence[int], downsample_scales: Sequence[int], *lists: Sequence[int] | None) -> None:
    if len(kernel_sizes) != 2 or any(size % 2 == 0 for size in kernel_sizes):
        raise ConfigError(f"msd.kernel_sizes={list(kernel_sizes)}; give two odd numbers.")
    wrong = [list(values) for values in lists if values and len(values) != len(downsample_scales)]
    if wrong:
        raise ConfigError(
            f"msd has lists {wrong} beside downsample_scales={list(downsample_scales)}; "
            "inner_kernel_sizes, groups, strides and paddings take one value per scale, or null."
        )
