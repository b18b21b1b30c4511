"""The sections that every solver reads: `config/config.yaml` and `config/solver/default.yaml`."""

from typing import Literal

from typing_extensions import TypedDict

from audiotok.schema.values import (
    Betas,
    Count,
    Decay,
    Epochs,
    Factor,
    Flag,
    Label,
    Level,
    Names,
    Pair,
    Positive,
    PositiveShare,
    Rate,
    Real,
    Seed,
    Share,
    Text,
    Whole,
)


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
