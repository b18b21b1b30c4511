"""The sections of what evaluate measures of a codec."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from audiotok.schema.common import Evaluate
from audiotok.schema.values import MOST, Count, Draws, Flag, Lufs, Positive, Shuffle, Shuffled, Sigmas, Stream, Width


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
    max_samples: Annotated[int, Field(strict=True, ge=4, le=MOST), "a whole number, 4 or more"]


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
