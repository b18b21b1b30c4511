"""EnCodec of Hugging Face Transformers: its folder as a configuration and weights in our names, and the way back.

A folder holds `config.json` (fields of `transformers.EncodecConfig`), `model.safetensors` or `pytorch_model.bin`, and
`preprocessor_config.json` (of its feature extractor). Its networks are AudioCraft's under other names. It has no
choice of activation, of LSTM or not, of other norms than two, nor of codebooks whose size is no power of two.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from audiotok.checkpoint import load_checkpoint
from audiotok.errors import CheckpointError, ConfigError, first_line
from audiotok.files import UnreadableError, load_json, read_json, replacing, write_json
from audiotok.interchange.folder import read_safetensors
from audiotok.modules.seanet import SEANetDecoderOptions, SEANetOptions

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
MODEL_TYPE = "encodec"
SECTION = "huggingface"  # of a configuration: what its folder had and our networks have no use for
_KEPT = ("target_bandwidths", "chunk_length_s", "overlap")

_Size = Annotated[int, Field(strict=True, ge=1, le=10**9)]
_Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_SEANET = {  # fields of Transformers' configuration, and ours
    **{"audio_channels": "channels", "hidden_size": "dimension", "num_filters": "n_filters"},
    **{"num_residual_layers": "n_residual_layers", "upsampling_ratios": "ratios", "norm_type": "norm"},
    **{"kernel_size": "kernel_size", "last_kernel_size": "last_kernel_size", "compress": "compress"},
    **{"residual_kernel_size": "residual_kernel_size", "dilation_growth_rate": "dilation_base"},
    **{"use_causal_conv": "causal", "pad_mode": "pad_mode", "num_lstm_layers": "lstm"},
}
_FIXED = {"activation": "ELU", "final_activation": None, "disable_norm_outer_blocks": 0}  # what it has no field for
_LEAVES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_CONV = r"(encoder|decoder)\.{list}\.(\d+)\.((?:block\.\d+\.|shortcut\.)?)"
_THEIR_CONV = re.compile(_CONV.replace("{list}", "layers") + r"(conv|norm)\.(.+)")
_OUR_CONV = re.compile(_CONV.replace("{list}", "model") + r"(?:conv|convtr)\.(conv|convtr|norm)\.(.+)")
_THEIR_LSTM, _OUR_LSTM = (re.compile(rf"(encoder|decoder)\.{name}\.(\d+)\.lstm\.(.+)") for name in ("layers", "model"))
_THEIR_CODEBOOK = re.compile(r"quantizer\.layers\.(\d+)\.codebook\.(.+)")
_OUR_CODEBOOK = re.compile(r"quantizer\.vq\.layers\.(\d+)\._codebook\.(.+)")


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What is read of `config.json`, with the defaults of Transformers."""

    sampling_rate: _Size = 24000
    audio_channels: _Size = 1
    normalize: bool = False
    hidden_size: _Size = 128
    codebook_dim: _Size | None = None
    codebook_size: Annotated[int, Field(strict=True, ge=2, le=2**24)] = 1024
    num_filters: _Size = 32
    num_residual_layers: Annotated[int, Field(strict=True, ge=0, le=1000)] = 1
    upsampling_ratios: Annotated[list[_Size], Field(max_length=30)] = field(default_factory=lambda: [8, 5, 4, 2])
    norm_type: Literal["weight_norm", "time_group_norm"] = "weight_norm"
    kernel_size: _Size = 7
    last_kernel_size: _Size = 7
    residual_kernel_size: _Size = 3
    dilation_growth_rate: _Size = 2
    use_causal_conv: bool = True
    pad_mode: Literal["constant", "reflect", "replicate"] = "reflect"
    compress: _Size = 2
    num_lstm_layers: _Size = 2
    trim_right_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    use_conv_shortcut: bool = True
    target_bandwidths: Annotated[list[_Positive], Field(min_length=1, max_length=1000)] = field(
        default_factory=lambda: [1.5, 3.0, 6.0, 12.0, 24.0]
    )
    chunk_length_s: _Positive | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None


