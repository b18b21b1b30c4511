"""Fréchet distances between two sets of vectors, each taken for a Gaussian: of codec vectors and of log-mel frames.

With means m, m' and covariances S, S': |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), which is the squared 2-Wasserstein
distance of the two Gaussians. It sees means and covariances alone, and no order in time.

From N frames it comes out too high, by about c / N: c is D (D + 5) / 2 for two independent sets of the same law in D
dimensions of variance 1, larger where frames are alike, as neighbours are, and smaller where the sets share their
frames, as a recording and its copy do. Twice the value of all clips minus the mean value of their halves is free of
that term (Chong and Forsyth).

Sources: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; Heusel et al.,
"GANs trained by a two time-scale update rule", NeurIPS 2017; Kilgour et al., "Fréchet Audio Distance", Interspeech
2019; Chong and Forsyth, "Effectively unbiased FID and Inception Score", CVPR 2020.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from audiotok.distributed import gather_objects
from audiotok.errors import ConfigError, DataError


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
    """Gathers vectors of reference and estimate clip by clip, then measures their Fréchet distance.

    Clips are dealt out to two halves in turn, so that the distance is known at all clips and at half of them.

    Args:
        relative: divide by the total variance of the reference (the trace of its covariance): a distance without
            unit, which does not shrink with the vectors.
    """

    def __init__(self, relative: bool = False) -> None:
        self.relative = relative
        self._halves: list[list[Moments]] = [[], []]  # of either half: reference, estimate
        self._clips = 0

    def add(self, *, estimate: Tensor, reference: Tensor) -> None:
        """Take the vectors of a clip, both [N, D]; DataError if they are not finite."""
        if not (estimate.isfinite().all() and reference.isfinite().all()):
            raise DataError("vectors that are not finite")
        half = self._halves[self._clips % 2]
        found = [Moments.of(reference), Moments.of(estimate)]
        half[:] = [old.merge(new) for old, new in zip(half, found, strict=True)] if half else found
        self._clips += 1

    def measure(self) -> tuple[float, float]:
        """The distance over the clips of all ranks, and the same extrapolated to infinitely many; lower is better.

        Every rank must call this, and gets the same.

        Raises:
            DataError: with fewer than two clips, or fewer frames in half of them than there are dimensions.
        """
        ranks = gather_objects(self._halves)
        halves = [_merged(rank[half] for rank in ranks if rank[half]) for half in (0, 1)]
        if not all(halves):
            raise DataError("fewer than two clips")
        if any(half[0].count <= len(half[0].mean) for half in halves):
            raise DataError("no more frames in half of the clips than the vectors have dimensions")
        reference, estimate = _merged(halves)
        scale = float(reference.covariance.trace()) if self.relative else 1.0
        if not scale:
            raise DataError("all vectors of the reference are equal")
        full = frechet_distance(reference, estimate) / scale
        half = sum(frechet_distance(*half) for half in halves) / 2 / scale
        return full, 2 * full - half


def _merged(pairs: Iterable[list[Moments]]) -> list[Moments]:
    """Moments of several pairs of sets, as one pair; none of none."""
    total: list[Moments] = []
    for pair in pairs:
        total = [old.merge(new) for old, new in zip(total, pair, strict=True)] if total else pair
    return total


class LogMelFrames:
    """Log-mel frames of a clip, each a vector: log10(floor_level + mel power), [C, T] -> [N, n_mels].

    Frames do not overlap by default: more of them would be more alike, not more. Channels are frames of their own.

    Args:
        sample_rate: in Hz.
        n_fft, hop_length: Hann window and hop in samples.
        n_mels: mel bands (Slaney's scale and normalisation), from 0 to half the sample rate.
        floor_level: keeps the logarithm finite.
    """

    def __init__(
        self, sample_rate: int, n_fft: int = 2048, hop_length: int = 2048, n_mels: int = 64, floor_level: float = 1e-5
    ) -> None:
        if hop_length < 1 or n_fft < 2 or n_mels < 1:
            raise ConfigError(f"fmd: n_fft={n_fft}, hop_length={hop_length}, n_mels={n_mels}; all must be positive.")
        options = {"n_mels": n_mels, "center": False, "norm": "slaney", "mel_scale": "slaney"}
        self.transform = MelSpectrogram(sample_rate, n_fft, n_fft, hop_length, **options)
        self.n_fft = n_fft
        self.floor_level = floor_level

    def __call__(self, wav: Tensor) -> Tensor:
        """The frames; DataError if the clip is shorter than one."""
        if wav.shape[-1] < self.n_fft:
            raise DataError("shorter than a frame of the mel spectrogram")
        mel: Tensor = self.transform(wav.detach().cpu())
        return torch.log10(self.floor_level + mel).transpose(-1, -2).flatten(0, -2)
