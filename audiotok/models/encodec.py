"""Codecs that turn audio into tokens and back: the interface of all of them, and EnCodec.

Source: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError, DataError
from audiotok.quantization import BaseQuantizer, QuantizedResult

SILENCE = 1e-8  # added to the volume, so that silence can be renormalised


class CompressionModel(nn.Module, ABC):
    """What a codec offers to a solver, to the metrics and to a language model over its tokens."""

    @abstractmethod
    def forward(self, wav: Tensor) -> QuantizedResult:
        """Reconstruct wav [B, C, T]; the result's x has the same shape."""

    @abstractmethod
    def encode(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [B, K, T'] of wav [B, C, T], and the volume [B, 1] of each clip if the model renormalises."""

    @abstractmethod
    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio [B, C, T] of codes [B, K, T'], in whole frames, at the volume that scale [B, 1] gives."""

    @abstractmethod
    def decode_latent(self, codes: Tensor) -> Tensor:
        """Latent [B, D, T'] of codes [B, K, T']."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Audio channels."""

    @property
    @abstractmethod
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Samples per second, in Hz."""

    @property
    @abstractmethod
    def cardinality(self) -> int:
        """How many values a code can take."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """Codebooks in use."""

    @property
    @abstractmethod
    def total_codebooks(self) -> int:
        """Codebooks that exist."""

    @abstractmethod
    def set_num_codebooks(self, n: int) -> None:
        """Use the first n codebooks only; ConfigError if there are not as many."""

    @staticmethod
    def get_pretrained(name: str, device: torch.device | str = "cpu") -> "CompressionModel":
        """Load a trained model, in evaluation mode; see `audiotok.models.pretrained.load_pretrained`."""
        # Imported here because that module builds models, thus needs this one first.
        from audiotok.models.pretrained import load_pretrained

        return load_pretrained(name, device)


class EncodecModel(CompressionModel):
    """Encoder, quantiser and decoder over the raw waveform.

    Args:
        encoder: wav [B, C, T] -> latent [B, D, T'].
        decoder: latent [B, D, T'] -> wav [B, C, at least T].
        quantizer: of the latent.
        frame_rate: of the latent, in Hz.
        sample_rate: of the audio, in Hz.
        channels: audio channels.
        causal: whether encoder and decoder are causal; serves as information.
        renormalize: whether each clip is brought to unit volume before it is encoded. Not with causal: the
            volume of a clip is not known before its end.

    Raises:
        ConfigError: if both causal and renormalize are asked for.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: BaseQuantizer,
        frame_rate: float,
        sample_rate: int,
        channels: int,
        causal: bool = False,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if causal and renormalize:
            raise ConfigError(
                "encodec.causal=true with encodec.renormalize=true; a causal model cannot know the "
                "volume of the whole clip, so set one of them to false."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.causal = causal
        self.renormalize = renormalize
        self._frame_rate = frame_rate
        self._sample_rate = sample_rate
        self._channels = channels

    def forward(self, wav: Tensor) -> QuantizedResult:
        """Reconstruct wav [B, C, T]: x [B, C, T] with the codes, bandwidth and penalty of the quantiser.

        Raises:
            DataError: if wav has another number of axes or channels, or holds no sample.
        """
        latent, scale = self.encode_latent(wav)
        result: QuantizedResult = self.quantizer(latent, self._frame_rate)
        result.x = self._restore_volume(self.decoder(result.x)[..., : wav.shape[-1]], scale)
        return result

    def encode(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [B, K, T'] of wav [B, C, T], and its volume [B, 1] or None; DataError as in `forward`."""
        latent, scale = self.encode_latent(wav)
        return self.quantizer.encode(latent), scale

    def encode_latent(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latent [B, D, T'] before quantisation of wav [B, C, T], and its volume [B, 1] or None."""
        if wav.dim() != 3 or wav.shape[1] != self._channels or wav.shape[2] == 0:
            raise DataError(
                f"wav is {list(wav.shape)}; this model takes [B, {self._channels}, T] with T >= 1 "
                f"at {self._sample_rate} Hz. Mix down, duplicate or add axes before."
            )
        scale = None
        if self.renormalize:
            volume = wav.mean(dim=1).pow(2).mean(dim=1, keepdim=True).sqrt()
            scale = volume + SILENCE
            wav = wav / scale[:, :, None]
        latent: Tensor = self.encoder(wav)
        return latent, scale

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio [B, C, T' * hop] of codes [B, K, T']; scale [B, 1] as `encode` gave it, None for unit volume.

        Raises:
            ConfigError: if scale is given to a model that does not renormalise.
            DataError: if the codes do not fit the quantiser.
        """
        if scale is not None and not self.renormalize:
            raise ConfigError("decode got a scale, but this model has renormalize=false; pass scale=None.")
        return self._restore_volume(self.decoder(self.decode_latent(codes)), scale)

    def decode_latent(self, codes: Tensor) -> Tensor:
        """Latent [B, D, T'] of codes [B, K, T']."""
        return self.quantizer.decode(codes)

    @property
    def channels(self) -> int:
        """Audio channels."""
        return self._channels

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self._frame_rate

    @property
    def sample_rate(self) -> int:
        """Samples per second, in Hz."""
        return self._sample_rate

    @property
    def cardinality(self) -> int:
        """How many values a code can take."""
        return self.quantizer.bins

    @property
    def num_codebooks(self) -> int:
        """Codebooks in use."""
        return self.quantizer.num_codebooks

    @property
    def total_codebooks(self) -> int:
        """Codebooks that exist."""
        return self.quantizer.total_codebooks

    def set_num_codebooks(self, n: int) -> None:
        """Use the first n codebooks only; ConfigError if there are not as many."""
        self.quantizer.set_num_codebooks(n)

    def _restore_volume(self, wav: Tensor, scale: Tensor | None) -> Tensor:
        return wav if scale is None else wav * scale.view(-1, 1, 1)
