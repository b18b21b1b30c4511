"""SEANet encoder and decoder, the convolutional autoencoder of EnCodec.

Sources: Tagliasacchi et al., "SEANet", Interspeech 2020; Défossez et al., "High Fidelity Neural Audio Compression",
TMLR 2023, section 3.1; Demucs v3, Défossez, 2021 (bottleneck of the residual blocks). Keyword names and parameter names
are those of the EnCodec files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from audiotok.errors import ConfigError
from audiotok.modules.conv import StreamableConv1d, StreamableConvTranspose1d, make_activation
from audiotok.modules.lstm import StreamableLSTM


class SEANetResnetBlock(nn.Module):
    """Residual block: a bottleneck of convolutions beside a skip connection.

    Args:
        dim: channels of input and output.
        kernel_sizes, dilations: of each convolution.
        activation, activation_params: see `make_activation`.
        norm, norm_params, causal, pad_mode: see `StreamableConv1d`.
        compress: the bottleneck has dim // compress channels.
        true_skip: whether the skip is the identity; a convolution of one tap otherwise.

    Shape:
        [B, dim, T] -> [B, dim, T].

    Raises:
        ConfigError: if the two lists differ in length, compress leaves no channel, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_sizes: Sequence[int],
        dilations: Sequence[int],
        activation: str,
        activation_params: Mapping[str, Any] | None,
        norm: str,
        norm_params: Mapping[str, Any] | None,
        causal: bool,
        pad_mode: str,
        compress: int,
        true_skip: bool,
    ) -> None:
        super().__init__()
        if len(kernel_sizes) != len(dilations):
            raise ConfigError(f"kernel_sizes={kernel_sizes} with dilations={dilations}; give as many of both.")
        if not 1 <= compress <= dim:
            raise ConfigError(f"compress={compress} on {dim} channels; choose from 1 to {dim}.")
        widths = [dim, *[dim // compress] * (len(kernel_sizes) - 1), dim]
        style: dict[str, Any] = {"norm": norm, "norm_kwargs": norm_params, "causal": causal, "pad_mode": pad_mode}
        block: list[nn.Module] = []
        for i, (kernel_size, dilation) in enumerate(zip(kernel_sizes, dilations, strict=True)):
            block.append(make_activation(activation, activation_params))
            block.append(StreamableConv1d(widths[i], widths[i + 1], kernel_size, dilation=dilation, **style))
        self.block = nn.Sequential(*block)
        self.shortcut = nn.Identity() if true_skip else StreamableConv1d(dim, dim, 1, **style)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to the skip connection."""
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


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
        activation, activation_params: name of a class in torch.nn, and its arguments.
        norm, norm_params: one of `audiotok.modules.NORMS`, and its arguments.
        kernel_size, last_kernel_size: taps of a network's first and last convolution.
        residual_kernel_size: taps in the residual blocks.
        dilation_base: see n_residual_layers.
        causal: whether nothing depends on what comes later.
        pad_mode: constant, reflect or replicate.
        true_skip, compress: see `SEANetResnetBlock`.
        lstm: layers of the LSTM on the latent's side; 0 for none.
        disable_norm_outer_blocks: blocks without norm, counted from the waveform; each ratio is a block, and
            so are the first and the last convolution.
    """

    channels: int = 1
    dimension: int = 128
    n_filters: int = 32
    n_residual_layers: int = 1
    ratios: Sequence[int] = (8, 5, 4, 2)
    activation: str = "ELU"
    activation_params: Mapping[str, Any] | None = field(default_factory=lambda: {"alpha": 1.0})
    norm: str = "weight_norm"
    norm_params: Mapping[str, Any] | None = None
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_base: int = 2
    causal: bool = False
    pad_mode: str = "constant"
    true_skip: bool = True
    compress: int = 2
    lstm: int = 2
    disable_norm_outer_blocks: int = 0

    def __post_init__(self) -> None:
        positive = ["compress", "channels", "dimension", "n_filters", "dilation_base"]
        positive += ["kernel_size", "last_kernel_size", "residual_kernel_size"]
        least = {"n_residual_layers": 0, "lstm": 0, "disable_norm_outer_blocks": 0, **dict.fromkeys(positive, 1)}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ConfigError(f"seanet.{name}={value!r}; give a whole number from {smallest} up.")
        for name, value in vars(self).items():
            if name.endswith("_params") and not isinstance(value, Mapping | None):
                raise ConfigError(f"seanet.{name}={value!r}; give a section of keyword arguments.")
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

    def norm_of(self, block: int) -> str:
        """Normalisation in a block, where block 0 touches the waveform."""
        return self.norm if block >= self.disable_norm_outer_blocks else "none"

    def common(self, block: int) -> dict[str, Any]:
        """Arguments of any convolution in a block."""
        return {"norm": self.norm_of(block), "norm_kwargs": self.norm_params, "causal": self.causal}

    def conv(self, width_in: int, width_out: int, kernel_size: int, block: int, stride: int = 1) -> nn.Module:
        """A new convolution."""
        sizes = (width_in, width_out, kernel_size, stride)
        return StreamableConv1d(*sizes, pad_mode=self.pad_mode, **self.common(block))

    def residual_layers(self, width: int, block: int) -> list[nn.Module]:
        """The residual blocks that go with one ratio."""
        return [
            SEANetResnetBlock(
                width,
                kernel_sizes=(self.residual_kernel_size, 1),
                dilations=(self.dilation_base**depth, 1),
                activation=self.activation,
                activation_params=self.activation_params,
                norm=self.norm_of(block),
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
        final_activation, final_activation_params: after everything else, e.g. Tanh; None for none.
        trim_right_ratio: see `StreamableConvTranspose1d`.
    """

    final_activation: str | None = None
    final_activation_params: Mapping[str, Any] | None = None
    trim_right_ratio: float = 1.0

    def upsample(self, width: int, ratio: int, block: int) -> nn.Module:
        """A new transposed convolution that halves the channels."""
        sizes = (width, width // 2, 2 * ratio, ratio)
        return StreamableConvTranspose1d(*sizes, trim_right_ratio=self.trim_right_ratio, **self.common(block))


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
        # A layer's place in the Sequential is its key in EnCodec files: activations count, and so must stand here.
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
