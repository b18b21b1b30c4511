"""Convolutions that pad and trim themselves, with a choice of normalisation, and activations by name.

The layout (which side gets the odd sample, what happens to a ragged last window) and the parameter names are
those of EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023): its weights load.

In evaluation without gradients on a CPU, tensors [B, C, T] lie in memory as [B, T, C]: the fast kernels of oneDNN read
and write that order as it is, and copies of layout fall away. Values differ by rounding. Figures:
docs/benchmarks/codec.md.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm, weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from audiotok.errors import ConfigError, DataError

NORMS = ("none", "weight_norm", "spectral_norm", "time_group_norm")
_PAD_MODES = ("constant", "reflect", "replicate")

_Params = Mapping[str, Any] | None
_Conv = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


class _Conv1d(nn.Conv1d):
    """`nn.Conv1d` that keeps the channels last in inference."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve input [B, C, T]."""
        if self.training or not _in_inference(input) or not isinstance(self.padding, tuple):
            return super().forward(input)
        # A stride of the axis of size 1 changes nothing, but without one a kernel of one tap is not given to oneDNN.
        stride, padding, dilation = (2, *self.stride), (0, *self.padding), (1, *self.dilation)
        weight = self.weight.unsqueeze(2)
        return F.conv2d(input.unsqueeze(2), weight, self.bias, stride, padding, dilation, self.groups).squeeze(2)


