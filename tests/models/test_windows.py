"""Codes in windows are those of one pass: in float64, where rounding decides none, all of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from audiotok.errors import ConfigError
from audiotok.models import EncodecModel
from audiotok.models.windows import WindowEncoder, reach
from tests.codecs import RATE, small_codec

HOP = 80


def in_windows(model: EncodecModel, wavs: list[Tensor], window_s: float) -> list[Tensor]:
    """Codes [K, T] of some signals, side by side."""
    encoder = WindowEncoder(model, window_s)
    volumes = [float(wav.mean(dim=0).pow(2).mean().sqrt()) + 1e-8 for wav in wavs]
    lanes = [encoder.begin(volume if encoder.per_signal_scale else None) for volume in volumes]
    counts = [encoder.windows(wav.shape[1]) for wav in wavs]
    for window in range(max(counts)):
        start, length = encoder.span(window)
        now = [index for index, count in enumerate(counts) if window < count]
        last = [window == counts[index] - 1 for index in now]
        parts = [
            wavs[index][:, start:] if end else wavs[index][:, start : start + length]
            for index, end in zip(now, last, strict=True)
        ]
        encoder.step([lanes[index] for index in now], parts, last)
    return [lane.all_codes() for lane in lanes]


def signals(channels: int, lengths: list[int]) -> list[Tensor]:
    """Noise that swells and fades, one of each length."""
    generator = torch.Generator().manual_seed(1)
    swell = [torch.sin(torch.arange(length) / 3000).abs() + 0.01 for length in lengths]
    return [
        torch.randn(channels, n, generator=generator, dtype=torch.float64) * s
        for n, s in zip(lengths, swell, strict=True)
    ]


SMOOTH: dict[str, Any] = {"activation": "SiLU", "activation_params": {}}  # nowhere without a gradient
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "mirrored": {"pad_mode": "reflect"},
    "repeated": {"pad_mode": "replicate"},
    "without LSTM": {"lstm": 0},
    "renormalised stereo": {"renormalize": True, "channels": 2},
    "wide": {"kernel_size": 15, "last_kernel_size": 9, "dilation_base": 3, "n_residual_layers": 3},
    "of even kernels": {"kernel_size": 6, "last_kernel_size": 4, "residual_kernel_size": 2},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window_s", [0.01, 0.07, 0.5])
def test_codes_are_those_of_one_pass(kind: str, window_s: float) -> None:
    model = small_codec(**KINDS[kind]).double()
    lengths = [1, 79, 80, 81, 500, 4000, 4001, 4039, 4079, 6400]
    wavs = signals(model.channels, lengths)
    for wav, codes in zip(wavs, in_windows(model, wavs, window_s), strict=True):
        one = model.encode(wav[None])[0][0]
        assert torch.equal(codes, one), wav.shape
    assert len(one[0].unique()) > 5  # else equality says little


def test_every_length_around_the_end_of_a_window() -> None:
    model = small_codec(pad_mode="reflect").double()
    encoder = WindowEncoder(model, 0.1)
    end = encoder.span(1)[0] + encoder.span(1)[1]
    wavs = signals(1, [*range(end - 3, end + 4), *range(end + 10 * HOP - 2, end + 10 * HOP + 3)])
    for wav, codes in zip(wavs, in_windows(model, wavs, 0.1), strict=True):
        assert torch.equal(codes, model.encode(wav[None])[0][0]), wav.shape[1] - end


@pytest.mark.parametrize("kind", KINDS)
def test_the_reach_is_that_of_the_gradient(kind: str) -> None:
    """What decides a frame in the middle, found by its gradient, is within the reach, and nearly all of it."""
    model = small_codec(**{**KINDS[kind], "lstm": 0, "pad_mode": "constant", **SMOOTH}).double()
    wav = torch.randn(1, model.channels, 8000, dtype=torch.float64, requires_grad=True)
    model.encoder(wav)[0, :, 50].sum().backward()
    assert wav.grad is not None
    seen = wav.grad[0].abs().sum(dim=0).nonzero()
    left, right = reach(model.encoder.model)  # type: ignore[arg-type]
    before, after = 50 * HOP - int(seen.min()), int(seen.max()) - (51 * HOP - 1)
    assert before <= left and after <= right
    assert after == right


def test_a_model_that_normalises_over_time_takes_each_window_by_itself() -> None:
    model = small_codec(norm="time_group_norm", renormalize=True).double()
    assert not WindowEncoder(model, 0.5).exact and WindowEncoder(small_codec(), 0.5).exact
    (wav,) = signals(1, [10000])
    (codes,) = in_windows(model, [wav], 0.5)
    alone = [model.encode(part[None])[0][0] for part in wav.split(RATE // 2, dim=1)]
    assert torch.equal(codes, torch.cat(alone, dim=1))


@pytest.mark.parametrize("window_s", [0.004, 0.0, -1.0, float("nan"), float("inf")])
def test_a_window_below_a_frame_or_without_end_is_refused(window_s: float) -> None:
    with pytest.raises(ConfigError, match=r"expected from 0\.01 s \(a frame\) to 3600"):
        WindowEncoder(small_codec(), window_s)
