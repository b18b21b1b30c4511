"""From a configuration to a codec; the configuration is only read.

The keys are AudioCraft's (`model/encodec/default.yaml`): the `xp.cfg` of its exported files builds too.
"""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiotok.errors import ConfigError
from audiotok.models.encodec import CompressionModel, EncodecModel
from audiotok.modules import SEANetDecoder, SEANetEncoder
from audiotok.modules.seanet import SEANetDecoderOptions, SEANetOptions
from audiotok.quantization import BaseQuantizer, DummyQuantizer, ResidualVectorQuantizer

ENCODEC_KEYS = ("autoencoder", "quantizer", "sample_rate", "channels", "causal", "renormalize")
OUTDATED_ENCODEC_KEYS = ("renorm",)  # in old exported files, without effect in AudioCraft either


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
    _choose("compression_model", cfg.get("compression_model"), ("encodec",))
    encodec = _section(cfg, "encodec", (*ENCODEC_KEYS, *OUTDATED_ENCODEC_KEYS))
    _choose("encodec.autoencoder", encodec.get("autoencoder"), ("seanet",))
    encoder, decoder = _seanet(cfg)
    quantizer = _quantizer(encodec.get("quantizer"), cfg, encoder.dimension)
    sample_rate, channels = (_positive(f"encodec.{key}", encodec.get(key)) for key in ("sample_rate", "channels"))
    if not channels == encoder.channels == decoder.channels:
        raise ConfigError(
            f"encodec.channels={channels}, but seanet has channels={encoder.channels} in the encoder and "
            f"{decoder.channels} in the decoder; make them equal."
        )
    return EncodecModel(
        encoder,
        decoder,
        quantizer,
        frame_rate=sample_rate / encoder.hop_length,
        sample_rate=sample_rate,
        channels=channels,
        causal=bool(encodec.get("causal", False)),
        renormalize=bool(encodec.get("renormalize", False)),
    )


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
        _section(cfg, "no_quant", (), required=False)
        return DummyQuantizer()
    keys = tuple(key for key in inspect.signature(ResidualVectorQuantizer).parameters if key != "dimension")
    return ResidualVectorQuantizer(dimension=dimension, **_section(cfg, "rvq", keys))


def _section(cfg: DictConfig, name: str, allowed: tuple[str, ...], required: bool = True) -> dict[str, Any]:
    """A copy of one section of cfg, resolved, after a check of its keys."""
    section = cfg.get(name)
    if section is None and not required:
        return {}
    if not isinstance(section, DictConfig):
        raise ConfigError(
            f"{name}={section!r} in the configuration; give a section with keys among: {', '.join(allowed)}."
        )
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
