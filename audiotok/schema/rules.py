"""Which keys go together, and which do nothing in some configurations.

A rule is called when every key by itself is right, and yields a line for each fault.
"""

import math
from collections.abc import Iterator
from typing import Any

from audiotok.config_text import Plain, value_at
from audiotok.experiments.schema import Idle, line_start, shown
from audiotok.schema.losses import Losses

_MOST_SHARE = 10  # nothing is left to reconstruct; an absolute weight, such as 1000, was meant
_OUTPUT_LOSSES = frozenset(Losses.__annotations__) - {"mmd"}


def _get(cfg: Plain, key: str, default: Any = None) -> Any:
    """Value of a key; a run that was frozen before it lacks it."""
    value = value_at(cfg, tuple(key.split(".")))
    return default if value is None else value


def _is(cfg: Plain, *keys: str) -> str:
    """Keys with their values, for messages."""
    return ", ".join(line_start(cfg, key) for key in keys)


def _training(cfg: Plain) -> Iterator[str]:
    """Sizes of the epochs, and the schedule."""
    per_epoch, name = _get(cfg, "optim.updates_per_epoch"), _get(cfg, "schedule.lr_scheduler")
    data = _split(cfg, "train")
    batch, samples, accumulate = data.get("batch_size"), data.get("num_samples"), _get(cfg, "optim.accumulate", 1)
    if per_epoch is None and batch and samples:
        per_epoch = samples // (batch * accumulate)
        if per_epoch == 0:
            of_update = "a batch" if accumulate == 1 else f"each of {_is(cfg, 'optim.accumulate')} batches of an update"
            found = f"dataset.train.num_samples={samples} with {batch} in {of_update}"
            filled = "a batch" if accumulate == 1 else "an update"
            yield f"{found}: give as many as fill {filled}, or set optim.updates_per_epoch"
    warmup, epochs = _get(cfg, f"schedule.{name}.warmup", 0), _get(cfg, "optim.epochs")
    if per_epoch and epochs and warmup > per_epoch * epochs:
        yield f"{_is(cfg, f'schedule.{name}.warmup')}: give at most the {per_epoch * epochs} updates of the training"


def _split(cfg: Plain, name: str) -> dict[str, Any]:
    """Settings of a split of the dataset, those above it included."""
    data = _get(cfg, "dataset", {})
    return {**data, **_get(cfg, f"dataset.{name}", {})}


def _codebooks(cfg: Plain) -> int:
    return 1 if _get(cfg, "encodec.quantizer") == "no_quant" else int(_get(cfg, "rvq.n_q", 2))


def _dependence(cfg: Plain) -> Iterator[str]:
    """The MMD of training, and what evaluate measures."""
    weight, n_q = _get(cfg, "losses.mmd", 0), _codebooks(cfg)
    if weight and n_q == 1:
        yield f"{_is(cfg, 'losses.mmd')} with {n_q} codebook: give 0, or rvq.n_q of 2 or more (encodec.quantizer=rvq)"
    if weight > _MOST_SHARE and _get(cfg, "mmd.weighting") == "share":
        found = _is(cfg, "losses.mmd", "mmd.weighting")
        yield f"{found}: give a share of at most {_MOST_SHARE}, such as 0.5, or mmd.weighting=absolute"
    sigmas = _get(cfg, "mmd.sigmas")
    if isinstance(sigmas, list) and len(sigmas) > _get(cfg, "mmd.num_features", len(sigmas)):
        yield f"{_is(cfg, 'mmd.num_features')}: give at least one for each of the {len(sigmas)} mmd.sigmas"
    if n_q == 1:
        return
    yield from _between(cfg)
    for split, key, switch in (
        ("train", "mmd", True),
        ("valid", "mmd", True),
        ("evaluate", "metrics.mmd", _get(cfg, "evaluate.metrics.mmd")),
        ("evaluate", "metrics.dependence", _get(cfg, "evaluate.metrics.dependence")),
    ):
        frames = _frames(cfg, split)
        if switch and _get(cfg, f"{key}.delay") and frames is not None and frames <= n_q:
            found = f"segment_duration={_split(cfg, split)['segment_duration']} of {split} has {frames} frames"
            yield f"{found}: {key}.delay of {n_q} codebooks needs {n_q + 1} or more"
        samples = _split(cfg, split).get("num_samples")
        if split == "evaluate" and switch and samples == 1 and _get(cfg, f"{key}.shuffle") != "frames":
            yield f"dataset.evaluate.num_samples=1: {key} needs 2 clips or more, and recordings of many to be of use"


