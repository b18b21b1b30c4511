"""The sections of networks and quantisers, and the configuration of the compression solver."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from audiotok.schema.common import Common, WatchCodec
from audiotok.schema.evaluation import EvaluateCodec, Metrics
from audiotok.schema.losses import Adversarial, Balancer, Losses, Mel, Mmd, Mpd, Mrstft, Msd, Msspec, Msstftd, Sisnr
from audiotok.schema.values import (
    Activation,
    Arguments,
    Count,
    Counts,
    Decay,
    Depth,
    Flag,
    Norm,
    Pair,
    Rate,
    Real,
    Share,
    Width,
)


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