class _ConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` that keeps the channels last in inference, where it is a convolution.

    With stride s, each input step adds to the s output samples that begin with it, and to some groups of s after these.
    So a convolution with s times the channels, which are s neighbouring samples, has the same output.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve input [B, C, T] to [B, C', (T - 1) * stride + kernel_size]."""
        plain = self.groups == 1 and self.padding == self.output_padding == (0,) and self.dilation == (1,)
        if self.training or not _in_inference(input) or not plain or output_size is not None:
            return super().forward(input, output_size)
        (stride,), (kernel_size,) = self.stride, self.kernel_size
        if input.numel() + stride * input.shape[2] * self.out_channels * len(input) < self.weight.numel():
            # Short clips: the layout of the samples costs less than that of the weights.
            return super().forward(input).transpose(1, 2).contiguous().transpose(1, 2)
        groups = math.ceil(kernel_size / stride)
        by_group = F.pad(self.weight, (0, groups * stride - kernel_size)).unflatten(2, (groups, stride))
        # [C, C', groups, s] -> [s * C', C, 1, groups]; an output sees the latest input last.
        weight = by_group.flip(2).permute(3, 1, 0, 2).reshape(stride * self.out_channels, -1, 1, groups)
        bias = None if self.bias is None else self.bias.repeat(stride)
        y = F.conv2d(input.unsqueeze(2), weight, bias, padding=(0, groups - 1)).squeeze(2)
        samples = y.transpose(1, 2).reshape(len(y), -1, self.out_channels).transpose(1, 2)
        return samples[..., : (input.shape[2] - 1) * stride + kernel_size]


class _NormConv(nn.Module):
    """A convolution followed by its normalisation.

    Args:
        args: positional arguments of the convolution.
        norm: one of `NORMS`.
        causal: whether the layer has to be causal, which time_group_norm cannot be.
        norm_kwargs: arguments of `nn.GroupNorm` for time_group_norm, e.g. `{"eps": 1e-5}`.
        kwargs: keyword arguments of the convolution, whose padding is 0 unless given.

    Raises:
        ConfigError: if norm is unknown, or cannot be causal with causal=True.
    """

    kind: type[_Conv]
    key = "conv"  # name of the convolution, and so of its weights, in EnCodec files

    def __init__(self, *args: Any, norm: str, causal: bool = False, norm_kwargs: _Params = None, **kwargs: Any) -> None:
        super().__init__()
        conv = self.kind(*args, **kwargs)
        self.add_module(self.key, conv)
        self.norm = _normalise(conv, norm, causal, norm_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.get_submodule(self.key)(x))
        return y


class NormConv1d(_NormConv):
    """`nn.Conv1d` followed by its normalisation."""

    kind = _Conv1d
    conv: nn.Conv1d


class NormConv2d(_NormConv):
    """`nn.Conv2d` followed by its normalisation."""

    kind = nn.Conv2d
    conv: nn.Conv2d


class NormConvTranspose1d(_NormConv):
    """`nn.ConvTranspose1d` followed by its normalisation."""

    kind, key = _ConvTranspose1d, "convtr"
    convtr: nn.ConvTranspose1d


class NormConvTranspose2d(_NormConv):
    """`nn.ConvTranspose2d` followed by its normalisation."""

    kind, key = nn.ConvTranspose2d, "convtr"
    convtr: nn.ConvTranspose2d


class StreamableConv1d(nn.Module):
    """Convolution whose output has ceil(T / stride) frames, whatever T.

    A causal layer pads on the left only. Otherwise both sides are padded and the left gets the odd sample.
    Either way the right end is extended so that the last window is full.

    Args:
        in_channels, out_channels, groups, bias: as in `nn.Conv1d`.
        kernel_size: taps; the dilated kernel must span at least one stride.
        stride: hop in samples.
        dilation: distance between taps, in samples.
        norm, norm_kwargs: see `NormConv1d`.
        pad_mode: constant, reflect or replicate.
        causal: whether frame t may only see samples before (t + 1) * stride.

    Shape:
        [B, C, T] -> [B, C', ceil(T / stride)].

    Raises:
        ConfigError: for a value outside of the above.
        DataError: if the input holds no sample.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        norm: str,
        pad_mode: str,
        causal: bool = False,
        norm_kwargs: _Params = None,
    ) -> None:
        super().__init__()
        if pad_mode not in _PAD_MODES:
            raise ConfigError(f"pad_mode={pad_mode!r}; choose one of: {', '.join(_PAD_MODES)}.")
        shape = (in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias)
        self.conv = NormConv1d(*shape, causal=causal, norm=norm, norm_kwargs=norm_kwargs)
        self.causal = causal
        self.pad_mode = pad_mode
        self.stride = stride
        self.padding = _overlap((kernel_size - 1) * dilation + 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, convolve and normalise x [B, C, T]."""
        length = x.shape[-1]
        if length == 0:
            raise DataError(f"a convolution got {list(x.shape)}: no sample to work on; give at least one.")
        right = 0 if self.causal else self.padding // 2  # the left gets the odd sample, as in EnCodec
        missing = -length % self.stride
        y: Tensor = self.conv(_pad(x, self.padding - right, right + missing, self.pad_mode))
        return y


class StreamableConvTranspose1d(nn.Module):
    """Transposed convolution whose output has exactly T * stride samples.

    Args:
        in_channels, out_channels: as in `nn.ConvTranspose1d`.
        kernel_size, stride: taps, and upsampling factor, at most as many.
        norm, norm_kwargs: see `NormConv1d`.
        causal: whether the samples that overhang are cut by `trim_right_ratio` instead of evenly.
        trim_right_ratio: share of the overhang cut on the right, in [0, 1]; below 1 the layer looks ahead.

    Shape:
        [B, C, T] -> [B, C', T * stride].

    Raises:
        ConfigError: for a value outside of the above, or a ratio below 1 on a layer that is not causal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: str,
        causal: bool = False,
        trim_right_ratio: float = 1.0,
        norm_kwargs: _Params = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= trim_right_ratio <= 1.0:
            raise ConfigError(f"trim_right_ratio={trim_right_ratio}; it is a share, from 0 to 1.")
        if trim_right_ratio != 1.0 and not causal:
            raise ConfigError(f"trim_right_ratio={trim_right_ratio} needs causal=true; leave it at 1 otherwise.")
        self.convtr = NormConvTranspose1d(
            in_channels, out_channels, kernel_size, stride, causal=causal, norm=norm, norm_kwargs=norm_kwargs
        )
        overhang = _overlap(kernel_size, stride)
        self.trim_right = math.ceil(overhang * trim_right_ratio) if causal else overhang // 2
        self.trim_left = overhang - self.trim_right

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and trim x [B, C, T]."""
        y: Tensor = self.convtr(x)
        return y[..., self.trim_left : y.shape[-1] - self.trim_right]


def make_activation(name: str, params: _Params = None) -> nn.Module:
    """A new activation: a class of torch.nn by name, with its arguments; ConfigError if either is wrong."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"activation={name!r} is no module of torch.nn; choose one such as ELU, LeakyReLU or SiLU.")
    try:
        return kind(**(params or {}))
    except TypeError as error:
        raise ConfigError(f"activation_params={dict(params or {})} do not fit {name}: {error}.") from error


def _normalise(conv: _Conv, norm: str, causal: bool, norm_kwargs: _Params) -> nn.Module:
    """Reparametrise conv in place where norm is a reparametrisation, and return the layer that has to follow it."""
    if norm not in NORMS:
        raise ConfigError(f"norm={norm!r}; choose one of: {', '.join(NORMS)}.")
    if norm == "time_group_norm":
        if causal:
            raise ConfigError(
                "norm='time_group_norm' averages over all of the time and cannot be causal; "
                "choose weight_norm, or causal=false."
            )
        return nn.GroupNorm(1, conv.out_channels, **(norm_kwargs or {}))
    if norm == "spectral_norm":
        spectral_norm(conv)
    elif norm == "weight_norm" and conv.weight.is_meta:
        # A norm of values that are not there would import torch's compiler: two seconds, and 90 MiB that stay.
        weight = conv.weight
        del conv.weight
        conv.weight_g = nn.Parameter(weight.new_empty(len(weight), *[1] * (weight.dim() - 1)))
        conv.weight_v = nn.Parameter(weight.data)
        conv.weight = weight.data
        conv.register_forward_pre_hook(WeightNorm("weight", 0))
    elif norm == "weight_norm":
        with warnings.catch_warnings():
            # The newer torch.nn.utils.parametrizations would rename weight_g and weight_v.
            warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
            weight_norm(conv)
    return nn.Identity()


def _overlap(span: int, stride: int) -> int:
    """Samples that two neighbouring windows share: the padding that keeps T / stride frames."""
    if span < stride:
        raise ConfigError(f"kernel of {span} samples with stride {stride}; the kernel must span at least the stride.")
    return span - stride


def _in_inference(x: Tensor) -> bool:
    """Whether x may have the channels last: on a CPU, without gradients, and not in a graph that is recorded."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or torch.is_grad_enabled():
        return False
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not (tracing or torch.compiler.is_compiling())


def _pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Pad the last axis, also when it is too short to be reflected."""
    if left == right == 0:
        return x
    short = max(left, right) - x.shape[-1] + 1
    if mode == "reflect" and short > 0:
        # A mirror needs more samples than it reflects: lend it zeros, and take as many away afterwards.
        padded = F.pad(F.pad(x, (0, short)), (left, right), mode)
        return padded[..., : padded.shape[-1] - short]
    if _in_inference(x):
        return _pad_channels_last(x, left, right, mode)
    return F.pad(x, (left, right), mode)


def _pad_channels_last(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """The same of x [B, C, T] by one copy into memory [B, T', C]; `F.pad` would change the order in memory."""
    batch, channels, length = x.shape
    padded = x.new_empty(batch, left + length + right, channels).transpose(1, 2)
    padded[..., left : left + length] = x
    before, after = padded[..., :left], padded[..., left + length :]
    if mode == "reflect":
        before.copy_(x[..., 1 : left + 1].flip(-1))
        after.copy_(x[..., length - 1 - right : length - 1].flip(-1))
    else:
        before.copy_(x[..., :1]) if mode == "replicate" else before.zero_()
        after.copy_(x[..., -1:]) if mode == "replicate" else after.zero_()
    return padded
