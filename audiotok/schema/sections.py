"""What each key of the configuration may hold: a TypedDict a section.

The words after a type are what messages say is allowed; the meaning of a key and its default stand in `config/`.
Choices that are tables elsewhere are compared with these in `tests/test_schema.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

_MOST = 2**31 - 1
Flag = Annotated[bool, Field(strict=True), "true or false"]
Text = Annotated[str, Field(strict=True, min_length=1), "a text"]
Label = Annotated[str | int | float | bool, "a text or a number"]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63), "a whole number, 0 or more, below 2^63"]
Whole = Annotated[int, Field(strict=True, ge=0, le=_MOST), "a whole number, 0 or more"]
Count = Annotated[int, Field(strict=True, ge=1, le=_MOST), "a whole number, 1 or more"]
Epochs = Annotated[int, Field(strict=True, ge=1, le=10**6), "a whole number, from 1 to 1000000"]
Pair = Annotated[int, Field(strict=True, ge=2, le=_MOST), "a whole number, 2 or more"]
Draws = Annotated[int, Field(strict=True, ge=1, le=10**5), "a whole number, from 1 to 100000"]
Shuffled = Annotated[int, Field(strict=True, ge=2, le=10**5), "a whole number, from 2 to 100000"]
Width = Annotated[int, Field(strict=True, ge=1, le=2**20), "a whole number, from 1 to 1048576"]
Depth = Annotated[int, Field(strict=True, ge=0, le=1000), "a whole number, from 0 to 1000"]
Rate = Annotated[int, Field(strict=True, ge=1, le=10**6), "a sample rate in Hz, a whole number from 1 to 1000000"]
Real = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), "a number, 0 or more"]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), "a number above 0"]
Lufs = Annotated[float, Field(strict=True, ge=-70, le=0), "a number of LUFS from -70 to 0"]
Factor = Annotated[float, Field(strict=True, gt=1, allow_inf_nan=False), "a number above 1"]
Share = Annotated[float, Field(strict=True, ge=0, le=1), "a number from 0 to 1"]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1), "a number above 0, at most 1"]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1), "a number from 0 up to, not including, 1"]
Betas = Annotated[
    list[Decay], Field(strict=True, min_length=2, max_length=2), "two numbers, each from 0 up to, not including, 1"
]
Sigmas = (
    Annotated[list[Positive], Field(strict=True, min_length=1, max_length=1000), "a list of numbers above 0"]
    | Literal["median"]
)
Counts = Annotated[list[Count], Field(strict=True, min_length=1, max_length=100), "a list of whole numbers, 1 or more"]
TwoCounts = Annotated[
    list[Count], Field(strict=True, min_length=2, max_length=2), "a list of two whole numbers, 1 or more"
]
Wholes = Annotated[list[Whole], Field(strict=True, min_length=1, max_length=100), "a list of whole numbers, 0 or more"]
Arguments = Annotated[dict[str, Any], "names of arguments with their values"]
Level = Annotated[
    str,
    Field(strict=True, pattern=r"(?i)^(critical|fatal|error|warning|warn|info|debug|notset)$"),
    "one of: DEBUG, INFO, WARNING, ERROR",
]
Names = Annotated[list[Text], Field(strict=True), "a list of names"]

Stream = Literal["input", "residual", "code"]
Norm = Literal["none", "weight_norm", "spectral_norm", "time_group_norm"]
Activation = Literal[
    "ELU", "LeakyReLU", "ReLU", "SiLU", "GELU", "PReLU", "RReLU", "ReLU6", "CELU", "SELU", "Mish", "Tanh", "Sigmoid",
    "Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Softplus", "Softsign", "Softshrink", "Hardshrink",
    "Tanhshrink", "Identity",
]  # fmt: skip
Shuffle = Annotated[  # clips: of runs that were frozen before recordings were known
    Literal["shifts", "recordings", "frames", "clips"], "one of: shifts, recordings, frames"
]
Window = Literal["bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"]
Adversaries = Annotated[
    list[Literal["msstftd", "mpd", "msd"]], Field(strict=True), "a list of some of: msstftd, mpd, msd"
]


# --- What every solver reads: config/config.yaml and config/solver/default.yaml ---


class WandB(TypedDict, total=False):
    """Section `logging.wandb`."""

    mode: Literal["offline", "online"]
    project: Text
    entity: Text | None


class Logging(TypedDict, total=False):
    """Section `logging`."""

    level: Level
    log_updates: Whole
    log_tensorboard: Flag
    log_wandb: Flag
    every: Whole
    samples: Whole
    wandb: WandB


class Split(TypedDict, total=False):
    """What a split of `dataset` may have."""

    batch_size: Count
    num_workers: Whole
    segment_duration: Positive | None
    min_segment_ratio: PositiveShare
    max_bad_fraction: Share
    num_samples: Count | None
    shuffle: Flag


class Dataset(TypedDict, total=False):
    """Section `dataset`."""

    batch_size: Count
    num_workers: Whole
    segment_duration: Positive | None
    min_segment_ratio: PositiveShare
    max_bad_fraction: Share
    train: Split
    valid: Split
    evaluate: Split
    generate: Split


class Datasource(TypedDict, total=False):
    """Section `datasource`."""

    max_sample_rate: Rate | None
    max_channels: Count | None
    train: Text | None
    valid: Text | None
    evaluate: Text | None
    generate: Text | None


class Adam(TypedDict, total=False):
    """Section `optim.adam`."""

    betas: Betas
    weight_decay: Real


class Ema(TypedDict, total=False):
    """Section `optim.ema`."""

    use: Flag
    updates: Count
    decay: Decay


class Optim(TypedDict, total=False):
    """Section `optim`."""

    epochs: Epochs
    updates_per_epoch: Count | None
    optimizer: Literal["adam", "adamw"]
    lr: Positive
    adam: Adam
    max_norm: Real
    fused: Flag | None
    accumulate: Count
    max_skipped: Whole
    ema: Ema


class Cosine(TypedDict, total=False):
    """Section `schedule.cosine`."""

    warmup: Whole
    lr_min_ratio: Share


class LinearWarmup(TypedDict, total=False):
    """Section `schedule.linear_warmup`."""

    warmup: Whole


class InverseSqrt(TypedDict, total=False):
    """Section `schedule.inverse_sqrt`."""

    warmup: Count


class PolynomialDecay(TypedDict, total=False):
    """Section `schedule.polynomial_decay`."""

    warmup: Whole
    end_lr_ratio: Share
    power: Positive


class Step(TypedDict, total=False):
    """Section `schedule.step`."""

    step_size: Count
    gamma: PositiveShare


class Exponential(TypedDict, total=False):
    """Section `schedule.exponential`."""

    gamma: PositiveShare


class Schedule(TypedDict, total=False):
    """Section `schedule`."""

    lr_scheduler: Literal["cosine", "linear_warmup", "inverse_sqrt", "polynomial_decay", "step", "exponential"] | None
    cosine: Cosine
    linear_warmup: LinearWarmup
    inverse_sqrt: InverseSqrt
    polynomial_decay: PolynomialDecay
    step: Step
    exponential: Exponential


class Checkpoint(TypedDict, total=False):
    """Section `checkpoint`."""

    every_minutes: Real
    save_every: Whole | None
    keep_last: Count | None
    keep_every_states: Names | None


class Watch(TypedDict, total=False):
    """Section `watch` of every solver."""

    explosion: Factor | None
    window: Pair


class WatchCodec(Watch, total=False):
    """Section `watch` of the compression solver."""

    collapse: PositiveShare | None
    victory: PositiveShare | None


class Evaluate(TypedDict, total=False):
    """Section `evaluate` of every solver."""

    every: Whole | None


class GeneratedAudio(TypedDict, total=False):
    """Section `generate.audio`."""

    format: Literal["wav", "flac", "ogg", "opus", "mp3"]
    strategy: Literal["clip", "rescale", "none"]


class Generate(TypedDict, total=False):
    """Section `generate`."""

    every: Whole | None
    audio: GeneratedAudio


class Common(TypedDict, total=False):
    """The sections that every solver has. `slurm` and `dora` are checked as a profile, and by Dora."""

    solver: Text | None
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: Flag
    tf32: Flag | None
    seed: Seed
    num_threads: Count | Literal["auto"]
    deterministic: Flag
    show: Flag
    continue_from: Text | None
    continue_with: Literal["weights", "all"]
    execute_only: Literal["valid", "evaluate", "generate"] | None
    label: Label | None
    logging: Logging
    dataset: Dataset
    datasource: Datasource
    optim: Optim
    schedule: Schedule
    checkpoint: Checkpoint
    watch: Watch
    evaluate: Evaluate
    generate: Generate


# --- The compression solver: config/solver/compression/default.yaml and config/model/encodec/default.yaml ---


class Losses(TypedDict, total=False):
    """Section `losses`: weights."""

    adv: Real
    feat: Real
    l1: Real
    l2: Real
    mel: Real
    msspec: Real
    mrstft: Real
    sisnr: Real
    mmd: Real


class Mmd(TypedDict, total=False):
    """Section `mmd`."""

    weighting: Literal["absolute", "share"]
    estimator: Literal["clips", "samples", "unbiased", "disjoint", "rff", "closed"]
    between: Literal["codebooks", "dimensions", "frames"]
    stream: Stream
    sigmas: Sigmas
    delay: Flag
    num_features: Count
    features_seed: Seed
    num_batches_mmd: Count
    max_samples: Annotated[int, Field(strict=True, ge=4, le=_MOST), "a whole number, 4 or more"] | None
    start_epoch: Count
    ramp_epochs: Whole


class Balancer(TypedDict, total=False):
    """Section `balancer`."""

    balance_grads: Flag
    total_norm: Positive
    ema_decay: PositiveShare
    per_batch_item: Flag
    epsilon: Positive
    monitor: Flag


class Adversarial(TypedDict, total=False):
    """Section `adversarial`."""

    every: Count
    adversaries: Adversaries
    adv_loss: Literal["mse", "hinge", "hinge2"]
    feat_loss: Literal["l1", "l2"]
    normalize: Flag


class Mel(TypedDict, total=False):
    """Section `mel`."""

    sample_rate: Rate
    n_fft: Width
    hop_length: Width
    win_length: Width | None
    n_mels: Width
    f_min: Real
    f_max: Positive | None
    normalized: Flag
    log: Flag
    floor_level: Positive


class Msspec(TypedDict, total=False):
    """Section `msspec`."""

    sample_rate: Rate
    range_start: Annotated[int, Field(strict=True, ge=2, le=20), "a whole number from 2 to 20"]
    range_end: Annotated[int, Field(strict=True, ge=3, le=20), "a whole number from 3 to 20"]
    n_mels: Width
    f_min: Real
    f_max: Positive | None
    normalized: Flag
    alphas: Flag
    floor_level: Positive


class Mrstft(TypedDict, total=False):
    """Section `mrstft`."""

    n_ffts: Counts
    hop_lengths: Counts
    win_lengths: Counts
    window: Window
    factor_sc: Real
    factor_mag: Real
    normalized: Flag
    epsilon: Positive


class Sisnr(TypedDict, total=False):
    """Section `sisnr`."""

    sample_rate: Rate
    segment: Positive | None
    overlap: Decay
    epsilon: Positive


class Msstftd(TypedDict, total=False):
    """Section `msstftd`."""

    in_channels: Count
    out_channels: Count
    filters: Width
    norm: Norm
    n_ffts: Counts
    hop_lengths: Counts
    win_lengths: Counts
    activation: Activation
    activation_params: Arguments | None
    max_filters: Width
    filters_scale: Count
    kernel_size: TwoCounts
    dilations: Counts
    stride: TwoCounts
    normalized: Flag
    sep_channels: Flag


class Mpd(TypedDict, total=False):
    """Section `mpd`."""

    in_channels: Count
    out_channels: Count
    periods: Counts
    n_layers: Count
    kernel_sizes: TwoCounts
    stride: Count
    filters: Width
    filters_scale: Count
    max_filters: Width
    activation: Activation
    activation_params: Arguments | None
    norm: Norm


class Msd(TypedDict, total=False):
    """Section `msd`."""

    in_channels: Count
    out_channels: Count
    scale_norms: Annotated[list[Norm], Field(strict=True, min_length=1, max_length=10), "a list of normalisations"]
    kernel_sizes: TwoCounts
    filters: Width
    max_filters: Width
    downsample_scales: Counts
    downsample_factor: Count
    inner_kernel_sizes: Counts | None
    groups: Counts | None
    strides: Counts | None
    paddings: Wholes | None
    pad: Literal["ReflectionPad1d", "ReplicationPad1d", "ConstantPad1d", "ZeroPad1d", "CircularPad1d"]
    pad_params: Arguments | None
    activation: Activation
    activation_params: Arguments | None


class EvaluateMetrics(TypedDict, total=False):
    """Section `evaluate.metrics`."""

    sisdr: Flag
    mel_distance: Flag
    stft_distance: Flag
    visqol: Flag
    pesq: Flag
    stoi: Flag
    fcd: Flag
    fmd: Flag
    sisnr: Flag
    mel: Flag
    dependence: Flag
    mmd: Flag


class EvaluateCodec(Evaluate, total=False):
    """Section `evaluate`."""

    metrics: EvaluateMetrics


class DistanceMetric(TypedDict, total=False):
    """Sections `metrics.mel_distance` and `metrics.stft_distance`."""

    level: Lufs | None


class PesqMetric(TypedDict, total=False):
    """Section `metrics.pesq`."""

    band: Literal["wide", "narrow"]


class StoiMetric(TypedDict, total=False):
    """Section `metrics.stoi`."""

    extended: Flag


class FcdMetric(TypedDict, total=False):
    """Section `metrics.fcd`."""

    extrapolate: Flag


class FmdMetric(TypedDict, total=False):
    """Section `metrics.fmd`."""

    n_fft: Width
    hop_length: Width
    n_mels: Width
    floor_level: Positive
    extrapolate: Flag


class DependenceMetric(TypedDict, total=False):
    """Section `metrics.dependence`."""

    delay: Flag
    num_shuffles: Shuffled
    shuffle: Shuffle
    pairs: Flag
    groups: Count


class MmdMetric(TypedDict, total=False):
    """Section `metrics.mmd`."""

    stream: Stream
    sigmas: Sigmas
    delay: Flag
    num_permutations: Draws
    shuffle: Shuffle
    max_samples: Annotated[int, Field(strict=True, ge=4, le=_MOST), "a whole number, 4 or more"]


class Metrics(TypedDict, total=False):
    """Section `metrics`."""

    mel_distance: DistanceMetric
    stft_distance: DistanceMetric
    pesq: PesqMetric
    stoi: StoiMetric
    fcd: FcdMetric
    fmd: FmdMetric
    dependence: DependenceMetric
    mmd: MmdMetric


class Encodec(TypedDict, total=False):
    """Section `encodec`."""

    autoencoder: Literal["seanet"]
    quantizer: Literal["rvq", "no_quant"]
    sample_rate: Rate
    channels: Count
    causal: Flag
    renormalize: Flag


class SeanetSide(TypedDict, total=False):
    """What both sides of `seanet` have."""

    channels: Count
    dimension: Width
    n_filters: Width
    n_residual_layers: Depth
    ratios: Counts
    activation: Activation
    activation_params: Arguments | None
    norm: Norm
    norm_params: Arguments | None
    kernel_size: Width
    last_kernel_size: Width
    residual_kernel_size: Width
    dilation_base: Width
    causal: Flag
    pad_mode: Literal["constant", "reflect", "replicate"]
    true_skip: Flag
    compress: Width
    lstm: Depth
    disable_norm_outer_blocks: Depth


class SeanetDecoder(SeanetSide, total=False):
    """Section `seanet.decoder`."""

    trim_right_ratio: Share
    final_activation: Activation | None
    final_activation_params: Arguments | None


class Seanet(SeanetSide, total=False):
    """Section `seanet`."""

    decoder: SeanetDecoder | None
    encoder: SeanetSide | None


class Rvq(TypedDict, total=False):
    """Section `rvq`."""

    n_q: Annotated[int, Field(strict=True, ge=1, le=1000), "a whole number, from 1 to 1000"]
    q_dropout: Flag
    bins: Annotated[int, Field(strict=True, ge=2, le=2**20), "a whole number, from 2 to 1048576"]
    decay: Decay
    kmeans_init: Flag
    kmeans_start: Literal["sample", "plusplus"]
    kmeans_iters: Count
    threshold_ema_dead_code: Real
    commitment_weight: Real
    orthogonal_reg_weight: Real
    orthogonal_reg_active_codes_only: Flag
    orthogonal_reg_max_codes: Pair | None


class NoQuant(TypedDict, total=False):
    """Section `no_quant`, which is empty."""


class Compression(Common, total=False):
    """The configuration of the compression solver."""

    sample_rate: Rate
    channels: Count
    compression_model: Literal["encodec"]
    losses: Losses
    mmd: Mmd
    balancer: Balancer
    adversarial: Adversarial
    mel: Mel
    msspec: Msspec
    mrstft: Mrstft | None
    sisnr: Sisnr
    msstftd: Msstftd
    mpd: Mpd
    msd: Msd
    watch: WatchCodec  # type: ignore[misc]  # more keys than of every solver
    evaluate: EvaluateCodec  # type: ignore[misc]  # likewise
    metrics: Metrics
    encodec: Encodec
    seanet: Seanet
    rvq: Rvq
    no_quant: NoQuant | None


# --- The solver of language models: config/solver/lm/default.yaml ---

Heads = Annotated[
    list[Literal["parallel", "chain"]],
    Field(strict=True, min_length=1, max_length=2),
    "[parallel] or [parallel, chain]",
]
Delays = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, le=10**6)]],
    Field(strict=True, min_length=1, max_length=1000),
    "a list of whole numbers, from 0 to 1000000",
]


class Lm(TypedDict, total=False):
    """Section `lm`."""

    dim: Width
    num_heads: Width
    num_layers: Annotated[int, Field(strict=True, ge=1, le=1000), "a whole number, from 1 to 1000"]
    hidden_scale: Annotated[int, Field(strict=True, ge=1, le=100), "a whole number, from 1 to 100"]
    dropout: Decay
    bias_attn: Flag
    bias_ff: Flag
    bias_proj: Flag
    positions: Literal["sin", "rope"]
    pattern: Literal["parallel", "delay", "flatten", "coarse_first"]
    delays: Delays | None
    heads: Heads
    depth_dim: Width
    depth_heads: Width
    depth_layers: Annotated[int, Field(strict=True, ge=1, le=1000), "a whole number, from 1 to 1000"]
    no_context: Flag
    labels: Text | None
    label_dropout: Share
    autocast: Flag


class Tokens(TypedDict, total=False):
    """Section `tokens`."""

    batch_size: Count | None
    num_workers: Count


class GenerateLm(TypedDict, total=False):
    """Section `generate.lm`."""

    temperature: Real
    top_k: Whole
    top_p: PositiveShare
    guidance: Real
    prompt_duration: Real
    num_clips: Count
    seed: Seed


class GenerateOfLm(Generate, total=False):
    """Section `generate`."""

    lm: GenerateLm


class LanguageModel(Common, total=False):
    """The configuration of the solver of language models."""

    compression_model_checkpoint: Text | None
    lm: Lm
    tokens: Tokens
    generate: GenerateOfLm  # type: ignore[misc]  # more keys than of every solver
