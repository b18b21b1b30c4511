"""Fréchet distances against SciPy's square root of a matrix, closed forms, and their own bias under equal laws."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from audiotok.errors import ConfigError, DataError
from audiotok.metrics.frechet import (
    FrechetCodecDistance,
    FrechetDistance,
    FrechetMelDistance,
    LogMelFrames,
    Moments,
    frechet_distance,
)


def draw(count: int, dims: int, seed: int, *, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or dims, dims, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank or dims, generator=generator, dtype=torch.float64) @ mixing + seed


def by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    sqrtm: Any = linalg.sqrtm
    shared = np.trace(sqrtm(first @ second)).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * shared)


def test_distance_is_that_of_scipys_square_root() -> None:
    for seed, dims in ((1, 2), (2, 7), (3, 40)):
        a, b = draw(300, dims, seed), draw(200, dims, seed + 10)
        found = frechet_distance(Moments.of(a), Moments.of(b))
        assert found == pytest.approx(by_scipy(a, b), rel=1e-9)
        assert found == pytest.approx(frechet_distance(Moments.of(b), Moments.of(a)), rel=1e-12)


def test_covariances_that_commute_have_a_closed_form() -> None:
    rotation = torch.linalg.qr(draw(9, 9, 1))[0]
    first, second = torch.arange(0.0, 9.0, dtype=torch.float64), torch.linspace(5, 0, 9, dtype=torch.float64)
    mean = torch.arange(9.0, dtype=torch.float64)
    a = Moments(101, 0 * mean, 100 * rotation * first @ rotation.T)
    b = Moments(51, mean, 50 * rotation * second @ rotation.T)
    wanted = float(mean.square().sum() + (first.sqrt() - second.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-12)


def test_equal_sets_are_at_distance_0_even_without_full_rank() -> None:
    for rank in (None, 3):
        moments = Moments.of(draw(20, 30, 1, rank=rank))
        assert frechet_distance(moments, moments) <= 1e-10 * float(moments.covariance.trace())


def test_a_gain_has_its_closed_form_without_full_rank() -> None:
    vectors = draw(10, 30, 4)
    trace = float(Moments.of(vectors).covariance.trace())
    wanted = float((0.5 * vectors.mean(0)).square().sum()) + 0.25 * trace
    assert frechet_distance(Moments.of(vectors), Moments.of(0.5 * vectors)) == pytest.approx(wanted, rel=1e-10)


def test_moments_of_parts_are_those_of_the_whole_far_from_zero() -> None:
    vectors = draw(1000, 5, 2) + 1e6
    parts = [Moments.of(part) for part in vectors.split([1, 499, 37, 463])]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    assert merged.count == 1000
    assert torch.allclose(merged.mean, vectors.mean(0), rtol=1e-12)
    assert np.allclose(merged.covariance.numpy(), np.cov(vectors.numpy(), rowvar=False), rtol=1e-8, atol=1e-8)


def test_float32_vectors_are_summed_in_float64() -> None:
    vectors = (draw(4000, 3, 2) + 1000).float()
    assert np.allclose(Moments.of(vectors).covariance.numpy(), np.cov(vectors.double().numpy(), rowvar=False))


def test_bias_of_equal_laws_is_that_of_the_docstring_and_leaves_when_extrapolated() -> None:
    dims, frames, clips, repeats = 8, 25, 16, 60
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repeats):
        measures = [FrechetDistance(relative=False, extrapolate=extrapolate) for extrapolate in (False, True)]
        for _ in range(clips):
            pair = torch.randn(2, frames, dims, generator=generator, dtype=torch.float64)
            for measure in measures:
                measure.take(estimate=pair[0], reference=pair[1])
        found.append([measure.compute() for measure in measures])
    values = torch.tensor(found)
    error = values.std(0) / math.sqrt(repeats)
    bias = dims * (dims + 5) / 2 / (frames * clips)
    assert abs(float(values[:, 0].mean()) - bias) < 4 * float(error[0]) + 0.05 * bias
    assert abs(float(values[:, 1].mean())) < 4 * float(error[1]) + 0.05 * bias
    assert float(values[:, 0].mean()) > 10 * float(error[0])


def pair(clip: int) -> tuple[torch.Tensor, torch.Tensor]:
    reference = draw(12, 4, clip)
    return reference + 0.1 * draw(12, 4, clip + 100), reference


def filled(clips: range, scale: float = 1.0, **options: bool) -> FrechetDistance:
    measure = FrechetDistance(**{"relative": False, "extrapolate": False, **options})
    for clip in clips:
        estimate, reference = pair(clip)
        measure.take(estimate=scale * estimate, reference=scale * reference)
    return measure


@pytest.mark.parametrize("extrapolate", [False, True])
def test_distance_of_merged_parts_is_that_of_the_whole(extrapolate: bool) -> None:
    parts = [range(0, 4), range(0), range(4, 8)]  # as of three ranks, one without clips
    whole = filled(range(8), extrapolate=extrapolate)
    for order in ((0, 1, 2), (1, 2, 0)):
        first, *others = (filled(parts[index], extrapolate=extrapolate) for index in order)
        for other in others:
            first.merge(pickle.loads(pickle.dumps(other)))
        assert first.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_extrapolation_is_twice_the_whole_minus_the_halves() -> None:
    def distance(clips: range) -> float:
        sets = zip(*(pair(clip) for clip in clips), strict=True)
        return frechet_distance(*(Moments.of(torch.cat(vectors)) for vectors in sets))

    wanted = 2 * distance(range(8)) - (distance(range(0, 8, 2)) + distance(range(1, 8, 2))) / 2
    assert filled(range(8)).compute() == pytest.approx(distance(range(8)), rel=1e-10)
    assert filled(range(8), extrapolate=True).compute() == pytest.approx(wanted, rel=1e-10)


def test_relative_distance_has_no_unit_and_plain_distance_squares_it() -> None:
    plain, relative = filled(range(6)).compute(), filled(range(6), relative=True).compute()
    variance = float(Moments.of(torch.cat([pair(clip)[1] for clip in range(6)])).covariance.trace())
    assert relative == pytest.approx(plain / variance, rel=1e-10)
    assert filled(range(6), 10.0).compute() == pytest.approx(100 * plain, rel=1e-10)
    assert filled(range(6), 10.0, relative=True).compute() == pytest.approx(relative, rel=1e-10)


def test_codec_distance_takes_the_estimate_first() -> None:
    measure, wanted = FrechetCodecDistance(16000), FrechetDistance(relative=True, extrapolate=False)
    wav = torch.zeros(1, 100)
    for clip in range(6):
        estimate, reference = pair(clip)
        wanted.take(estimate=3 * estimate, reference=reference)
        measure.update(estimate=wav, reference=wav, quantized=torch.stack([3 * estimate.T, reference.T]))
    assert measure.compute() == pytest.approx(wanted.compute(), rel=1e-12)
    assert measure.needs_quantized


def test_mel_distance_is_that_of_the_frames_and_a_gain_only_moves_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    measure = FrechetMelDistance(16000, n_fft=256, hop_length=256, n_mels=10, floor_level=1e-9)
    for _ in range(2):
        wav = torch.randn(1, 8000, generator=generator)
        measure.update(estimate=10 * wav, reference=wav, quantized=None)
    assert measure.compute() == pytest.approx(10 * 2**2, rel=1e-5)  # 10 bands, each 2 decades of power up


def test_what_cannot_be_measured_has_a_reason() -> None:
    vectors = draw(12, 4, 0)
    for clips in (range(0), range(1)):
        with pytest.raises(DataError, match="fewer than two clips"):
            filled(clips).compute()
    measure = filled(range(2))
    before = measure.compute()
    with pytest.raises(DataError, match="not finite"):
        measure.take(estimate=vectors * math.nan, reference=vectors)
    assert measure.compute() == before
    few = FrechetDistance(relative=False, extrapolate=False)
    constant = FrechetDistance(relative=True, extrapolate=False)
    for _ in range(2):
        few.take(estimate=vectors[:4], reference=vectors[:4])
        constant.take(estimate=vectors, reference=torch.ones(12, 4))
    with pytest.raises(DataError, match="dimensions"):
        few.compute()
    with pytest.raises(DataError, match="equal"):
        constant.compute()
    with pytest.raises(DataError, match="two frames"):
        frechet_distance(Moments.of(vectors[:1]), Moments.of(vectors))


def test_log_mel_frames_of_channels_follow_each_other_and_rise_with_level() -> None:
    generator = torch.Generator().manual_seed(0)
    wav = 0.1 * torch.randn(2, 5000, generator=generator)
    frames = LogMelFrames(16000, n_fft=512, hop_length=500, n_mels=20)
    found = frames(wav)
    assert found.shape == (2 * 9, 20)  # (5000 - 512) // 500 + 1 frames
    assert torch.allclose(found[9:], frames(wav[1:]))
    power = 10**found - 1e-5
    assert torch.allclose(10 ** frames(10 * wav) - 1e-5, 100 * power, rtol=1e-3)
    assert torch.allclose(frames(0 * wav), torch.full((18, 20), -5.0))
    with pytest.raises(DataError, match="shorter"):
        frames(wav[:, :511])
    with pytest.raises(ConfigError, match="n_mels=80 bands of n_fft=128 leave some empty"):
        LogMelFrames(16000, n_fft=128, hop_length=128, n_mels=80)


def test_log_mel_frame_of_a_tone_peaks_in_its_band() -> None:
    time = torch.arange(4096) / 16000
    frames = LogMelFrames(16000, n_fft=1024, hop_length=1024, n_mels=40)
    peaks = [int(frames(torch.sin(2 * math.pi * hertz * time)[None]).mean(0).argmax()) for hertz in (300, 1000, 5000)]
    edges = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 42)  # Slaney's mels up to 8 kHz
    mels = [300 * 3 / 200, 15.0, 15 + 27 * math.log(5) / math.log(6.4)]
    assert all(edges[peak] < mel < edges[peak + 2] for peak, mel in zip(peaks, mels, strict=True))
