"""What the discriminators share: their output, the loop over sub-discriminators, activations by name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from audiotok.errors import ConfigError, DataError

FeatureMaps = list[torch.Tensor]
DiscriminatorOutput = tuple[list[torch.Tensor], list[FeatureMaps]]
LEAKY_RELU = "LeakyReLU"


class MultiDiscriminator(nn.Module):
    """Sub-discriminators that each judge a view of the same signal.

    Args:
        discriminators: each maps a view of the signal to (logit, feature maps).
        in_channels: channels of the signal.
        min_length: samples the signal must hold.

    Shape:
        wav [B, in_channels, T] -> (one logit tensor per sub-discriminator, one list of feature maps per
        sub-discriminator).

    Raises:
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
        """Yield what each sub-discriminator sees: the signal itself unless a subclass says otherwise."""
        for _ in self.discriminators:
            yield wav


def make_activation(name: str, params: Mapping[str, Any] | None) -> nn.Module:
    """Build an activation of torch.nn by name; a LeakyReLU without parameters has a slope of 0.2.

    Raises:
        ConfigError: if torch.nn has no such activation, or it does not take these parameters.
    """
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"activation={name!r} is no module of torch.nn; try LeakyReLU, ELU or SiLU.")
    if name == LEAKY_RELU and params is None:
        params = {"negative_slope": 0.2}
    try:
        return kind(**(params or {}))
    except TypeError as error:
        raise ConfigError(f"activation_params={dict(params or {})} do not fit {name}: {error}.") from error
