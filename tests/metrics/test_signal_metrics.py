"""Metrics of one clip, as evaluate calls them: exact values, levels that loudness is defined by, reasons."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.errors import DataError
from audiotok.losses import MelSpectrogramL1Loss, SISNRLoss
from audiotok.metrics import SIGNAL_METRICS, mel_distance, si_snr, stft_distance
from audiotok.metrics.quality import SISDR, MelDistance, STFTDistance, _gain, _loudness

RATE = 16000


def noise(seed: int, channels: int = 1, seconds: float = 1.0) -> Tensor:
    return torch.randn(channels, int(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def at_snr(reference: Tensor, decibels: float) -> Tensor:
    """The reference with noise that is orthogonal to it, so that its SI-SDR is known exactly."""
    clean = (reference - reference.mean()).double()
    error = noise(9).double()
    error = error - error.mean()
    error -= (error * clean).sum() / clean.square().sum() * clean
    error *= clean.norm() / error.norm() * 10 ** (-decibels / 20)
    return clean + error


@pytest.mark.parametrize("decibels", [-20.0, 0.0, 20.0, 60.0])
@pytest.mark.parametrize("gain", [1.0, 0.01, -3.0])
def test_sisdr_is_the_ratio_whatever_the_level_where_the_loss_is_not(decibels: float, gain: float) -> None:
    reference = 0.1 * noise(0)
    reference -= reference.mean()
    estimate = gain * at_snr(reference, decibels)
    assert SISDR(RATE)(estimate=estimate.float(), reference=reference) == pytest.approx(decibels, abs=0.01)


def test_the_loss_reads_a_quiet_copy_as_poor_and_is_measured_for_earlier_runs_only() -> None:
    reference = 0.1 * noise(0)
    reference -= reference.mean()
    quiet = 0.01 * at_snr(reference, 20.0).float()
    earlier = SIGNAL_METRICS["sisnr"](sample_rate=RATE, segment=5.0)  # type: ignore[call-arg]
    found = earlier(estimate=quiet, reference=reference)
    assert found == -float(SISNRLoss(RATE, 5.0)(estimate=quiet[None], reference=reference[None]))
    assert found < 19.0
    mel = SIGNAL_METRICS["mel"](sample_rate=RATE, n_mels=32)  # type: ignore[call-arg]
    wanted = MelSpectrogramL1Loss(RATE, n_mels=32)(estimate=quiet[None], reference=reference[None])
    assert mel(estimate=quiet, reference=reference) == float(wanted)


@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_sine_of_997_hz_at_full_scale_has_minus_3_lufs(rate: int) -> None:
    # ITU-R BS.1770-4: 0 dB FS in one channel reads -3.01 LKFS.
    time = torch.arange(2 * rate, dtype=torch.float64) / rate
    sine = torch.sin(2 * math.pi * 997 * time).float()[None]
    gain = _gain(0.1 * sine, rate, -30.0)
    assert 20 * math.log10(gain) == pytest.approx(-30 + 3.01 + 20, abs=0.1)


@pytest.mark.parametrize(
    ("parts", "lufs"),
    [
        ([(10, -36), (60, -23), (10, -36)], -23.0),
        ([(10, -72), (10, -36), (60, -23), (10, -36), (10, -72)], -23.0),
        ([(20, -26), (20.1, -20), (20, -26)], -23.0),
        ([(2, -63)], -63.0),  # above the gate at -70, and so no silence
        ([(2, 20)], 20.0),
    ],
)
def test_loudness_has_the_values_of_ebu_tech_3341(parts: list[tuple[float, float]], lufs: float) -> None:
    # Its cases 3 to 5: a sine of 1 kHz in both channels, of so many seconds and dBFS.
    level = torch.cat([torch.full((round(seconds * RATE),), 10 ** (db / 20)) for seconds, db in parts])
    sine = level * torch.sin(2 * math.pi * 1000 * torch.arange(len(level), dtype=torch.float64) / RATE)
    assert _loudness(sine.float().expand(2, -1), RATE) == pytest.approx(lufs, abs=0.1)


def test_the_peak_of_the_reference_stays_within_one() -> None:
    click = torch.zeros(1, RATE)
    click[0, ::2000] = 0.9
    assert _gain(click, RATE, 0.0) == pytest.approx(1 / 0.9)


def test_distances_are_measured_at_one_level_of_the_reference() -> None:
    reference, estimate = 0.01 * noise(0, 2), 0.012 * noise(1, 2)
    gain = _gain(reference, RATE, -16.0)
    pair = {"estimate": gain * estimate[None], "reference": gain * reference[None]}
    found = MelDistance(RATE)(estimate=estimate, reference=reference)
    assert found == pytest.approx(float(mel_distance(sample_rate=RATE, **pair)))
    assert MelDistance(RATE)(estimate=5 * estimate, reference=5 * reference) == pytest.approx(found, rel=1e-4)
    assert STFTDistance(RATE)(estimate=estimate, reference=reference) == pytest.approx(float(stft_distance(**pair)))
    as_is = STFTDistance(RATE, level=None)(estimate=estimate, reference=reference)
    assert as_is == float(stft_distance(estimate=estimate[None], reference=reference[None])) != found
    assert (MelDistance(RATE).protocol, STFTDistance(RATE, level=None).protocol) == ("-16 LUFS", "level as recorded")


@pytest.mark.parametrize(
    ("metric", "clip", "reason"),
    [
        (SISDR(RATE), torch.zeros(1, RATE), "the reference is silent"),
        (SISDR(RATE), torch.cat([torch.zeros(1, RATE), noise(0)]), "a silent channel"),
        (MelDistance(RATE), torch.zeros(1, RATE), "the reference is silent"),
        (STFTDistance(RATE), 1e-5 * noise(0), "the reference is silent"),
        (MelDistance(RATE), noise(0, seconds=0.3), "shorter than 0.4 s"),
        (STFTDistance(RATE, level=None), noise(0, seconds=0.03), "too short"),
    ],
)
def test_a_clip_without_a_value_has_a_reason(metric: MelDistance | SISDR, clip: Tensor, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        metric(estimate=clip, reference=clip)


def test_metrics_travel_to_worker_processes_and_measure_the_same_there() -> None:
    estimate, reference = noise(0), noise(1)
    for name, kind in SIGNAL_METRICS.items():
        metric = kind(sample_rate=RATE)  # type: ignore[call-arg]
        value = metric(estimate=estimate, reference=reference)
        assert isinstance(value, float) and np.isfinite(value), name
        assert pickle.loads(pickle.dumps(metric))(estimate=estimate, reference=reference) == value


def test_sisdr_of_a_clip_is_si_snr_of_a_batch() -> None:
    estimate, reference = noise(0, 2), noise(1, 2)
    assert SISDR(RATE)(estimate=estimate, reference=reference) == float(
        si_snr(estimate=estimate[None], reference=reference[None])
    )