def _between(cfg: Plain) -> Iterator[str]:
    """What the MMD of training compares, beside the delay and the sizes of the data."""
    if _get(cfg, "mmd.between", "codebooks") == "codebooks":
        return
    if _get(cfg, "mmd.delay"):
        yield f"{_is(cfg, 'mmd.between', 'mmd.delay')}: only codebooks are delayed; give mmd.delay=false"
    if _get(cfg, "mmd.between") != "frames":
        return
    for split in ("train", "valid"):
        batch, gathered = _split(cfg, split).get("batch_size", 2), _get(cfg, "mmd.num_batches_mmd", 1)
        if batch * gathered < 2:
            found = f"{_is(cfg, 'mmd.between', 'mmd.num_batches_mmd')} with {batch} clip in a batch of {split}"
            yield f"{found}: clips are the samples; gather 2 or more"
        frames = _frames(cfg, split)
        if frames == 1:
            yield f"{_is(cfg, 'mmd.between')}: a segment of {split} has 1 frame; give a longer segment_duration"


def _samples(cfg: Plain, split: str) -> int | None:
    """Samples of a segment; None for whole tracks."""
    seconds, rate = _split(cfg, split).get("segment_duration"), _get(cfg, "sample_rate")
    return round(seconds * rate) if seconds and rate else None


def _frames(cfg: Plain, split: str) -> int | None:
    samples, ratios = _samples(cfg, split), _side(cfg, "encoder").get("ratios")
    return math.ceil(samples / math.prod(ratios)) if samples and ratios else None


def _side(cfg: Plain, name: str) -> dict[str, Any]:
    """Settings of one side of the autoencoder."""
    shared = {key: value for key, value in _get(cfg, "seanet", {}).items() if key not in ("encoder", "decoder")}
    return {**shared, **_get(cfg, f"seanet.{name}", {})}


def _network(cfg: Plain) -> Iterator[str]:
    """The autoencoder."""
    for key in ("encodec.sample_rate", "mel.sample_rate", "msspec.sample_rate", "sisnr.sample_rate"):
        if _get(cfg, key, _get(cfg, "sample_rate")) != _get(cfg, "sample_rate"):
            yield f"{_is(cfg, key, 'sample_rate')}: make them equal"
    if _get(cfg, "encodec.channels", _get(cfg, "channels")) != _get(cfg, "channels"):
        yield f"{_is(cfg, 'encodec.channels', 'channels')}: make them equal"
    if _get(cfg, "encodec.causal") and _get(cfg, "encodec.renormalize"):
        yield f"{_is(cfg, 'encodec.causal', 'encodec.renormalize')}: give false to one, as loudness is of a whole clip"
    encoder, decoder = _side(cfg, "encoder"), _side(cfg, "decoder")
    for name in ("dimension", "channels"):
        if encoder.get(name) != decoder.get(name):
            yield f"seanet.encoder has {name} {encoder.get(name)}, seanet.decoder {decoder.get(name)}: make them equal"
    if _get(cfg, "encodec.channels") != encoder.get("channels"):
        yield f"{_is(cfg, 'encodec.channels', 'seanet.channels')}: make them equal"
    hops = [math.prod(side.get("ratios", ())) for side in (encoder, decoder)]
    if hops[0] != hops[1]:
        yield f"seanet.encoder has ratios of product {hops[0]}, seanet.decoder {hops[1]}: make them equal"
    if hops[0] > 2**24:
        yield f"{_is(cfg, 'seanet.ratios')}: give ratios of a product of at most 16777216"
    for name, side in (("encoder", encoder), ("decoder", decoder)):
        ratios, filters = side.get("ratios", ()), side.get("n_filters", 1)
        if filters * 2 ** len(ratios) > 2**20:
            yield f"n_filters={filters} of seanet.{name}, doubled {len(ratios)} times: give at most 1048576 channels"
        if side.get("n_residual_layers") and "n_filters" in side and side.get("compress", 1) > filters:
            yield f"compress={side['compress']} of seanet.{name}: give at most n_filters={filters}"
        if side.get("n_residual_layers", 0) and side.get("dilation_base", 1) ** (side["n_residual_layers"] - 1) > 2**20:
            yield f"{_is(cfg, 'seanet.dilation_base', 'seanet.n_residual_layers')}: give less, dilations grow too large"
        if side.get("disable_norm_outer_blocks", 0) > len(ratios) + 2:
            yield f"disable_norm_outer_blocks={side['disable_norm_outer_blocks']} of seanet.{name}: give 0 to " + str(
                len(ratios) + 2
            )
        if side.get("norm") == "time_group_norm" and side.get("causal"):
            yield f"norm=time_group_norm of seanet.{name} with causal=true: give weight_norm, or causal=false"
    if decoder.get("trim_right_ratio", 1) != 1 and not decoder.get("causal"):
        yield f"{_is(cfg, 'seanet.decoder.trim_right_ratio')} with causal=false: give 1, or encodec.causal=true"


