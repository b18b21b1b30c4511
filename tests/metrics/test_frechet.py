"""Fréchet distances against SciPy's square root of a matrix, closed forms, and their own bias under equal laws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from audiotok.errors import ConfigError, DataError
from audiotok.metrics import frechet
from audiotok.metrics.frechet import FrechetDistance, LogMelFrames, Moments, frechet_distance


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
        distance = FrechetDistance()
        for _ in range(clips):
            pair = torch.randn(2, frames, dims, generator=generator, dtype=torch.float64)
            distance.add(estimate=pair[0], reference=pair[1])
        found.append(distance.measure())
    values = torch.tensor(found)
    error = values.std(0) / math.sqrt(repeats)
    bias = dims * (dims + 5) / 2 / (frames * clips)
    assert abs(float(values[:, 0].mean()) - bias) < 4 * float(error[0]) + 0.05 * bias
    assert abs(float(values[:, 1].mean())) < 4 * float(error[1]) + 0.05 * bias
    assert float(values[:, 0].mean()) > 10 * float(error[0])


def fill(distance: FrechetDistance, clips: range, scale: float = 1.0) -> FrechetDistance:
    for clip in clips:
        reference = draw(12, 4, clip)
        distance.add(estimate=scale * (reference + 0.1 * draw(12, 4, clip + 100)), reference=scale * reference)
    return distance


def test_distance_of_all_ranks_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fill(FrechetDistance(), range(0, 8)).measure()
    first, second = fill(FrechetDistance(), range(0, 4)), fill(FrechetDistance(), range(4, 8))
    empty = FrechetDistance()  # of a rank without clips
    monkeypatch.setattr(frechet, "gather_objects", lambda own: [first._halves, empty._halves, second._halves])
    for rank in (first, empty, second):
        assert rank.measure() == pytest.approx(whole, rel=1e-12)


def test_extrapolation_is_twice_the_whole_minus_the_halves() -> None:
    halves = [
        frechet_distance(*(Moments.of(torch.cat([pick(clip) for clip in clips])) for pick in (reference, estimate)))
        for clips in (range(0, 8, 2), range(1, 8, 2))
    ]
    full, infinite = fill(FrechetDistance(), range(8)).measure()
    assert infinite == pytest.approx(2 * full - sum(halves) / 2, rel=1e-10)


def reference(clip: int) -> torch.Tensor:
    return draw(12, 4, clip)


def estimate(clip: int) -> torch.Tensor:
    return reference(clip) + 0.1 * draw(12, 4, clip + 100)


def test_relative_distance_has_no_unit_and_plain_distance_squares_it() -> None:
    plain, relative = FrechetDistance(), FrechetDistance(relative=True)
    assert fill(relative, range(6), 0.01).measure() == pytest.approx(
        fill(FrechetDistance(relative=True), range(6)).measure(), rel=1e-6
    )
    scaled = fill(FrechetDistance(), range(6), 10.0).measure()
    assert scaled == pytest.approx([100 * value for value in fill(plain, range(6)).measure()], rel=1e-6)


def test_what_cannot_be_measured_has_a_reason() -> None:
    vectors = draw(12, 4, 0)
    distance = FrechetDistance()
    with pytest.raises(DataError, match="fewer than two clips"):
        distance.measure()
    distance.add(estimate=vectors, reference=vectors)
    with pytest.raises(DataError, match="fewer than two clips"):
        distance.measure()
    with pytest.raises(DataError, match="not finite"):
        distance.add(estimate=vectors * math.nan, reference=vectors)
    assert distance._clips == 1
    few = FrechetDistance()
    for _ in range(2):
        few.add(estimate=vectors[:4], reference=vectors[:4])
    with pytest.raises(DataError, match="dimensions"):
        few.measure()
    constant = FrechetDistance(relative=True)
    for _ in range(2):
        constant.add(estimate=vectors, reference=torch.ones(12, 4))
    with pytest.raises(DataError, match="equal"):
        constant.measure()
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
    with pytest.raises(ConfigError, match="n_mels=0"):
        LogMelFrames(16000, n_mels=0)


def test_log_mel_frame_of_a_tone_peaks_in_its_band() -> None:
    time = torch.arange(4096) / 16000
    frames = LogMelFrames(16000, n_fft=1024, hop_length=1024, n_mels=40)
    peaks = [int(frames(torch.sin(2 * math.pi * hertz * time)[None]).mean(0).argmax()) for hertz in (300, 1000, 5000)]
    edges = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 42)  # Slaney's mels up to 8 kHz
    mels = [300 * 3 / 200, 15.0, 15 + 27 * math.log(5) / math.log(6.4)]
    assert all(edges[peak] < mel < edges[peak + 2] for peak, mel in zip(peaks, mels, strict=True))
