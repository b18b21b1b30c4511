"""SEANet encoder and decoder, the convolutional autoencoder of EnCodec.

Source: Tagliasacchi et al., "SEANet", Interspeech 2020; Défossez et al., "High Fidelity Neural Audio
Compression", TMLR 2023, section 3.1. Keyword names and parameter names are those of the EnCodec files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from audiotok.errors import ConfigError
from audiotok.modules.conv import StreamableConv1d, StreamableConvTranspose1d
from audiotok.modules.lstm import StreamableLSTM
from audiotok.modules.resnet import SEANetResnetBlock, make_activation


@dataclass(frozen=True, kw_only=True)
class SEANetOptions:
    """Keywords of `SEANetEncoder`, also understood by `SEANetDecoder`.

    Impossible sizes raise ConfigError here, unknown names where the layers are made.

    Args:
        channels: audio channels.
        dimension: channels of the latent.
        n_filters: channels next to the waveform; each ratio doubles them towards the latent.
        n_residual_layers: residual blocks per ratio; the j-th dilates by dilation_base ** j.
        ratios: strides in the order of the decoder; the encoder runs through them backwards.
        activation: name of a class in torch.nn, one of `audiotok.modules.ACTIVATIONS`.
        activation_params: its arguments.
        norm: one of `audiotok.modules.NORMS`.
        norm_params: arguments of the normalisation.
        kernel_size: taps of a network's first convolution.
        last_kernel_size: taps of its last one.
        residual_kernel_size: taps in the residual blocks.
        dilation_base: see n_residual_layers.
        causal: whether nothing depends on what comes later.
        pad_mode: constant, reflect or replicate.
        true_skip: see `SEANetResnetBlock`, like compress.
        compress: divisor of the channels inside the residual blocks.
        lstm: layers of the LSTM on the latent's side; 0 for none.
        disable_norm_outer_blocks: blocks without norm, counted from the waveform; each ratio is a block, and
            so are the first and the last convolution.
    """

    channels: int = 1
    dimension: int = 128
    n_filters: int = 32
    n_residual_layers: int = 3
    ratios: Sequence[int] = (8, 5, 4, 2)
    activation: str = "ELU"
    activation_params: Mapping[str, Any] | None = None
    norm: str = "none"
    norm_params: Mapping[str, Any] | None = None
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_base: int = 2
    causal: bool = False
    pad_mode: str = "reflect"
    true_skip: bool = True
    compress: int = 2
    lstm: int = 0
    disable_norm_outer_blocks: int = 0

    def __post_init__(self) -> None:
        least = {"n_residual_layers": 0, "lstm": 0, "disable_norm_outer_blocks": 0, "compress": 1}
        least |= dict.fromkeys(("channels", "dimension", "n_filters", "dilation_base"), 1)
        least |= dict.fromkeys(("kernel_size", "last_kernel_size", "residual_kernel_size"), 1)
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < smallest:
                raise ConfigError(f"seanet.{name}={value!r}; give a whole number from {smallest} up.")
        if not self.ratios or not all(isinstance(ratio, int) and ratio >= 1 for ratio in self.ratios):
            raise ConfigError(f"seanet.ratios={self.ratios!r}; give one or more whole numbers from 1 up.")
        if self.disable_norm_outer_blocks > len(self.ratios) + 2:
            raise ConfigError(
                f"seanet.disable_norm_outer_blocks={self.disable_norm_outer_blocks}; "
                f"choose from 0 to {len(self.ratios) + 2}, the number of blocks."
            )

    def act(self) -> nn.Module:
        """A new activation."""
        return make_activation(self.activation, self.activation_params)

    def common(self, block: int) -> dict[str, Any]:
        """Arguments of any convolution in a block, where block 0 touches the waveform."""
        norm = self.norm if block >= self.disable_norm_outer_blocks else "none"
        return {"norm": norm, "norm_kwargs": self.norm_params, "causal": self.causal}

    def conv(self, width_in: int, width_out: int, kernel_size: int, block: int, stride: int = 1) -> nn.Module:
        """A new convolution."""
        kwargs = self.common(block)
        return StreamableConv1d(width_in, width_out, kernel_size, stride, pad_mode=self.pad_mode, **kwargs)

    def residual_layers(self, width: int, block: int) -> list[nn.Module]:
        """The residual blocks that go with one ratio."""
        common = self.common(block)
        return [
            SEANetResnetBlock(
                width,
                kernel_sizes=(self.residual_kernel_size, 1),
                dilations=(self.dilation_base**depth, 1),
                activation=self.activation,
                activation_params=self.activation_params,
                norm=common["norm"],
                norm_params=self.norm_params,
                causal=self.causal,
                pad_mode=self.pad_mode,
                compress=self.compress,
                true_skip=self.true_skip,
            )
            for depth in range(self.n_residual_layers)
        ]


@dataclass(frozen=True, kw_only=True)
class SEANetDecoderOptions(SEANetOptions):
    """Keywords of `SEANetDecoder`: those of `SEANetOptions`, and three more.

    Args:
        final_activation: activation after everything else, e.g. Tanh; None for none.
        final_activation_params: its arguments.
        trim_right_ratio: see `StreamableConvTranspose1d`.
    """

    final_activation: str | None = None
    final_activation_params: Mapping[str, Any] | None = None
    trim_right_ratio: float = 1.0

    def upsample(self, width: int, ratio: int, block: int) -> nn.Module:
        """A new transposed convolution that halves the channels."""
        trim, kwargs = self.trim_right_ratio, self.common(block)
        return StreamableConvTranspose1d(width, width // 2, 2 * ratio, ratio, trim_right_ratio=trim, **kwargs)


class SEANetEncoder(nn.Module):
    """Waveform to latent. Its keywords are the fields of `SEANetOptions`; ConfigError for any other.

    Shape:
        wav [B, channels, T] -> latent [B, dimension, ceil(T / hop_length)].
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        opt = _parse(SEANetOptions, options)
        self.channels, self.dimension, self.hop_length = opt.channels, opt.dimension, math.prod(opt.ratios)
        width = opt.n_filters
        layers = [opt.conv(opt.channels, width, opt.kernel_size, block=0)]
        for block, ratio in enumerate(reversed(opt.ratios), start=1):
            layers += opt.residual_layers(width, block)
            layers += [opt.act(), opt.conv(width, 2 * width, 2 * ratio, block, stride=ratio)]
            width *= 2
        if opt.lstm:
            layers.append(StreamableLSTM(width, num_layers=opt.lstm))
        layers += [opt.act(), opt.conv(width, opt.dimension, opt.last_kernel_size, block=len(opt.ratios) + 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, wav: Tensor) -> Tensor:
        """Encode wav [B, C, T] into a latent [B, D, T']."""
        latent: Tensor = self.model(wav)
        return latent


class SEANetDecoder(nn.Module):
    """Latent to waveform. Its keywords are the fields of `SEANetDecoderOptions`; ConfigError for any other.

    Shape:
        latent [B, dimension, T] -> wav [B, channels, T * hop_length].
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        opt = _parse(SEANetDecoderOptions, options)
        self.channels, self.dimension, self.hop_length = opt.channels, opt.dimension, math.prod(opt.ratios)
        blocks = len(opt.ratios)
        width = opt.n_filters * 2**blocks
        layers = [opt.conv(opt.dimension, width, opt.kernel_size, block=blocks + 1)]
        if opt.lstm:
            layers.append(StreamableLSTM(width, num_layers=opt.lstm))
        for done, ratio in enumerate(opt.ratios):
            layers += [opt.act(), opt.upsample(width, ratio, block=blocks - done)]
            width //= 2
            layers += opt.residual_layers(width, block=blocks - done)
        layers += [opt.act(), opt.conv(width, opt.channels, opt.last_kernel_size, block=0)]
        if opt.final_activation is not None:
            layers.append(make_activation(opt.final_activation, opt.final_activation_params))
        self.model = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode a latent [B, D, T'] into wav [B, C, T' * hop_length]."""
        wav: Tensor = self.model(latent)
        return wav


_Options = TypeVar("_Options", bound=SEANetOptions)


def _parse(kind: type[_Options], options: dict[str, Any]) -> _Options:
    allowed = [field.name for field in fields(kind)]
    for name, value in options.items():
        if name not in allowed:
            raise ConfigError(f"seanet.{name}={value!r} is unknown; choose among: {', '.join(allowed)}.")
    return kind(**options)
