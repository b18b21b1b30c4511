"""ViSQOL, PESQ and STOI against direct calls of their packages, published values, and STOI written out in NumPy.

ViSQOL on its authors' recordings is compared by hand: `benchmarks/visqol.py`.
"""

import importlib
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
import visqol

from audiotok.errors import ConfigError, DataError
from audiotok.metrics.perceptual import PESQ, STOI, ViSQOL

VISQOL_IDENTITY = 4.732101253042348  # kConformanceCastanetsIdentity of ViSQOL 3.3.3: of any clip with itself
CLASSES: tuple[type[ViSQOL] | type[PESQ] | type[STOI], ...] = (ViSQOL, PESQ, STOI)


def chord(rate: int, seconds: float = 1.0, *, channels: int = 1) -> torch.Tensor:
    """Tones that come and go, with syllables' rates: [C, T]."""
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    tones = [
        torch.sin(2 * math.pi * hertz * time + index) * (1 + torch.sin(2 * math.pi * (2 + index) * time))
        for index, hertz in enumerate((170, 340, 510, 1000, 2100, 3300, 6100))
    ]
    return 0.03 * torch.stack(tones).sum(0).float().repeat(channels, 1)


def direct_pesq(*args: Any) -> float:
    return float(importlib.import_module("pesq").pesq(*args))


def noise(like: torch.Tensor, level: float, seed: int = 0) -> torch.Tensor:
    return level * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def direct_visqol(reference: torch.Tensor, degraded: torch.Tensor, rate: int = 48000) -> float:
    api = visqol.VisqolApi()
    api.create(mode="audio")
    return float(api.measure_from_arrays(reference.double().numpy(), degraded.double().numpy(), rate).moslqo)


def test_visqol_of_a_clip_with_itself_is_the_published_value_in_any_process() -> None:
    metric, clip = ViSQOL(32000), chord(32000)
    first = metric(estimate=clip, reference=clip)
    assert first == pytest.approx(VISQOL_IDENTITY, abs=1e-6)
    again = pickle.loads(pickle.dumps(metric))
    assert again.parallel
    assert again(estimate=clip, reference=clip) == first


def test_visqol_is_that_of_the_package_on_the_mean_of_the_channels() -> None:
    reference = chord(48000, channels=2)
    estimate = reference * (torch.arange(reference.shape[-1]) < 30000) + noise(reference, 0.0005)
    found = ViSQOL(48000)(estimate=estimate, reference=reference)
    clean, degraded = reference.mean(0), estimate.mean(0)
    assert found == pytest.approx(direct_visqol(clean, degraded), abs=1e-6)
    speech = visqol.VisqolApi()
    speech.create(mode="speech", use_lattice_model=False)
    other = speech.measure_from_arrays(clean.double().numpy(), degraded.double().numpy(), 48000).moslqo
    assert abs(found - direct_visqol(degraded, clean)) > 0.3  # the comparison sees the order
    assert abs(found - other) > 0.3  # and the mode


def test_visqol_hears_a_clip_of_another_rate_as_one_made_at_48_khz() -> None:
    def pair(rate: int) -> list[torch.Tensor]:
        return [chord(rate, 1.5), chord(rate, 1.5) + 0.5 * chord(rate, 1.5).roll(rate // 10, -1)]

    degraded, clean = pair(48000)
    wanted = direct_visqol(clean[0], degraded[0])
    degraded, clean = pair(32000)
    assert ViSQOL(32000)(estimate=degraded, reference=clean) == pytest.approx(wanted, abs=0.01)
    assert abs(direct_visqol(clean[0], degraded[0]) - wanted) > 0.03  # 32 kHz taken for 48


def test_visqol_falls_with_noise_and_hears_no_gain() -> None:
    metric, reference = ViSQOL(48000), chord(48000)
    estimates = [reference + noise(reference, level) for level in (0.0001, 0.002)]
    scores = [metric(estimate=estimate, reference=reference) for estimate in estimates]
    assert VISQOL_IDENTITY > scores[0] > scores[1] >= 1
    assert metric(estimate=0.25 * estimates[1], reference=reference) == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(("band", "rate", "name"), [("wide", 16000, "wb"), ("narrow", 8000, "nb")])
def test_pesq_is_that_of_the_package(band: str, rate: int, name: str) -> None:
    reference = chord(rate, 2, channels=2)
    estimate = reference + noise(reference, 0.002)
    found = PESQ(rate, band)(estimate=estimate, reference=reference)
    clean, degraded = (clip.double().mean(0).numpy() for clip in (reference, estimate))
    assert found == pytest.approx(direct_pesq(rate, clean, degraded, name), abs=1e-6)
    assert abs(found - direct_pesq(rate, degraded, clean, name)) > 0.02  # the comparison sees the order


def test_pesq_of_equal_clips_is_the_top_of_the_published_mappings() -> None:
    clip = chord(16000)
    wide, narrow = (PESQ(16000, band)(estimate=clip, reference=clip) for band in ("wide", "narrow"))
    assert wide == pytest.approx(0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224)), abs=1e-5)  # P.862.2, 4.5 raw
    assert narrow == pytest.approx(0.999 + 4 / (1 + math.exp(-1.4945 * 4.5 + 4.6607)), abs=1e-5)  # P.862.1