# --- In ---


def is_folder(path: Path) -> bool:
    """Whether a path is a folder with a model of Transformers, of whatever kind."""
    return os.path.isfile(path / CONFIG) and any(os.path.isfile(path / name) for name in WEIGHTS)


def is_encodec(config: Path) -> bool:
    """Whether a `config.json` is that of an EnCodec."""
    return (read_json(config) or {}).get("model_type") == MODEL_TYPE


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration with our keys, and weights under our names, of a folder with an EnCodec of Transformers.

    Raises:
        CheckpointError: if it holds another kind of model, cannot be read, or holds more than tensors.
    """
    try:
        values = load_json(path / CONFIG)
    except (OSError, UnreadableError) as error:
        raise CheckpointError(f"{path} is no folder of Hugging Face: {first_line(error)}") from error
    if values.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path / CONFIG} is of model_type {str(values.get('model_type'))[:50]!r}; only {MODEL_TYPE!r} is read"
        )
    config = _parsed(values, path / CONFIG)
    if config.codebook_dim not in (None, config.hidden_size):
        found = f"codebook_dim={config.codebook_dim} with hidden_size={config.hidden_size}"
        raise CheckpointError(f"{path / CONFIG} has {found}; only codebooks of the latent's size are read")
    if math.prod(config.upsampling_ratios) > config.sampling_rate:
        raise CheckpointError(f"{path / CONFIG} has upsampling_ratios whose product, the hop, is more than a second")
    return _our_config(config), _our_weights(_read_weights(path), config)


def _parsed(values: Mapping[str, Any], where: Path | str) -> _Config:
    known = {each.name: values[each.name] for each in fields(_Config) if each.name in values}
    try:
        return TypeAdapter(_Config).validate_python(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{where} has {key}={str(first['input'])[:50]}: {first['msg']}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    file = next((path / name for name in WEIGHTS if os.path.isfile(path / name)), None)
    if file is None:
        raise CheckpointError(f"{path} lacks the weights; it needs {' or '.join(WEIGHTS)}")
    weights = read_safetensors(file) if file.suffix == ".safetensors" else load_checkpoint(file)
    if not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{file} holds weights without names; is it of Transformers?")
    return weights


def _our_config(config: _Config) -> dict[str, Any]:
    rate, channels = config.sampling_rate, config.audio_channels
    networks = {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": rate, "channels": channels}
    seanet = {ours: getattr(config, theirs) for theirs, ours in _SEANET.items()}
    seanet |= {"activation": "ELU", "activation_params": {"alpha": 1.0}, "norm_params": {}}
    seanet |= {"true_skip": not config.use_conv_shortcut, "disable_norm_outer_blocks": 0, "encoder": {}}
    seanet["decoder"] = {"trim_right_ratio": config.trim_right_ratio, "final_activation": None}
    frame_rate, bits = _rates(rate, config.upsampling_ratios, config.codebook_size)
    n_q = max(int(1000 * config.target_bandwidths[-1] // (frame_rate * bits)), 1)
    return {
        "compression_model": "encodec",
        "sample_rate": rate,
        "channels": channels,
        "encodec": {**networks, "causal": config.use_causal_conv, "renormalize": config.normalize},
        "seanet": seanet,
        "rvq": {"n_q": n_q, "bins": config.codebook_size, "q_dropout": len(config.target_bandwidths) > 1},
        SECTION: {name: getattr(config, name) for name in _KEPT},
    }


def _our_weights(weights: Mapping[str, Tensor], config: _Config) -> dict[str, Tensor]:
    transposed = {str(3 + index * (2 + config.num_residual_layers)) for index in range(len(config.upsampling_ratios))}
    leaves = {theirs: ours for ours, theirs in _LEAVES.items()}

    def ours(name: str) -> str:
        if match := _THEIR_CONV.fullmatch(name):
            side, layer, inner, part, leaf = match.groups()
            kind = "convtr" if side == "decoder" and not inner and layer in transposed else "conv"
            return f"{side}.model.{layer}.{inner}{kind}.{kind if part == 'conv' else part}.{leaves.get(leaf, leaf)}"
        if match := _THEIR_LSTM.fullmatch(name):
            return f"{match[1]}.model.{match[2]}.lstm.{match[3]}"
        match = _THEIR_CODEBOOK.fullmatch(name)
        return f"quantizer.vq.layers.{match[1]}._codebook.{match[2]}" if match else name

    return {ours(name): value for name, value in weights.items()}


# --- Out ---


def config_and_weights(
    cfg: Mapping[str, Any] | DictConfig, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `config.json` and `model.safetensors` hold of a model of ours.

    Args:
        cfg: sections `encodec` and `seanet`; defaults are those of `SEANetOptions`. The section `huggingface`, if
            there is one, gives back the bandwidths and the chunks of the folder that it was read from.
        weights: of the whole model; how many codebooks there are, and of which size, is read off them.

    Raises:
        ConfigError: naming the keys, if Transformers has no such model.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    encodec, section = values["encodec"], dict(values["seanet"])
    kept = chunks_and_bandwidths(values)
    before = _parsed(kept or {}, f"the section {SECTION}")
    sides = {side: section.pop(side, None) or {} for side in ("encoder", "decoder")}
    encoder = SEANetOptions(**{**section, **sides["encoder"]})
    decoder = SEANetDecoderOptions(**{**section, **sides["decoder"]})
    codebooks = [value for name, value in weights.items() if name.endswith("._codebook.embed")]
    _check_known(encodec, encoder, decoder, codebooks)
    rate, bins = encodec["sample_rate"], len(codebooks[0])
    config: dict[str, Any] = {"architectures": ["EncodecModel"], "model_type": MODEL_TYPE, "dtype": "float32"}
    config |= {theirs: getattr(decoder, ours) for theirs, ours in _SEANET.items()}
    config |= {"upsampling_ratios": list(decoder.ratios), "sampling_rate": rate, "codebook_size": bins}
    config |= {"codebook_dim": decoder.dimension, "use_conv_shortcut": not decoder.true_skip}
    config |= {"trim_right_ratio": decoder.trim_right_ratio, "normalize": bool(encodec.get("renormalize"))}
    dropout = bool((values.get("rvq") or {}).get("q_dropout"))
    given = before.target_bandwidths if kept else []
    config["target_bandwidths"] = _bandwidths(rate, decoder.ratios, bins, len(codebooks), dropout, given)
    config |= {"chunk_length_s": before.chunk_length_s, "overlap": before.overlap}
    return dict(sorted(config.items())), {_their_name(name): value for name, value in weights.items()}


def chunks_and_bandwidths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `huggingface` of a configuration with what is known of it alone; empty if there is none.

    Raises:
        CheckpointError: if it is of another form.
    """
    section = values.get(SECTION) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"the configuration has {SECTION}={str(section)[:50]!r}, which is no section of it")
    parsed = _parsed(section, f"the section {SECTION}")
    return {name: getattr(parsed, name) for name in _KEPT if name in section}


