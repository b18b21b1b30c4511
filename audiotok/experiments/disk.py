"""How much disk an experiment takes: its folder, or by its configuration networks, checkpoints that are kept, samples.

Without torch, which a launch must not import: the counts are those of the layers in `audiotok.modules`,
`audiotok.quantization`, `audiotok.models` and `audiotok.adversarial`, and the tests compare them with the built
networks. What is small (history, logs, the averages of the balancer) is left out.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from audiotok.cluster import output_dir
from audiotok.files import read_json

_FLOAT = 4  # bytes of a weight and of a sample in memory
_SAMPLE = {"wav": 2.0, "flac": 2.0, "ogg": 0.25}  # bytes of a written sample; flac at most
_Section = Mapping[str, Any]


class Size(NamedTuple):
    """Values of a network: those that are trained, and those that are only kept."""

    parameters: int = 0
    buffers: int = 0

    def __add__(self, other: object) -> "Size":
        if not isinstance(other, Size):
            return NotImplemented
        return Size(self.parameters + other.parameters, self.buffers + other.buffers)

    @property
    def all(self) -> int:
        """Values in its state."""
        return self.parameters + self.buffers


def experiment_bytes(cfg: _Section) -> int | None:
    """Bytes of the folder of an experiment once it has completed; None for a kind of model that is not known here.

    Args:
        cfg: its configuration as plain containers, resolved.
    """
    try:
        if cfg["solver"] == "lm":
            return _language_model(cfg)
        return _checkpoints(cfg) + _samples(cfg)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):  # the run itself names the mistake
        return None


def folder_bytes(folder: Path) -> int:
    """Size of all files of a folder, links not followed; 0 if there is none."""
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # removed meanwhile
                total += Path(base, name).lstat().st_size
    return total


def model_size(cfg: _Section) -> Size:
    """Encoder, decoder and codebooks of a configuration; KeyError if it is of another kind."""
    if (cfg["compression_model"], cfg["encodec"]["autoencoder"]) != ("encodec", "seanet"):
        raise KeyError("compression_model")
    shared = {key: value for key, value in cfg["seanet"].items() if key not in ("encoder", "decoder")}
    encoder, decoder = ({**shared, **(cfg["seanet"].get(side) or {})} for side in ("encoder", "decoder"))
    books = Size()
    if cfg["encodec"]["quantizer"] == "rvq":
        bins = cfg["rvq"]["bins"]
        books = Size(0, cfg["rvq"]["n_q"] * (1 + bins + 2 * bins * encoder["dimension"]))
    return _encoder(encoder) + _decoder(decoder) + books


def adversary_size(name: str, section: _Section) -> Size:
    """A discriminator by its name in the configuration; KeyError if it is not known."""
    return {"msstftd": _stft, "mpd": _period, "msd": _scale}[name](section)


def language_model_size(lm: _Section, n_q: int, bins: int) -> Size:
    """A language model over the codes of n_q codebooks; without labels, which the data decides."""
    dim = lm["dim"]
    attn, ff = bool(lm["bias_attn"]), bool(lm["bias_ff"])
    found = _layers(dim, lm["hidden_scale"] * dim, lm["num_layers"], attn=attn, ff=ff) + 2 * dim
    found += n_q * ((bins + 1) * dim + dim * bins + bins * bool(lm["bias_proj"]))
    chained = "chain" in lm["heads"] and n_q > 1
    found += _chain_head(lm, dim, n_q, bins) if chained else 0
    if lm.get("no_context"):
        found += n_q * bins + (_chain_head(lm, 1, n_q, bins) if n_q > 1 else 0)
    return Size(found)


def _chain_head(lm: _Section, state: int, n_q: int, bins: int) -> int:
    dim = lm["depth_dim"]
    layers = _layers(dim, 4 * dim, lm["depth_layers"], attn=True, ff=True) + 2 * dim
    return int(layers + (state + 1) * dim + (n_q - 1) * ((bins + 1) * dim + (dim + 1) * bins))


def _layers(dim: int, hidden: int, count: int, *, attn: bool, ff: bool) -> int:
    """Parameters of the layers of a transformer."""
    one: int = 4 * dim * dim + 2 * dim * hidden + 4 * dim + 4 * dim * attn + (hidden + dim) * ff
    return count * one


def _language_model(cfg: _Section) -> int:
    """Bytes of the checkpoints and samples of a language model."""
    codec = _codec_of(str(cfg["compression_model_checkpoint"]))
    size = language_model_size(cfg["lm"], codec["rvq"]["n_q"], codec["rvq"]["bins"]).parameters
    states = {"model": size, "best_state": size, "optimizer": 2 * size, "ema": size * bool(cfg["optim"]["ema"]["use"])}
    keep = cfg["checkpoint"]
    names = keep["keep_every_states"]
    kept = sum(value for name, value in states.items() if not names or name in names)
    weights: int = _FLOAT * (sum(states.values()) + len(_kept_copies(cfg)) * kept)
    audio = {"sample_rate": codec["sample_rate"], "channels": codec["channels"]}
    return weights + len(cfg["lm"]["heads"]) * _samples({**cfg, **audio})


def _codec_of(name: str) -> _Section:
    """Configuration of a codec: of an experiment that is there, else one of usual size, near enough for a plan."""
    frozen = output_dir(os.environ) / "xps" / name.removeprefix("//sig/") / "frozen.json"
    content = read_json(frozen) if name.startswith("//sig/") else None
    cfg = (content or {}).get("cfg")
    bins = 1024 if name == "demo" else 2048
    return cfg if isinstance(cfg, dict) else {"rvq": {"n_q": 4, "bins": bins}, "sample_rate": 32000, "channels": 1}


def _kept_copies(cfg: _Section) -> range:
    """Epochs whose checkpoints are kept beside the last one."""
    every, last = cfg["checkpoint"]["save_every"], cfg["checkpoint"]["keep_last"]
    copies = range(every, cfg["optim"]["epochs"] + 1, every) if every else range(0)
    return copies[-last:] if last else copies


def _checkpoints(cfg: _Section) -> int:
    """Bytes of the last checkpoint and of the copies that are kept."""
    optim, keep, mmd, data = cfg["optim"], cfg["checkpoint"], cfg["mmd"], cfg["dataset"]
    model = model_size(cfg)
    adversaries = [adversary_size(name, cfg[name]) for name in cfg["adversarial"]["adversaries"]]
    states = {"model": model.all, "best_state": model.all, "optimizer": 2 * model.parameters}  # two moments of Adam
    states["ema"] = model.all if optim["ema"]["use"] else 0
    states["adv_losses"] = sum(one.all + 2 * one.parameters for one in adversaries)
    train = {**data, **data["train"]}
    batch = round(train["batch_size"] * train["segment_duration"] * cfg["sample_rate"] * cfg["channels"])
    updates = optim["updates_per_epoch"] or train["num_samples"] // train["batch_size"]
    pending = batch * (cfg["encodec"]["quantizer"] == "rvq" and cfg["rvq"]["n_q"] > 1)  # of a step of the MMD

    def values(epoch: int, names: Any = None) -> int:
        found = states | {"macro_batch": pending * (epoch * updates % mmd["num_batches_mmd"])}
        return sum(size for name, size in found.items() if not names or name in names)

    kept = (values(epoch, keep["keep_every_states"]) for epoch in _kept_copies(cfg))
    return _FLOAT * (values(optim["epochs"]) + sum(kept))


def _samples(cfg: _Section) -> int:
    """Bytes of the references and of what each epoch with a generate stage writes."""
    generate, epochs = {**cfg["dataset"], **cfg["dataset"]["generate"]}, cfg["optim"]["epochs"]
    every = cfg["generate"]["every"]
    times = 1 + (epochs // every + (epochs % every > 0) if every else 1)
    seconds = (generate["segment_duration"] or 0.0) * generate["num_samples"]  # whole tracks: of unknown length
    return int(times * seconds * cfg["sample_rate"] * cfg["channels"] * _SAMPLE[cfg["generate"]["audio"]["format"]])


def _conv(width: int, wider: int, taps: int, norm: str, groups: int = 1, transposed: bool = False) -> Size:
    """A convolution with its bias and its normalisation."""
    weights = width * wider * taps // groups
    extra = {"weight_norm": width if transposed else wider, "time_group_norm": 2 * wider}.get(norm, 0)
    return Size(weights + wider + extra, wider + weights // wider if norm == "spectral_norm" else 0)


def _total(*sizes: Size) -> Size:
    return sum(sizes, Size())


def _norm(section: _Section, block: int) -> str:
    return str(section["norm"]) if block >= section["disable_norm_outer_blocks"] else "none"


def _residual(section: _Section, width: int, block: int) -> Size:
    """The residual blocks that go with one ratio."""
    norm, inner = _norm(section, block), width // section["compress"]
    one = _conv(width, inner, section["residual_kernel_size"], norm) + _conv(inner, width, 1, norm)
    if not section["true_skip"]:
        one += _conv(width, width, 1, norm)
    return _total(*[one] * section["n_residual_layers"])


def _lstm(width: int, layers: int) -> Size:
    return Size(layers * (8 * width * width + 8 * width))


def _encoder(section: _Section) -> Size:
    width, last = section["n_filters"], len(section["ratios"]) + 1
    size = _conv(section["channels"], width, section["kernel_size"], _norm(section, 0))
    for block, ratio in enumerate(reversed(section["ratios"]), start=1):
        size += _residual(section, width, block) + _conv(width, 2 * width, 2 * ratio, _norm(section, block))
        width *= 2
    size += _lstm(width, section["lstm"])
    return size + _conv(width, section["dimension"], section["last_kernel_size"], _norm(section, last))


def _decoder(section: _Section) -> Size:
    blocks = len(section["ratios"])
    width = section["n_filters"] * 2**blocks
    size = _conv(section["dimension"], width, section["kernel_size"], _norm(section, blocks + 1))
    size += _lstm(width, section["lstm"])
    for block, ratio in zip(range(blocks, 0, -1), section["ratios"], strict=True):
        size += _conv(width, width // 2, 2 * ratio, _norm(section, block), transposed=True)
        width //= 2
        size += _residual(section, width, block)
    return size + _conv(width, section["channels"], section["last_kernel_size"], _norm(section, 0))


def _stft(section: _Section) -> Size:
    """`MultiScaleSTFTDiscriminator`; windows of the spectrograms are part of its state."""
    filters, norm, out = section["filters"], section["norm"], section["out_channels"]
    most, scale = section.get("max_filters", 1024), section.get("filters_scale", 1)
    kernel = section.get("kernel_size", (3, 9))
    channels = 1 if section.get("sep_channels") else section["in_channels"]
    depth = len(section.get("dilations", (1, 2, 4)))
    widths = [filters, *(min(scale**d * filters, most) for d in range(1, depth + 2))]
    one = _conv(2 * channels, filters, prod(kernel), "none")
    one = _total(one, *(_conv(a, b, prod(kernel), norm) for a, b in pairwise(widths[:-1])))
    one += _conv(widths[-2], widths[-1], kernel[0] ** 2, norm) + _conv(widths[-1], out, kernel[0] ** 2, norm)
    return _total(*[one] * len(section["n_ffts"])) + Size(0, sum(section["win_lengths"]))


def _period(section: _Section) -> Size:
    """`MultiPeriodDiscriminator`."""
    filters, scale, most = section["filters"], section["filters_scale"], section["max_filters"]
    widths = [min(filters * scale ** (d + 1), most) for d in range(section["n_layers"])]
    inner, last = section["kernel_sizes"]
    one = _total(*(_conv(a, b, inner, section["norm"]) for a, b in pairwise([section["in_channels"], *widths])))
    one += _conv(widths[-1], section["out_channels"], last, section["norm"])
    return _total(*[one] * len(section["periods"]))


def _scale(section: _Section) -> Size:
    """`MultiScaleDiscriminator`."""
    scales, taps, groups = section["downsample_scales"], section["inner_kernel_sizes"], section["groups"]
    (first, last), most, out = section["kernel_sizes"], section["max_filters"], section["out_channels"]
    size = Size()
    for norm in section["scale_norms"]:
        width = section["filters"]
        size += _conv(section["in_channels"], width, first * last, norm)
        for i, scale in enumerate(scales):
            wider = min(width * scale, most)
            size += _conv(width, wider, taps[i] if taps else 10 * scale + 1, norm, groups[i] if groups else width // 4)
            width = wider
        wider = min(2 * width, most)
        size += _conv(width, wider, first, norm) + _conv(wider, out, last, norm)
    return size
