"""Loudness and anchor, held against the recommendations that define them and against another implementation."""

import numpy as np
import pytest
import torch
import torchaudio

from audiotok.report.stimuli import anchor, loudness

RATES = (16000, 24000, 32000, 44100, 48000)


@pytest.mark.parametrize("rate", RATES)
def test_a_full_scale_sine_has_the_loudness_that_bs1770_states(rate: int) -> None:
    sine = np.sin(2 * np.pi * 997 * np.arange(3 * rate) / rate)[:, None]
    assert loudness(sine, rate) == pytest.approx(-3.01, abs=0.1)  # BS.1770-4: 0 dB FS, 997 Hz, one channel
    assert loudness(np.hstack([sine, sine]) / 10, rate) == pytest.approx(-20.0, abs=0.1)


@pytest.mark.parametrize("rate", RATES)
def test_loudness_is_that_of_torchaudio(rate: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (4 * rate, 2)) * np.repeat([1.0, 0.01, 0.5, 0.0], rate)[:, None]  # gated at both levels
    expected = torchaudio.functional.loudness(torch.from_numpy(noise.T.copy()), rate)
    assert loudness(noise, rate) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize(
    ("frames", "channels", "level"), [(48000, 1, 0.0), (48000, 2, 1e-5), (6000, 1, 0.5), (0, 1, 0.0), (48000, 6, 0.5)]
)
def test_what_has_no_loudness_gets_none(frames: int, channels: int, level: float) -> None:
    assert (
        loudness(np.full((frames, channels), level) * np.random.default_rng(0).normal(size=(frames, channels)), 16000)
        is None
    )


@pytest.mark.parametrize("rate", RATES)
def test_the_anchor_passes_and_stops_what_bs1534_states(rate: int) -> None:
    click = np.zeros((rate, 2))
    click[rate // 2] = 0.9
    low = anchor(click, rate)
    assert low is not None and low.shape == click.shape
    assert low[:, 0].argmax() == rate // 2 and (low[:, 0] == low[:, 1]).all()  # no delay
    gains = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(low[:, 0])) / 0.9, 1e-9))
    hertz = np.fft.rfftfreq(rate, 1 / rate)
    assert np.abs(gains[hertz <= 3500]).max() < 0.1
    assert gains[hertz >= 4000].max() < -25
    assert gains[hertz >= 4500].max() < -50


def test_the_anchor_of_narrow_audio_is_none_and_of_loud_audio_within_full_scale() -> None:
    assert anchor(np.zeros((100, 1)), 8000) is None
    square = np.sign(np.sin(2 * np.pi * 100 * np.arange(32000) / 32000))[:, None]
    low = anchor(square, 32000)
    assert low is not None and np.abs(low).max() == 1.0  # ripples beyond it are clipped
    short = anchor(np.ones((5, 1)), 32000)
    assert short is not None and short.shape == (5, 1)
