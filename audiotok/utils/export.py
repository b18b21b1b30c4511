"""Small files to give away: the best weights and the configuration of the networks, nothing else.

The layout is AudioCraft's (`best_state`, `xp.cfg` as YAML text, `version`, `exported`), so files load both ways. Its
builder refuses keys that it does not know, needs some that we do not, and has other defaults: the configuration holds
every key of that builder and no other. How it was trained, on what and where, stays behind.
"""

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from audiotok import __version__
from audiotok.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError
from audiotok.integrity import not_finite
from audiotok.models.encodec import get_compression_model
from audiotok.models.pretrained import best_weights_of, check_weights, configuration_of
from audiotok.modules.seanet import SEANetDecoderOptions, SEANetOptions
from audiotok.quantization import ResidualVectorQuantizer

_OURS_ALONE = ("kmeans_start", "commitment_weight")  # arguments of the quantiser, for training


def export_encodec(checkpoint_path: str | Path, out_file: str | Path, *, half: bool = False) -> Path:
    """Write the best state of a training checkpoint as a file for `CompressionModel.get_pretrained`.

    Args:
        checkpoint_path: a training checkpoint, its folder, or //sig/SIG.
        out_file: where to write; missing folders are made.
        half: in less than half the size: float16, and each code with one use to its credit, as after the k-means start
            (`embed_avg` is then `embed`, stored once). Readers make float32 of it.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or already exported, or its weights do not fit its
            configuration or are not finite, in float16 either.
    """
    path = resolve_checkpoint(checkpoint_path)
    state = load_checkpoint(path)
    if state.get("exported") is True:
        raise CheckpointError(f"{path} is an exported file already; copy it, or give the training checkpoint")
    missing = [key for key in ("best_state", "xp.cfg") if key not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; is it a checkpoint of a solver?")
    cfg, weights = configuration_of(state, path), best_weights_of(state, path)
    check_weights(cfg, weights, path, get_compression_model)
    write_exported(cfg, weights, Path(out_file), half=half)
    return Path(out_file)


def write_exported(cfg: DictConfig, weights: dict[str, Tensor], out_file: Path, *, half: bool = False) -> None:
    """Write the weights of a codec and what AudioCraft builds it from; arguments and errors as in `export_encodec`."""
    if half:
        weights = in_half(weights)
    content = {"best_state": weights, "xp.cfg": yaml.safe_dump(networks_of(cfg), sort_keys=False)}
    save_checkpoint({**content, "version": __version__, "exported": True}, out_file)


def in_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as float16, see `export_encodec`; CheckpointError if that cannot hold them."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    for name in [name for name in weights if name.endswith("_codebook.cluster_size")]:
        weights[name] = torch.ones_like(weights[name])
        codebook = name.removesuffix("cluster_size")
        weights[f"{codebook}embed_avg"] = weights[f"{codebook}embed"]  # a sum over the uses; one storage in the file
    if names := not_finite(weights):
        raise CheckpointError(f"the model has weights that float16 cannot hold ({names}); export it without half")
    return weights


def networks_of(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that AudioCraft builds a codec from, with every key that it has."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    encodec = {"causal": False, "renormalize": False, **values["encodec"]}
    encodec.pop("renorm", None)  # of old files, without effect
    made = {"compression_model": "encodec", "sample_rate": encodec["sample_rate"], "channels": encodec["channels"]}
    made |= {"encodec": encodec, "seanet": _seanet(values["seanet"])}
    if encodec["quantizer"] != "rvq":
        return {**made, "no_quant": {}}
    defaults = {name: parameter.default for name, parameter in signature(ResidualVectorQuantizer).parameters.items()}
    rvq = {**defaults, **values["rvq"]}
    return {**made, "rvq": {key: rvq[key] for key in rvq if key not in ("dimension", *_OURS_ALONE)}}


def _seanet(section: dict[str, Any]) -> dict[str, Any]:
    shared = {option.name: getattr(SEANetOptions(), option.name) for option in fields(SEANetOptions)}
    every = {option.name: getattr(SEANetDecoderOptions(), option.name) for option in fields(SEANetDecoderOptions)}
    of_decoder = {name: value for name, value in every.items() if name not in shared}
    sides = {"encoder": section.get("encoder") or {}, "decoder": {**of_decoder, **(section.get("decoder") or {})}}
    shared |= {name: value for name, value in section.items() if name not in sides}
    for values in (shared, *sides.values()):
        for name, value in values.items():
            if name.endswith("_params") and value is None:  # no arguments
                values[name] = {}
            elif isinstance(value, tuple):  # of YAML
                values[name] = list(value)
    return {**shared, **sides}