def _spectra(cfg: Plain) -> Iterator[str]:
    """Sizes of spectra, and whether segments hold them."""
    least: dict[str, int] = {}  # samples of a segment that it needs
    for name in ("mel", "mrstft", "msstftd"):
        section = _get(cfg, name, {})
        if name == "mel":
            sizes = [[section.get(key)] for key in ("n_fft", "hop_length", "win_length")]
        else:
            sizes = [section.get(key) for key in ("n_ffts", "hop_lengths", "win_lengths")]
        if None in sizes or None in (*sizes[0], *sizes[1]):
            continue
        n_ffts, hops, windows = sizes
        if not len(n_ffts) == len(hops) == len(windows):
            counts = f"{len(n_ffts)} n_ffts, {len(hops)} hop_lengths, {len(windows)} win_lengths"
            yield f"{name} has {counts}: give as many of each"
        elif any(max(hop, window or n_fft) > n_fft for n_fft, hop, window in zip(n_ffts, hops, windows, strict=True)):
            found = f"{name} has n_fft {shown(n_ffts)}, hops {shown(hops)}, windows {shown(windows)}"
            yield f"{found}: give hops and windows of at most n_fft"
        else:
            side = (n_ffts[0] - hops[0]) // 2 + 1 if name == "mel" else max(n_ffts) // 2 + 1
            least[name] = max(n_ffts) if name == "msstftd" else side
    start, end = _get(cfg, "msspec.range_start"), _get(cfg, "msspec.range_end")
    if start is not None and end is not None:
        if start >= end:
            yield f"{_is(cfg, 'msspec.range_start', 'msspec.range_end')}: give a start below the end"
        least["msspec"] = 3 * 2 ** (end - 1) // 8 + 1
    for name in ("mel", "msspec"):
        section = _get(cfg, name, {})
        rate = section.get("sample_rate")
        highest = section.get("f_max") or (rate and rate / 2)
        if highest and section.get("f_min", 0) >= highest:
            yield f"{_is(cfg, f'{name}.f_min')}: give less than the highest frequency, {highest:g} Hz"
    rate, segment = _get(cfg, "sisnr.sample_rate"), _get(cfg, "sisnr.segment")
    if rate and segment and int(int(segment * rate) * (1 - _get(cfg, "sisnr.overlap", 0.5))) < 1:
        yield f"{_is(cfg, 'sisnr.segment')}: give at least a few samples at {rate} Hz"
    active = _get(cfg, "adversarial.adversaries", [])
    for split in ("train", "valid", "evaluate"):
        have = _samples(cfg, split)
        for name, need in least.items():
            in_use = name in active if name == "msstftd" else split != "evaluate" or name == "mel"
            used = in_use and (split != "train" or name == "msstftd" or _get(cfg, f"losses.{name}", 0) > 0)
            if split == "evaluate":
                used = name == "mel" and bool(_get(cfg, "evaluate.metrics.mel"))
            if used and have is not None and have < need:
                found = f"segment_duration={_split(cfg, split)['segment_duration']} of {split} has {have} samples"
                yield f"{found}: {name} needs {need} or more"


