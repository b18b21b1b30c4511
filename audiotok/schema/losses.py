"""The sections of what a codec is trained with: losses, the MMD, balancer and discriminators."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from audiotok.schema.values import (
    MOST,
    Activation,
    Adversaries,
    Arguments,
    Count,
    Counts,
    Decay,
    Flag,
    Norm,
    Positive,
    PositiveShare,
    Rate,
    Real,
    Seed,
    Sigmas,
    Stream,
    TwoCounts,
    Whole,
    Wholes,
    Width,
    Window,
)


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
    max_samples: Annotated[int, Field(strict=True, ge=4, le=MOST), "a whole number, 4 or more"] | None
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