def test_pesq_hears_a_clip_of_another_rate_as_one_made_at_16_khz() -> None:
    def pair(rate: int) -> list[torch.Tensor]:
        return [chord(rate, 2), chord(rate, 2) + 0.5 * chord(rate, 2).roll(rate // 10, -1)]

    degraded, clean = pair(16000)
    wanted = PESQ(16000)(estimate=degraded, reference=clean)
    degraded, clean = pair(32000)
    assert PESQ(32000)(estimate=degraded, reference=clean) == pytest.approx(wanted, abs=0.05)
    assert abs(PESQ(16000)(estimate=degraded, reference=clean) - wanted) > 0.2  # 32 kHz taken for 16


def written_out_stoi(clean: np.ndarray[Any, Any], noisy: np.ndarray[Any, Any]) -> float:
    """STOI at 10 kHz of signals without pauses: Taal et al., 2011, equations 1 to 6."""
    window = np.hanning(258)[1:-1]

    def bands(signal: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        frames = np.stack([window * signal[i : i + 256] for i in range(0, len(signal) - 256, 128)])
        power = np.abs(np.fft.rfft(frames, 512)) ** 2
        centres = 150 * 2 ** (np.arange(15) / 3)
        hertz = np.arange(257) * 10000 / 512
        edges = [[int(np.abs(hertz - c * 2 ** (s / 6)).argmin()) for s in (-1, 1)] for c in centres]
        amplitudes: np.ndarray[Any, Any] = np.sqrt(np.stack([power[:, low:high].sum(1) for low, high in edges]))
        return amplitudes

    x, y = bands(clean), bands(noisy)
    found = []
    for last in range(30, x.shape[1] + 1):
        for band in range(15):
            a, b = x[band, last - 30 : last], y[band, last - 30 : last]
            b = np.minimum(b * np.linalg.norm(a) / np.linalg.norm(b), a * (1 + 10 ** (15 / 20)))
            found.append(np.corrcoef(a, b)[0, 1])
    return float(np.mean(found))


def test_stoi_is_that_of_the_paper() -> None:
    reference = noise(torch.zeros(1, 20000), 0.1, 1) * (1.2 + torch.sin(torch.arange(20000) / 300))
    estimate = reference + noise(reference, 0.2)
    found = STOI(10000)(estimate=estimate, reference=reference)
    wanted = written_out_stoi(reference[0].double().numpy(), estimate[0].double().numpy())
    assert found == pytest.approx(wanted, abs=1e-3)
    assert abs(found - STOI(10000)(estimate=reference, reference=estimate)) > 0.01  # the comparison sees the order
    assert abs(found - STOI(16000)(estimate=estimate, reference=reference)) > 0.01  # and the rate


def test_extended_stoi_differs_falls_with_noise_and_leaves_the_random_state_alone() -> None:
    reference = chord(16000)
    estimates = [reference, reference + noise(reference, 0.01), reference + noise(reference, 0.1)]
    np.random.seed(3)
    wanted = np.random.random()
    np.random.seed(3)
    extended = [STOI(16000, extended=True)(estimate=clip, reference=reference) for clip in estimates]
    assert np.random.random() == wanted
    plain = [STOI(16000)(estimate=clip, reference=reference) for clip in estimates]
    for values in (plain, extended):
        assert values[0] == pytest.approx(1, abs=1e-6)
        assert values[0] > values[1] > values[2]
    assert abs(plain[1] - extended[1]) > 0.01


@pytest.mark.parametrize("kind", CLASSES)
def test_clips_that_cannot_be_measured_have_a_reason(kind: type[ViSQOL] | type[PESQ] | type[STOI]) -> None:
    metric, clip = kind(16000), chord(16000)
    opposite = torch.cat([clip, -clip])
    for reference, reason in ((0 * clip, "the reference is silent"), (opposite, "the reference is silent")):
        with pytest.raises(DataError, match=reason):
            metric(estimate=reference + 0.1, reference=reference)
    with pytest.raises(DataError, match=r"shorter than 0\.\d+ s"):
        metric(estimate=clip[:, :3000], reference=clip[:, :3000])
    with pytest.raises(DataError, match="finite"):
        metric(estimate=clip * math.nan, reference=clip)
    with pytest.raises(DataError, match="shape"):
        metric(estimate=clip[:, 1:], reference=clip)


def test_a_silent_estimate_has_no_mos_but_no_intelligibility() -> None:
    clip = chord(16000)
    for metric in (ViSQOL(16000), PESQ(16000)):
        with pytest.raises(DataError, match="the estimate is silent"):
            metric(estimate=0 * clip, reference=clip)
    assert STOI(16000)(estimate=0 * clip, reference=clip) == pytest.approx(0, abs=1e-6)


def test_reasons_of_speech_metrics() -> None:
    tick = torch.zeros(1, 32000)
    tick[:, 1000:2500] = noise(tick[:, :1500], 0.5)
    with pytest.raises(DataError, match="PESQ finds no speech"):
        PESQ(16000)(estimate=tick, reference=tick)
    with pytest.raises(DataError, match="too little sound"):
        STOI(16000)(estimate=tick, reference=tick)
    with pytest.raises(DataError, match="longer than 20 s"):
        PESQ(16000)(estimate=chord(16000, 20.1), reference=chord(16000, 20.1))


def test_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pesq\.band='full'.*narrow, wide"):
        PESQ(16000, "full")
    with pytest.raises(ConfigError, match=r"set pesq\.band=narrow"):
        PESQ(8000)
    with pytest.raises(ConfigError, match="switch pesq off"):
        PESQ(4000, "narrow")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_package_that_is_missing_is_named_with_its_extra(
    kind: type[ViSQOL] | type[PESQ] | type[STOI], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("visqol", "pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"evaluate\.metrics\.\w+ needs .* pip install 'audiotok\[perceptual\]'"):
        kind(16000)
