"""What every quantiser gives back, and the quantiser that does nothing."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError


@dataclass
class QuantizedResult:
    """Outcome of a quantiser, or of a whole codec."""

    x: Tensor  # quantised latent [B, D, T]; the waveform [B, C, T] when a codec returns it
    codes: Tensor  # [B, K, T], whole numbers in [0, bins)
    bandwidth: Tensor  # kb/s that the codes take, a scalar
    penalty: Tensor | None = None  # scalar to add to the loss
    metrics: dict[str, Tensor] = field(default_factory=dict)  # further scalars to log


class BaseQuantizer(nn.Module, ABC):
    """A quantiser of latents [B, D, T]."""

    @abstractmethod
    def forward(self, latent: Tensor, frame_rate: float) -> QuantizedResult:
        """Quantise latent [B, D, T], at frame_rate Hz; in training mode keep the gradient, and learn."""

    @abstractmethod
    def encode(self, latent: Tensor) -> Tensor:
        """Codes [B, K, T] of latent [B, D, T]; changes nothing."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Latent [B, D, T] of codes [B, K, T]."""

    @property
    @abstractmethod
    def bins(self) -> int:
        """How many values a code can take."""

    @property
    @abstractmethod
    def total_codebooks(self) -> int:
        """How many codebooks there are."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """How many codebooks are in use."""

    @property
    def ready(self) -> bool:
        """Whether all codebooks in use hold vectors; False before the first training steps if k-means sets them."""
        return True

    @abstractmethod
    def set_num_codebooks(self, n: int) -> None:
        """Use the first n codebooks only; ConfigError if there are not as many."""


class DummyQuantizer(BaseQuantizer):
    """Passes the latent through; its "codes" [B, 1, D, T] are the 32-bit values themselves."""

    def forward(self, latent: Tensor, frame_rate: float) -> QuantizedResult:
        """Give the latent back; the bandwidth is that of D floats per frame."""
        kbps = torch.tensor(32 * latent.shape[1] * frame_rate / 1000).to(latent)
        return QuantizedResult(latent, self.encode(latent), kbps)

    def encode(self, latent: Tensor) -> Tensor:
        """Add the axis of codebooks."""
        return latent.unsqueeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Remove the axis of codebooks."""
        return codes.squeeze(1)

    @property
    def bins(self) -> int:
        """Not defined: raises ConfigError."""
        raise ConfigError("quantizer='no_quant' has no codes, thus no number of bins; use quantizer='rvq'.")

    @property
    def total_codebooks(self) -> int:
        """One, for the sake of shapes."""
        return 1

    @property
    def num_codebooks(self) -> int:
        """One, for the sake of shapes."""
        return 1

    def set_num_codebooks(self, n: int) -> None:
        """Accept 1 only."""
        if n != 1:
            raise ConfigError(f"num_codebooks={n} with quantizer='no_quant', which has one; use quantizer='rvq'.")
