"""The residual block of SEANet, and activations by name.

Source: Tagliasacchi et al., "SEANet", Interspeech 2020; the bottleneck comes from Demucs v3 (Défossez, 2021).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from audiotok.errors import ConfigError
from audiotok.modules.conv import StreamableConv1d

ACTIVATIONS = (
    *("ELU", "GELU", "Identity", "LeakyReLU", "Mish", "PReLU"),
    *("ReLU", "SELU", "SiLU", "Softplus", "Tanh"),
)


class SEANetResnetBlock(nn.Module):
    """Residual block: a bottleneck of convolutions beside a skip connection.

    Args:
        dim: channels of input and output.
        kernel_sizes: taps of each convolution.
        dilations: dilation of each convolution, as many as kernel_sizes.
        activation: one of `ACTIVATIONS`, with its activation_params.
        activation_params: arguments of the activation.
        norm: see `StreamableConv1d`, like norm_params, causal and pad_mode.
        norm_params: arguments of the normalisation.
        causal: whether the convolutions are causal.
        pad_mode: how they pad.
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
        kernel_sizes: Sequence[int] = (3, 1),
        dilations: Sequence[int] = (1, 1),
        activation: str = "ELU",
        activation_params: Mapping[str, Any] | None = None,
        norm: str = "none",
        norm_params: Mapping[str, Any] | None = None,
        causal: bool = False,
        pad_mode: str = "reflect",
        compress: int = 2,
        true_skip: bool = True,
    ) -> None:
        super().__init__()
        if len(kernel_sizes) != len(dilations):
            raise ConfigError(f"kernel_sizes={kernel_sizes} with dilations={dilations}; give as many of both.")
        if not 1 <= compress <= dim:
            raise ConfigError(f"compress={compress} on {dim} channels; choose from 1 to {dim}.")
        widths = [dim, *[dim // compress] * (len(kernel_sizes) - 1), dim]
        style: dict[str, Any] = {
            "norm": norm,
            "norm_kwargs": norm_params,
            "causal": causal,
            "pad_mode": pad_mode,
        }
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


def make_activation(name: str, params: Mapping[str, Any] | None = None) -> nn.Module:
    """A new activation: a class of torch.nn by name, with its arguments; ConfigError if either is wrong."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation={name!r}; choose one of: {', '.join(ACTIVATIONS)}.")
    try:
        module: nn.Module = getattr(nn, name)(**(params or {}))
    except TypeError as error:
        raise ConfigError(f"activation_params={dict(params or {})} for torch.nn.{name}: {error}.") from error
    return module
