"""Fréchet distances between two sets of vectors, each taken for a Gaussian: of codec vectors and of log-mel frames.

With means m, m' and covariances S, S': |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), which is the squared 2-Wasserstein
distance of the two Gaussians. It sees means and covariances alone, and no order in time.

From N frames it comes out too high, by about c / N: c is D (D + 5) / 2 for two independent sets of the same law in D
dimensions of variance 1, larger where frames are alike, as neighbours are, and smaller where the sets share their
frames, as a recording and its copy do. Twice the value of all clips minus the mean value of their halves is free of
that term (Chong and Forsyth).

Sets of different clips, generated ones and those of a reference, are at a `distance_of_sets`: the jackknife over their
recordings gives its value for infinitely many of them, and its standard error.

Sources: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; Heusel et al.,
"GANs trained by a two time-scale update rule", NeurIPS 2017; Kilgour et al., "Fréchet Audio Distance", Interspeech
2019; Chong and Forsyth, "Effectively unbiased FID and Inception Score", CVPR 2020; Gui et al.,
"Adapting Fréchet Audio Distance for Generative Music Evaluation", ICASSP 2024 (infinite sample size); Busing et al.,
"Delete-m Jackknife for Unequal m", Statistics and Computing, 1999.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from audiotok.errors import ConfigError, DataError

_EXTRAPOLATED = ", extrapolated to infinitely many clips"
_GROUPS = 32  # of recordings, of which each is left out once


@dataclass
class Moments:
    """Count, mean [D] and sum of squared deviations [D, D] of vectors, in float64, on the CPU."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(vectors: Tensor) -> "Moments":
        """Of vectors [N, D], N at least 1."""
        vectors = vectors.detach().cpu().double()
        mean = vectors.mean(0)
        centred = vectors - mean
        return Moments(len(vectors), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Of the vectors of both (Chan et al., 1979: no difference of large sums)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        outer = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + outer)

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by N - 1."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians, 0 if equal, in squared units of the vectors.

    tr (S S')^(1/2) is the sum of the singular values of S^(1/2) S'^(1/2). With the roots by eigendecomposition it takes
    no root of a rounding error: covariances without full rank lose no more digits than others.

    Raises:
        DataError: if one of the sets has fewer than 2 vectors.
    """
    if min(a.count, b.count) < 2:
        raise DataError("a covariance takes two frames or more")
    first, second = a.covariance, b.covariance
    shared = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a symmetric, positive semidefinite matrix; negative eigenvalues are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


class FrechetDistance:
    """Gathers vectors of reference and estimate clip by clip, then measures their Fréchet distance; lower is better.

    Clips are dealt out to two halves in turn, so that the distance is known at all clips and at half of them.

    Args:
        relative: divide by the total variance of the reference (the trace of its covariance): a distance without
            unit, which does not shrink with the vectors.
        extrapolate: to infinitely many clips, by the distances of the halves: without bias, but with more noise, and
            below 0 at times.
    """

    def __init__(self, *, relative: bool, extrapolate: bool) -> None:
        self.relative, self.extrapolate = relative, extrapolate
        self._halves: list[list[Moments]] = [[], []]  # of either half: reference, estimate
        self._clips = 0

    def take(self, *, estimate: Tensor, reference: Tensor) -> None:
        """Take the vectors of a clip, both [N, D]; DataError if they are not finite."""
        if not (estimate.isfinite().all() and reference.isfinite().all()):
            raise DataError("vectors that are not finite")
        half = self._clips % 2
        self._halves[half] = _merged(self._halves[half], [Moments.of(reference), Moments.of(estimate)])
        self._clips += 1

    def merge(self, other: Self) -> None:
        """Take what another one has taken."""
        self._halves = [_merged(*halves) for halves in zip(self._halves, other._halves, strict=True)]
        self._clips += other._clips

    def compute(self) -> float:
        """The distance; DataError with fewer than two clips, or with no more frames in half of them than dimensions."""
        if not all(self._halves):
            raise DataError("fewer than two clips")
        if any(half[0].count <= len(half[0].mean) for half in self._halves):
            raise DataError("no more frames in half of the clips than the vectors have dimensions")
        reference, estimate = _merged(*self._halves)
        scale = float(reference.covariance.trace()) if self.relative else 1.0
        if not scale:
            raise DataError("all vectors of the reference are equal")
        value = frechet_distance(reference, estimate)
        if self.extrapolate:
            value = 2 * value - sum(frechet_distance(*half) for half in self._halves) / 2
        return value / scale


def _merged(own: list[Moments], other: list[Moments]) -> list[Moments]:
    """Moments of both, of each set; an empty list stands for no clips."""
    return [a.merge(b) for a, b in zip(own, other, strict=True)] if own and other else own or other


@dataclass(frozen=True)
class SetDistance:
    """Fréchet distance between two sets of recordings, with what it is without some of them.

    The difference of two of them, `a - b`, of the same reference and of generated clips that correspond, has an error
    of its own: what both have in common does not count.

    Attributes:
        plain: of all frames, too high by about c / N; see above.
        left_out: for either set (for both at once, if they are of the same recordings): the distance without each group
            of recordings [G], and the share of the set's frames that are in each group [G].
    """

    plain: float
    left_out: tuple[tuple[Tensor, Tensor], ...]

    @property
    def value(self) -> float:
        """For infinitely many recordings (jackknife): without bias, and below 0 at times where laws are alike."""
        # A group of share h leaves 1 - h of the frames: the distance grows by c h / (N (1 - h)), the first term in 1/N.
        return self.plain - sum(float(((1 - h) * (found - self.plain)).sum()) for found, h in self.left_out)

    @property
    def error(self) -> float:
        """Standard error, with recordings as independent draws."""
        return math.sqrt(sum(self._variance(found, h) for found, h in self.left_out))

    def _variance(self, found: Tensor, share: Tensor) -> float:
        """Variance of the delete-m jackknife for groups of unequal size, from their pseudo-values."""
        pseudo = (self.plain - (1 - share) * found) / share
        centre = self.plain + float(((1 - share) * (self.plain - found)).sum())
        return float(((pseudo - centre).square() * share / (1 - share)).mean())

    def __sub__(self, other: "SetDistance") -> "SetDistance":
        """How much further this one is; of distances whose recordings are the same or correspond, in one order."""
        pairs = zip(self.left_out, other.left_out, strict=True)
        return SetDistance(self.plain - other.plain, tuple((a - b, share) for (a, share), (b, _) in pairs))


def distance_of_sets(
    generated: Sequence[Moments], reference: Sequence[Moments], *, paired: bool = False, relative: bool = False
) -> SetDistance:
    """Fréchet distance of generated clips from a reference; the sets may differ in number and in length.

    Args:
        generated: moments of each recording, or clip from nothing: of all vectors that are not independent draws.
        reference: the same of the reference.
        paired: whether generated[i] is of the recording of reference[i], such as another ending of it.
        relative: divide by the total variance of the reference.

    Raises:
        DataError: with fewer than two recordings in a set, no more frames without one of them than the vectors have
            dimensions, or a reference whose vectors are all equal, if relative.
    """
    if paired and len(generated) != len(reference):
        raise DataError(f"{len(generated)} generated clips for {len(reference)} recordings; pairs take as many of both")
    first, second = _groups("generated", generated), _groups("reference", reference)
    whole = functools.reduce(Moments.merge, first), functools.reduce(Moments.merge, second)

    def measure(one: Moments, other: Moments) -> float:
        scale = float(other.covariance.trace()) if relative else 1.0
        if not scale:
            raise DataError("all vectors of the reference are equal")
        return frechet_distance(one, other) / scale

    if paired:
        both = zip(_each_left_out(first), _each_left_out(second), strict=True)
        left_out = [(second, [measure(*pair) for pair in both])]
    else:
        left_out = [
            (first, [measure(rest, whole[1]) for rest in _each_left_out(first)]),
            (second, [measure(whole[0], rest) for rest in _each_left_out(second)]),
        ]
    return SetDistance(measure(*whole), tuple((_tensor(found), _shares(groups)) for groups, found in left_out))


def _groups(name: str, recordings: Sequence[Moments]) -> list[Moments]:
    """Recordings dealt out to groups; DataError if there are too few of them, or of frames."""
    if len(recordings) < 2:
        raise DataError(f"{len(recordings)} recordings in the {name} set; a distance with its error takes two or more")
    dealt = [recordings[start::_GROUPS] for start in range(min(_GROUPS, len(recordings)))]
    groups = [functools.reduce(Moments.merge, group) for group in dealt]
    dims, frames = len(recordings[0].mean), sum(group.count for group in groups)
    fewest = frames - max(group.count for group in groups)
    if fewest <= dims:
        raise DataError(
            f"{frames} frames in the {name} set, {fewest} without its largest recording, are too few for vectors of "
            f"{dims} dimensions; give more or longer clips"
        )
    return groups


def _each_left_out(groups: Sequence[Moments]) -> list[Moments]:
    """Moments of all groups but the first, but the second, and so on."""
    return [functools.reduce(Moments.merge, [*groups[:index], *groups[index + 1 :]]) for index in range(len(groups))]


def _shares(groups: Sequence[Moments]) -> Tensor:
    counts = _tensor([group.count for group in groups])
    return counts / counts.sum()


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class FrechetCodecDistance(FrechetDistance):
    """Fréchet distance between the codec's own vectors of the recordings and of their reconstructions.

    Each frame's vector is the sum of what its codes stand for; the reconstruction is encoded again. In units of the
    total variance of the vectors, 0 for a codec that a second pass does not change. It tells how far the codec's own
    output lies from what it was trained on, and is blind to all that its encoder does not keep. Unlike NeMo's Fréchet
    Codec Distance, which has one fixed codec judge the speech of any synthesiser, each codec is its own judge here.

    Args:
        sample_rate: has no effect.
        extrapolate: see `FrechetDistance`.
    """

    needs_quantized: ClassVar[bool] = True

    def __init__(self, sample_rate: int, extrapolate: bool = False) -> None:
        super().__init__(relative=True, extrapolate=extrapolate)
        self.protocol = "own codec, in units of its variance" + _EXTRAPOLATED * extrapolate

    def update(self, *, estimate: Tensor, reference: Tensor, quantized: Tensor | None) -> None:
        """Take the vectors of a clip, of estimate and reference [2, D, T']; DataError if they are not finite."""
        assert quantized is not None
        again, once = quantized.transpose(1, 2)
        self.take(estimate=again, reference=once)


class FrechetMelDistance(FrechetDistance):
    """Fréchet distance between log-mel frames of the recordings and of their reconstructions, in squared decades.

    Arguments as of `LogMelFrames` and `FrechetDistance`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 2048,
        hop_length: int = 2048,
        n_mels: int = 64,
        floor_level: float = 1e-5,
        extrapolate: bool = False,
    ) -> None:
        super().__init__(relative=False, extrapolate=extrapolate)
        self._frames = LogMelFrames(sample_rate, n_fft, hop_length, n_mels, floor_level)
        self.protocol = f"{n_mels} mel bands, frames of {n_fft} every {hop_length}" + _EXTRAPOLATED * extrapolate

    def update(self, *, estimate: Tensor, reference: Tensor, quantized: Tensor | None) -> None:
        """Take a clip, both [C, T]; DataError if it is shorter than a frame or not finite."""
        self.take(estimate=self._frames(estimate), reference=self._frames(reference))


class LogMelFrames:
    """Log-mel frames of a clip, each a vector: log10(floor_level + mel power), [C, T] -> [N, n_mels].

    Frames do not overlap by default: more of them would be more alike, not more. Channels are frames of their own.

    Args:
        sample_rate: in Hz.
        n_fft, hop_length: Hann window and hop in samples.
        n_mels: mel bands (Slaney's scale and normalisation), from 0 to half the sample rate.
        floor_level: keeps the logarithm finite.

    Raises:
        ConfigError: if bands are narrower than a bin, and empty.
    """

    def __init__(
        self, sample_rate: int, n_fft: int = 2048, hop_length: int = 2048, n_mels: int = 64, floor_level: float = 1e-5
    ) -> None:
        options = {"n_mels": n_mels, "center": False, "norm": "slaney", "mel_scale": "slaney"}
        with warnings.catch_warnings(record=True) as empty:
            warnings.filterwarnings("always", message="At least one mel filterbank has all zero values")
            self.transform = MelSpectrogram(sample_rate, n_fft, n_fft, hop_length, **options)
        if empty:
            raise ConfigError(
                f"metrics.fmd: n_mels={n_mels} bands of n_fft={n_fft} leave some empty; lower n_mels or raise n_fft."
            )
        self.n_fft = n_fft
        self.floor_level = floor_level

    def __call__(self, wav: Tensor) -> Tensor:
        """The frames; DataError if the clip is shorter than one."""
        if wav.shape[-1] < self.n_fft:
            raise DataError("shorter than a frame of the mel spectrogram")
        mel: Tensor = self.transform(wav.detach().cpu())
        return torch.log10(self.floor_level + mel).transpose(-1, -2).flatten(0, -2)