def _discriminators(cfg: Plain) -> Iterator[str]:
    """The adversaries that are chosen."""
    active = _get(cfg, "adversarial.adversaries", [])
    if len(set(active)) < len(active):
        yield f"{_is(cfg, 'adversarial.adversaries')}: give each of them once"
    for name in active:
        section = _get(cfg, name, {})
        if section.get("in_channels", _get(cfg, "channels")) != _get(cfg, "channels"):
            yield f"{_is(cfg, f'{name}.in_channels', 'channels')}: make them equal"
    if "msd" in active:
        yield from _msd(_get(cfg, "msd", {}))
    if "mpd" in active and any(size % 2 == 0 for size in _get(cfg, "mpd.kernel_sizes", [])):
        yield f"{_is(cfg, 'mpd.kernel_sizes')}: give two odd numbers"


def _msd(section: dict[str, Any]) -> Iterator[str]:
    scales, groups = section.get("downsample_scales", []), section.get("groups")
    if any(size % 2 == 0 for size in section.get("kernel_sizes", [])):
        yield f"msd.kernel_sizes={shown(section['kernel_sizes'])}: give two odd numbers"
    wrong = [key for key in ("inner_kernel_sizes", "groups", "strides", "paddings")
             if section.get(key) and len(section[key]) != len(scales)]  # fmt: skip
    for key in wrong:
        yield f"msd.{key}={shown(section[key])}: give {len(scales)} values, as downsample_scales has, or null"
    if groups and not wrong:
        width, most = section.get("filters", 1), section.get("max_filters", 1024)
        for scale, group in zip(scales, groups, strict=True):
            wider = min(width * scale, most)
            if width % group or wider % group:
                yield f"msd.groups={shown(groups)}: {group} divides not both {width} and {wider} channels"
                return
            width = wider


def _losses(cfg: Plain) -> Iterator[str]:
    """Some loss of the output, which the balancer weighs."""
    losses = {name: weight for name, weight in _get(cfg, "losses", {}).items() if name != "mmd"}
    if losses.keys() >= _OUTPUT_LOSSES and not any(losses.values()):
        yield f"losses: the weights of {', '.join(sorted(losses))} are 0: give one of them a weight above 0"