def preprocessor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `preprocessor_config.json` holds beside a `config.json`."""
    shared = {name: config[name] for name in ("chunk_length_s", "overlap", "sampling_rate")}
    fixed = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": config["audio_channels"]}
    return {**fixed, **shared, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True}


def write_folder(cfg: Mapping[str, Any] | DictConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model of ours as a folder for `transformers.EncodecModel.from_pretrained`, each file in one step.

    Args:
        cfg: as for `config_and_weights`, whose ConfigError comes before anything is written.
        weights: as there.
        folder: made if it is missing; OSError if that, or a file, fails.
    """
    config, tensors = config_and_weights(cfg, weights)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS[0]) as draft:
        # float32, without storage that two names share; Transformers asks for the mark of torch's tensors.
        whole = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in tensors.items()}
        save_file({name: value.contiguous() for name, value in whole.items()}, draft, metadata={"format": "pt"})
    write_json(folder / PREPROCESSOR, preprocessor_config(config))
    write_json(folder / CONFIG, config)


def _check_known(
    encodec: Mapping[str, Any], encoder: SEANetOptions, decoder: SEANetDecoderOptions, codebooks: list[Tensor]
) -> None:
    """ConfigError if Transformers' EnCodec cannot be of this configuration."""
    faults = []
    if encodec.get("quantizer") != "rvq" or not codebooks:
        faults.append("encodec.quantizer (rvq)")
    if any(getattr(encoder, each.name) != getattr(decoder, each.name) for each in fields(SEANetOptions)):
        faults.append("seanet.encoder and seanet.decoder (equal)")
    faults += [
        f"seanet.{name} ({value or 'none'})" for name, value in _FIXED.items() if getattr(decoder, name) != value
    ]
    if dict(decoder.activation_params or {}) not in ({}, {"alpha": 1.0}):
        faults.append("seanet.activation_params (alpha: 1.0)")
    if dict(decoder.norm_params or {}) not in ({}, {"eps": 1e-5}) and decoder.norm == "time_group_norm":
        faults.append("seanet.norm_params (none)")
    if decoder.norm not in ("weight_norm", "time_group_norm"):
        faults.append("seanet.norm (weight_norm or time_group_norm)")
    if decoder.lstm == 0:
        faults.append("seanet.lstm (1 or more)")
    if codebooks and len(codebooks[0]).bit_count() != 1:
        faults.append("rvq.bins (a power of two)")
    if faults:
        raise ConfigError(
            f"Transformers has no EnCodec of this kind; it takes {', '.join(faults)}. Export to another format"
        )


