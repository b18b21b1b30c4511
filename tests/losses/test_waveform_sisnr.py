"""The SI-SNR loss against its formula in float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audiotok.errors import ConfigError
from audiotok.losses import SISNRLoss

Array = NDArray[np.float64]
EPSILON = float(np.finfo(np.float32).eps)


def slow_si_snr(estimate: Array, reference: Array) -> float:
    s, e = reference - reference.mean(), estimate - estimate.mean()
    floor = EPSILON * len(s)
    p = e.dot(s) / (floor + s.dot(s)) * s
    return float(10 * np.log10((floor + p.dot(p)) / (floor + (e - p).dot(e - p))))


def make(length: int, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    pair = torch.randn(2, 3, channels, length, generator=generator, dtype=torch.float64)
    return pair[0] + 0.4 * pair[1] + 0.1, pair[0]


@pytest.mark.parametrize(("length", "segment", "overlap"), [(800, 0.8, 0.5), (1000, 0.1, 0.5), (997, 0.3, 0.75)])
def test_value_is_the_mean_over_segments_of_the_formula(length: int, segment: float, overlap: float) -> None:
    rate = 1000
    estimate, reference = make(length)
    frame, stride = round(segment * rate), round(segment * (1 - overlap) * rate)
    values = []
    for e, s in zip(estimate.flatten(0, 1).numpy(), reference.flatten(0, 1).numpy(), strict=True):
        for start in range(0, length, stride):
            cut = np.zeros((2, frame))
            kept = min(frame, length - start)
            cut[:, :kept] = e[start : start + frame], s[start : start + frame]
            values.append(slow_si_snr(cut[0], cut[1]))
    loss = SISNRLoss(rate, segment, overlap)(estimate=estimate, reference=reference)
    assert loss.item() == pytest.approx(-np.mean(values), rel=1e-9)


def test_no_segment_takes_the_whole_signal() -> None:
    estimate, reference = make(901)
    wavs = zip(estimate.flatten(0, 1).numpy(), reference.flatten(0, 1).numpy(), strict=True)
    wanted = -np.mean([slow_si_snr(e, s) for e, s in wavs])
    loss = SISNRLoss(1000, segment=None)(estimate=estimate, reference=reference)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)


def test_level_and_offset_of_the_estimate_do_not_matter() -> None:
    estimate, reference = make(500)
    loss = SISNRLoss(1000, segment=None)
    value = loss(estimate=estimate, reference=reference).item()
    assert loss(estimate=3 * estimate - 0.7, reference=reference).item() == pytest.approx(value, abs=1e-4)
    assert loss(estimate=-estimate, reference=reference).item() == pytest.approx(value, abs=1e-9)


def test_known_ratio_of_orthogonal_noise() -> None:
    t = torch.arange(1000, dtype=torch.float64) / 1000
    reference = torch.sin(2 * math.pi * 50 * t)[None, None]
    estimate = reference + 0.1 * torch.cos(2 * math.pi * 50 * t)
    loss = SISNRLoss(1000, segment=None)(estimate=estimate, reference=reference)
    assert loss.item() == pytest.approx(-20, abs=1e-3)


def test_silence_is_finite_with_a_finite_gradient() -> None:
    estimate = torch.zeros(1, 1, 100, requires_grad=True)
    loss = SISNRLoss(100, segment=0.5)(estimate=estimate, reference=torch.zeros(1, 1, 100))
    (gradient,) = torch.autograd.grad(loss, estimate)
    assert loss.item() == 0 and torch.isfinite(gradient).all()


@pytest.mark.parametrize(("segment", "overlap"), [(1.0, 1.0), (1.0, -0.1), (0.0, 0.5), (1e-3, 0.5), (None, 2.0)])
def test_segments_without_a_sample_are_refused(segment: float | None, overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"sisnr\.segment=.*sisnr\.overlap="):
        SISNRLoss(1000, segment, overlap)