def _audio(cfg: Plain) -> Iterator[str]:
    """Samples that the format can hold, and manifests of the splits."""
    rate, form = _get(cfg, "sample_rate"), _get(cfg, "generate.audio.format")
    rates = {
        "opus": (8000, 12000, 16000, 24000, 48000),
        "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    }.get(form, (rate,))
    if rate not in rates:
        found = f"{_is(cfg, 'generate.audio.format')} at sample_rate={rate}"
        yield f"{found}: give another format, or a rate of {shown(list(rates))}"
    if form == "mp3" and (channels := _get(cfg, "channels", 1)) > 2:
        yield f"generate.audio.format=mp3 of channels={channels}: give another format, or at most 2 channels"
    for key in ("sample_rate", "channels"):
        have, most = _get(cfg, key), _get(cfg, f"datasource.max_{key}")
        if have and most and have > most:
            yield f"{_is(cfg, key)}: the data has at most {_is(cfg, f'datasource.max_{key}')}"
    yield from _manifests(cfg)


def _manifests(cfg: Plain) -> Iterator[str]:
    missing = [f"datasource.{split}" for split in ("train", "valid", "evaluate", "generate")
               if "datasource" in cfg and not _get(cfg, f"datasource.{split}")]  # fmt: skip
    if missing:
        advice = "choose data such as dset=audio/demo, or name manifests made by `audiotok data prepare`"
        yield f"{', '.join(missing)} not set; {advice}"


def _language_model(cfg: Plain) -> Iterator[str]:
    """The model, its codec, and what is drawn from it."""
    if not _get(cfg, "compression_model_checkpoint"):
        yield "compression_model_checkpoint not set; give //sig/SIG, //pretrained/PATH, or demo: the codec of the codes"
    rope = _get(cfg, "lm.positions") == "rope"
    for width, heads, even in (("lm.dim", "lm.num_heads", rope), ("lm.depth_dim", "lm.depth_heads", False)):
        if width == "lm.depth_dim" and _no_chain(cfg):
            continue
        dim, count = _get(cfg, width, 4), _get(cfg, heads, 1)
        if dim % count:
            yield f"{_is(cfg, width, heads)}: give channels that the heads divide"
        elif dim < 4 or (dim // count if even else dim) % 2:
            of = " of each head, for lm.positions=rope" if even else ""
            yield f"{_is(cfg, width, heads)}: give an even number of channels{of}, 4 or more in all"
    heads_of = _get(cfg, "lm.heads", ["parallel"])
    if "parallel" not in heads_of or len(set(heads_of)) < len(heads_of):
        yield f"{_is(cfg, 'lm.heads')}: give [parallel] or [parallel, chain]"
    if _get(cfg, "lm.delays") and _get(cfg, "lm.pattern", "delay") not in ("delay", "coarse_first"):
        yield f"{_is(cfg, 'lm.delays', 'lm.pattern')}: give null, or pattern delay or coarse_first"
    guidance = _get(cfg, "generate.lm.guidance", 1)
    if guidance != 1 and not _get(cfg, "lm.labels"):
        yield f"{_is(cfg, 'generate.lm.guidance', 'lm.labels')}: give a guidance of 1, or lm.labels"
    for split in ("train", "valid", "evaluate", "generate"):
        data = _split(cfg, split)
        if "segment_duration" in data and data["segment_duration"] is None:
            yield f"segment_duration=null of {split}: give the seconds of a window of codes"
    if _split(cfg, "generate").get("num_samples", 1) is None:
        yield "num_samples=null of generate: give how many clips become audio"
    prompt, clip = _get(cfg, "generate.lm.prompt_duration", 0), _split(cfg, "generate").get("segment_duration")
    if clip and prompt >= clip:
        yield f"{_is(cfg, 'generate.lm.prompt_duration')}: give less than the {clip:g} s of a generated clip"
    yield from _manifests(cfg)


# --- Keys that do nothing in some configurations ---


def _unless(key: str, *values: Any) -> Any:
    """A reason unless a key has one of some values."""
    return lambda cfg: "" if _get(cfg, key) in values else _is(cfg, key)


def _of_schedule(name: str) -> Idle:
    return Idle((f"schedule.{name}.*",), _unless("schedule.lr_scheduler", name))


def _of_adversary(name: str) -> Idle:
    def reason(cfg: Plain) -> str:
        return "" if name in _get(cfg, "adversarial.adversaries", []) else _is(cfg, "adversarial.adversaries")

    return Idle((f"{name}.*",), reason)


def _without_adversaries(cfg: Plain) -> str:
    return "" if _get(cfg, "adversarial.adversaries") else _is(cfg, "adversarial.adversaries")


def _one_codebook(cfg: Plain) -> str:
    return "there is one codebook" if _codebooks(cfg) == 1 else ""


def _measured_exactly(cfg: Plain) -> str:
    if _get(cfg, "losses.mmd"):
        return _is(cfg, "losses.mmd")
    if _get(cfg, "mmd.max_samples") is None:
        return ""
    if _get(cfg, "mmd.estimator") in ("clips", "samples"):
        return _is(cfg, "mmd.estimator")
    between = _get(cfg, "mmd.between", "codebooks") != "codebooks"
    whole = between and _get(cfg, "mmd.estimator") in ("unbiased", "rff")
    return _is(cfg, "mmd.between", "mmd.estimator") if whole else ""


def _no_chain(cfg: Plain) -> str:
    return "" if "chain" in _get(cfg, "lm.heads", []) else _is(cfg, "lm.heads")


def _given(key: str) -> Any:
    return lambda cfg: _is(cfg, key) if _get(cfg, key) else ""


_SCHEDULES = tuple(map(_of_schedule, (
    "cosine", "linear_warmup", "inverse_sqrt", "polynomial_decay", "step", "exponential",
)))  # fmt: skip
COMMON_IDLE = (
    *_SCHEDULES,
    Idle(("optim.ema.updates", "optim.ema.decay"), _unless("optim.ema.use", True)),
    Idle(("checkpoint.keep_last", "checkpoint.keep_every_states"),
         lambda cfg: "" if _get(cfg, "checkpoint.save_every") else _is(cfg, "checkpoint.save_every")),
    Idle(("dataset.train.num_samples",), _given("optim.updates_per_epoch")),
    Idle(("continue_with",), lambda cfg: "" if _get(cfg, "continue_from") else _is(cfg, "continue_from")),
)  # fmt: skip
COMPRESSION_IDLE = (
    *COMMON_IDLE,
    *map(_of_adversary, ("msstftd", "mpd", "msd")),
    Idle(("losses.adv", "losses.feat"), _without_adversaries, refused=True),
    Idle(("adversarial.every", "adversarial.*_loss", "adversarial.normalize"), _without_adversaries),
    Idle(("mmd.num_features", "mmd.features_seed"), _unless("mmd.estimator", "rff")),
    Idle(("mmd.max_samples",), _measured_exactly),
    Idle(("mmd.weighting", "mmd.start_epoch", "mmd.ramp_epochs"),
         lambda cfg: "" if _get(cfg, "losses.mmd") else _is(cfg, "losses.mmd")),
    Idle(("mmd.*", "metrics.dependence.*", "metrics.mmd.*"), _one_codebook),
    Idle(("balancer.total_norm", "balancer.epsilon"), _unless("balancer.balance_grads", True)),
    Idle(("rvq.*",), _unless("encodec.quantizer", "rvq")),
    Idle(("rvq.kmeans_start", "rvq.kmeans_iters"), _unless("rvq.kmeans_init", True)),
    Idle(("rvq.orthogonal_reg_active_codes_only", "rvq.orthogonal_reg_max_codes"),
         lambda cfg: "" if _get(cfg, "rvq.orthogonal_reg_weight") else _is(cfg, "rvq.orthogonal_reg_weight")),
    Idle(("seanet.decoder.final_activation_params",), lambda cfg: (
        "" if _get(cfg, "seanet.decoder.final_activation") else _is(cfg, "seanet.decoder.final_activation"))),
    Idle(("metrics.dependence.*",), _unless("evaluate.metrics.dependence", True)),
    Idle(("metrics.mel_distance.*",), _unless("evaluate.metrics.mel_distance", True)),
    Idle(("metrics.stft_distance.*",), _unless("evaluate.metrics.stft_distance", True)),
    Idle(("metrics.pesq.*",), _unless("evaluate.metrics.pesq", True)),
    Idle(("metrics.stoi.*",), _unless("evaluate.metrics.stoi", True)),
    Idle(("metrics.fcd.*",), _unless("evaluate.metrics.fcd", True)),
    Idle(("metrics.fmd.*",), _unless("evaluate.metrics.fmd", True)),
    Idle(("metrics.mmd.*",), _unless("evaluate.metrics.mmd", True)),
)  # fmt: skip

LM_IDLE = (
    *COMMON_IDLE,
    Idle(("lm.depth_*",), _no_chain),
    Idle(("lm.autocast",), _unless("precision", "fp32", None)),
    Idle(("lm.label_dropout",), lambda cfg: "" if _get(cfg, "lm.labels") else _is(cfg, "lm.labels")),
    Idle(("dataset.min_segment_ratio", "dataset.*.min_segment_ratio"), lambda cfg: "windows of codes have no padding"),
    Idle(("generate.lm.top_k", "generate.lm.top_p"),
         lambda cfg: "" if _get(cfg, "generate.lm.temperature") else _is(cfg, "generate.lm.temperature")),
)  # fmt: skip

COMMON_RULES = (_training,)
COMPRESSION_RULES = (_training, _dependence, _network, _spectra, _discriminators, _losses, _audio)
LM_RULES = (_training, _language_model)