def _their_name(name: str) -> str:
    if match := _OUR_CONV.fullmatch(name):
        side, layer, inner, part, leaf = match.groups()
        part = "norm" if part == "norm" else "conv"
        return f"{side}.layers.{layer}.{inner}{part}.{_LEAVES.get(leaf, leaf)}"
    if match := _OUR_LSTM.fullmatch(name):
        return f"{match[1]}.layers.{match[2]}.lstm.{match[3]}"
    match = _OUR_CODEBOOK.fullmatch(name)
    return f"quantizer.layers.{match[1]}.codebook.{match[2]}" if match else name


def _rates(sample_rate: int, ratios: Sequence[int], bins: int) -> tuple[int, int]:
    """Frames a second and bits a code, as Transformers counts them: whole."""
    return math.ceil(sample_rate / math.prod(ratios)), math.ceil(math.log2(bins))


def _bandwidths(
    sample_rate: int, ratios: Sequence[int], bins: int, n_q: int, dropout: bool, given: Sequence[float]
) -> list[float]:
    """Bandwidths in kb/s, the last that of all codebooks: Transformers counts its codebooks by it.

    Those given, if they fit. Else that of n_q codebooks; of a model that was trained with fewer, too, also those of
    n_q / 2, n_q / 4, …, of which Transformers takes the lowest where none is chosen.
    """
    frame_rate, bits = _rates(sample_rate, ratios, bins)

    def fits(bandwidth: float, count: int) -> bool:  # as it counts them on building, and on encoding
        kbps = frame_rate * bits
        return int(1000 * bandwidth // kbps) == math.floor(bandwidth * 1000 / kbps) == count

    if given and fits(given[-1], n_q):
        return list(given)
    counts = [n_q]
    while dropout and counts[0] % 2 == 0:
        counts.insert(0, counts[0] // 2)
    found = [count * frame_rate * bits / 1000 for count in counts]
    # In floating point the way back may end just below the whole number.
    nudged = (
        bandwidth if fits(bandwidth, n) else bandwidth * (1 + 1e-9) for bandwidth, n in zip(found, counts, strict=True)
    )
    return list(nudged)
