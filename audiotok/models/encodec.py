"""Codecs that turn audio into tokens and back: the interface of all of them, EnCodec, and how to build one.

The keys of a configuration are AudioCraft's (`model/encodec/default.yaml`): the `xp.cfg` of its exported files builds
too. Source: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023.
"""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from audiotok.errors import ConfigError, DataError
from audiotok.models.chunks import decode_chunks, encode_chunks
from audiotok.models.pretrained import load_pretrained
from audiotok.modules import SEANetDecoder, SEANetEncoder
from audiotok.modules.seanet import SEANetDecoderOptions, SEANetOptions
from audiotok.quantization import BaseQuantizer, DummyQuantizer, QuantizedResult, ResidualVectorQuantizer

logger = logging.getLogger(__name__)

_ENCODEC_KEYS = ("autoencoder", "quantizer", "sample_rate", "channels", "causal", "renormalize")
_OUTDATED_KEYS = ("renorm",)  # in old exported files, without effect in AudioCraft either
SILENCE = 1e-8  # added to the volume, so that silence can be renormalised


class CompressionModel(nn.Module, ABC):
    """What a codec offers to a solver, to the metrics and to a language model over its tokens."""

    channels: int  # of the audio
    sample_rate: int  # of the audio, in Hz
    frame_rate: float  # of the codes, in Hz

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

    def encode_chunks(self, chunks: Iterable[Tensor], **options: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Codes and scale of wav [B, C, t] in chunks, in bounded memory; see `audiotok.models.chunks.encode_chunks`."""
        return encode_chunks(self, chunks, **options)

    def decode_chunks(
        self, chunks: Iterable[Tensor | tuple[Tensor, Tensor | None]], **options: Any
    ) -> Iterator[Tensor]:
        """Audio [B, C, t] of codes in chunks, in bounded memory; see `audiotok.models.chunks.decode_chunks`."""
        return decode_chunks(self, chunks, **options)

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
    def get_pretrained(name: str | Path, device: torch.device | str = "cpu") -> "CompressionModel":
        """Load a trained codec, in evaluation mode; names and errors as in `audiotok.models.pretrained`."""
        model = load_pretrained(name, device, build=get_compression_model)
        logger.info("Loaded %s: %d Hz, %d codebooks", name, model.sample_rate, model.num_codebooks)
        return model


class EncodecModel(CompressionModel):
    """Encoder, quantiser and decoder over the raw waveform.

    Args:
        encoder: wav [B, C, T] -> latent [B, D, T'].
        decoder: latent [B, D, T'] -> wav [B, C, at least T].
        quantizer: of the latent.
        frame_rate, sample_rate: of the latent and of the audio, in Hz.
        channels: audio channels.
        causal: whether encoder and decoder are causal; serves as information.
        renormalize: whether each clip is brought to unit volume before it is encoded. Not with causal: the
            volume of a clip is not known before its end.

    Raises:
        ConfigError: if both causal and renormalize are set.
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
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.causal, self.renormalize = causal, renormalize
        self.frame_rate, self.sample_rate, self.channels = frame_rate, sample_rate, channels

    def forward(self, wav: Tensor) -> QuantizedResult:
        """Reconstruct wav: x [B, C, T] with the quantiser's codes, bandwidth and penalty; errors as `encode_latent`."""
        latent, scale = self.encode_latent(wav)
        result: QuantizedResult = self.quantizer(latent, self.frame_rate)
        # The decoder gives whole frames: what it adds beyond the end of wav is cut off.
        result.x = self._restore_volume(self.decoder(result.x)[..., : wav.shape[-1]], scale)
        return result

    @torch.no_grad()
    def encode(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [B, K, T'] of wav [B, C, T], and its volume [B, 1] or None; errors as `encode_latent`.

        Keeps no graph, as codes have no gradient; `forward` and `encode_latent` do.
        """
        latent, scale = self.encode_latent(wav)
        return self.quantizer.encode(latent), scale

    def encode_latent(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latent [B, D, T'] before quantisation of wav [B, C, T], and its volume [B, 1] or None.

        DataError if wav has another number of axes or channels, or holds no sample.
        """
        if wav.dim() != 3 or wav.shape[1] != self.channels or wav.shape[2] == 0:
            raise DataError(
                f"wav is {list(wav.shape)}; this model takes [B, {self.channels}, T] with T >= 1 "
                f"at {self.sample_rate} Hz. Mix down, duplicate or add axes before."
            )
        scale = None
        if self.renormalize:
            # One volume for all channels, that of their mean: the stereo image stays.
            volume = wav.mean(dim=1).pow(2).mean(dim=1, keepdim=True).sqrt()
            scale = volume + SILENCE
            wav = wav / scale[:, :, None]
        latent: Tensor = self.encoder(wav)
        return latent, scale

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio [B, C, T' * hop] of codes [B, K, T']; scale [B, 1] as `encode` gave it, None for unit volume.

        Keeps no graph in evaluation mode. ConfigError if scale is given to a model that does not renormalise;
        DataError if the codes do not fit.
        """
        if scale is not None and not self.renormalize:
            raise ConfigError("decode got a scale, but this model has renormalize=false; pass scale=None.")
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self._restore_volume(self.decoder(self.decode_latent(codes)), scale)

    def decode_latent(self, codes: Tensor) -> Tensor:
        """Latent [B, D, T'] of codes [B, K, T']."""
        return self.quantizer.decode(codes)

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


def get_compression_model(cfg: DictConfig) -> CompressionModel:
    """Make the codec that cfg describes, with fresh weights, on the CPU.

    Args:
        cfg: holds `compression_model` (encodec), `encodec` (autoencoder: seanet; quantizer: rvq or no_quant;
            and keyword arguments of `EncodecModel`), `seanet` (fields of `SEANetOptions`, those of one side
            only under `encoder` or `decoder`), `rvq` (arguments of `ResidualVectorQuantizer` but dimension)
            and `no_quant` (empty). Other keys are left alone.

    Raises:
        ConfigError: naming key, value and what is allowed, if any of these is missing, unknown or impossible.
    """
    if "lm" in cfg:
        raise ConfigError("it is of a language model, not of a codec; give the codec that made its codes.")
    _choose("compression_model", cfg.get("compression_model"), ("encodec",))
    encodec = _section(cfg, "encodec", (*_ENCODEC_KEYS, *_OUTDATED_KEYS))
    _choose("encodec.autoencoder", encodec.get("autoencoder"), ("seanet",))
    encoder, decoder = _seanet(cfg)  # before the quantiser: the order decides which random numbers each gets
    quantizer = _quantizer(encodec.get("quantizer"), cfg, encoder.dimension)
    sample_rate, channels = (_positive(f"encodec.{key}", encodec.get(key)) for key in ("sample_rate", "channels"))
    if not channels == encoder.channels == decoder.channels:
        raise ConfigError(
            f"encodec.channels={channels}, but seanet has channels={encoder.channels} in the encoder and "
            f"{decoder.channels} in the decoder; make them equal."
        )
    flags = {key: bool(encodec[key]) for key in ("causal", "renormalize") if key in encodec}
    return EncodecModel(encoder, decoder, quantizer, sample_rate / encoder.hop_length, sample_rate, channels, **flags)


def _seanet(cfg: DictConfig) -> tuple[SEANetEncoder, SEANetDecoder]:
    shared_keys = tuple(field.name for field in fields(SEANetOptions))
    decoder_keys = tuple(field.name for field in fields(SEANetDecoderOptions))
    shared = _section(cfg, "seanet", (*shared_keys, "encoder", "decoder"))
    own = {side: shared.pop(side, None) or {} for side in ("encoder", "decoder")}
    _refuse_unknown("seanet.encoder", own["encoder"], shared_keys)
    _refuse_unknown("seanet.decoder", own["decoder"], decoder_keys)
    encoder = SEANetEncoder(**{**shared, **own["encoder"]})
    decoder = SEANetDecoder(**{**shared, **own["decoder"]})
    for name in ("dimension", "hop_length"):
        ours, theirs = getattr(encoder, name), getattr(decoder, name)
        if ours != theirs:
            raise ConfigError(f"seanet.encoder has {name} {ours}, seanet.decoder {theirs}; make them equal.")
    return encoder, decoder


def _quantizer(name: object, cfg: DictConfig, dimension: int) -> BaseQuantizer:
    _choose("encodec.quantizer", name, ("rvq", "no_quant"))
    if name == "no_quant":
        if cfg.get("no_quant") is not None:
            _section(cfg, "no_quant", ())
        return DummyQuantizer()
    keys = tuple(key for key in inspect.signature(ResidualVectorQuantizer).parameters if key != "dimension")
    return ResidualVectorQuantizer(dimension=dimension, **_section(cfg, "rvq", keys))


def _section(cfg: DictConfig, name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """A copy of one section of cfg, resolved, after a check of its keys."""
    section = cfg.get(name)
    if not isinstance(section, DictConfig):
        keys = ", ".join(allowed)
        raise ConfigError(f"{name}={section!r} in the configuration; give a section with keys among: {keys}.")
    try:
        values = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name} in the configuration: {str(error).splitlines()[0]}. Set that key.") from error
    assert isinstance(values, dict)
    _refuse_unknown(name, values, allowed)
    return {str(key): value for key, value in values.items()}


def _refuse_unknown(name: str, values: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    for key, value in values.items():
        if key not in allowed:
            choices = f"choose among: {', '.join(allowed)}" if allowed else "this section has no keys"
            raise ConfigError(f"{name}.{key}={value!r} is unknown; {choices}.")


def _choose(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}; choose one of: {', '.join(allowed)}.")


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}; give a whole number from 1 up.")
    return value
