"""What each discriminator sees and returns."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import nn
from torch.nn import functional as F

from audiotok.adversarial.discriminators import (
    MultiDiscriminator,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
    PeriodDiscriminator,
)
from audiotok.errors import ConfigError, DataError

STFT_SIZES = {"n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 100]}
SLOPE = {"activation": "LeakyReLU", "activation_params": {"negative_slope": 0.3}}


def stft_discriminator(**changes: Any) -> MultiScaleSTFTDiscriminator:
    torch.manual_seed(0)
    return MultiScaleSTFTDiscriminator(**{"filters": 4, **STFT_SIZES, **SLOPE, **changes})


def period_discriminator(**changes: Any) -> MultiPeriodDiscriminator:
    torch.manual_seed(0)
    small = {"in_channels": 1, "out_channels": 1, "periods": [2, 3], "n_layers": 3, "kernel_sizes": [5, 3]}
    sizes = {"stride": 3, "filters": 2, "filters_scale": 2, "max_filters": 6, "norm": "weight_norm"}
    return MultiPeriodDiscriminator(**{**small, **sizes, **SLOPE, **changes})


def scale_discriminator(**changes: Any) -> MultiScaleDiscriminator:
    torch.manual_seed(0)
    small = {"scale_norms": ["spectral_norm", "weight_norm", "weight_norm"], "filters": 8, "max_filters": 16}
    return MultiScaleDiscriminator(**{**small, "downsample_scales": [4, 4], "groups": [4, 4], **SLOPE, **changes})


def draw(length: int = 1000, channels: int = 1, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("make", "scales", "maps", "has_logit"),
    [
        (stft_discriminator, 2, 5, False),
        (period_discriminator, 2, 4, True),
        (scale_discriminator, 3, 5, True),
    ],
)
def test_output_is_a_logit_and_maps_per_scale(make: Any, scales: int, maps: int, has_logit: bool) -> None:
    for length in (1000, 997):
        wav = draw(length).requires_grad_()
        discriminator: MultiDiscriminator = make()
        logits, features = discriminator(wav)
        assert discriminator.num_discriminators == len(logits) == len(features) == scales
        assert all(logit.shape[:2] == (2, 1) for logit in logits)
        assert all(len(one) == maps for one in features)
        assert all((one[-1] is x) == has_logit for one, x in zip(features, logits, strict=True))
        sum(logit.sum() for logit in logits).backward()
        assert wav.grad is not None and wav.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [stft_discriminator, period_discriminator, scale_discriminator])
def test_wrong_channels_or_too_short_a_signal_are_refused(make: Any) -> None:
    discriminator: MultiDiscriminator = make()
    shortest = discriminator.min_length
    logits, _ = discriminator(draw(shortest))
    assert all(torch.isfinite(logit).all() for logit in logits)
    for wav in (draw(shortest - 1), draw(channels=2), draw()[:, 0]):
        with pytest.raises(DataError, match=rf"expected \[B, 1, T\] with T of {shortest} samples or more"):
            discriminator(wav)


def first_input(module: nn.Module, layer: nn.Module, wav: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    module(wav)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("index", [0, 1])
def test_stft_discriminator_sees_the_normalised_complex_spectrum(index: int) -> None:
    discriminator, wav = stft_discriminator(in_channels=2), draw(channels=2)
    seen = first_input(discriminator, discriminator.discriminators[index].get_submodule("convs.0"), wav)
    n_fft, hop, win = (STFT_SIZES[key][index] for key in ("n_ffts", "hop_lengths", "win_lengths"))
    left = (n_fft - win) // 2
    window = np.pad(signal.get_window("hann", win), (left, n_fft - win - left))
    stft: Any = signal.stft
    sizes = {
        "nperseg": n_fft,
        "noverlap": n_fft - hop,
        "boundary": None,
        "padded": False,
        "scaling": "spectrum",
    }
    _, _, spectrum = stft(wav.double().numpy(), window=window, **sizes)
    spectrum = spectrum * window.sum() / np.sqrt((window**2).sum())
    wanted = np.concatenate([spectrum.real, spectrum.imag], axis=1).swapaxes(2, 3)
    np.testing.assert_allclose(seen.numpy(), wanted, atol=1e-5)


def test_separated_channels_are_judged_as_signals_of_their_own() -> None:
    together, alone = stft_discriminator(in_channels=2, sep_channels=True), stft_discriminator()
    together.load_state_dict(alone.state_dict())
    wav = draw(channels=2)
    logits, maps = together(wav)
    for channel in range(2):
        logits_alone, maps_alone = alone(wav[:, channel : channel + 1])
        torch.testing.assert_close([logit[channel::2] for logit in logits], logits_alone)
        torch.testing.assert_close([[m[channel::2] for m in one] for one in maps], maps_alone)


def test_widths_of_the_stft_discriminator_grow_up_to_their_bound() -> None:
    discriminator = stft_discriminator(filters_scale=2, max_filters=20)
    _, maps = discriminator(draw())
    assert [m.shape[1] for m in maps[0]] == [4, 8, 16, 20, 20]


@pytest.mark.parametrize("period", [2, 3, 7])
def test_period_discriminator_keeps_the_phases_of_a_period_apart(period: int) -> None:
    torch.manual_seed(0)
    judge, wav = PeriodDiscriminator(period, n_layers=2, filters=2), draw(30 * period).requires_grad_()
    logit, _ = judge(wav)
    (gradient,) = torch.autograd.grad(logit[..., 1].sum(), wav)
    phases = gradient.reshape(2, -1, period).abs().sum((0, 1))
    assert phases[1] > 0
    assert phases.sum() == phases[1]


def test_period_discriminator_mirrors_the_end_to_fill_its_last_row() -> None:
    torch.manual_seed(0)
    judge, wav = PeriodDiscriminator(7, n_layers=2, filters=2), draw(100)
    seen = first_input(judge, judge.get_submodule("convs.0"), wav)
    wanted = np.pad(wav.numpy(), ((0, 0), (0, 0), (0, 5)), mode="reflect").reshape(2, 1, 15, 7)
    np.testing.assert_array_equal(seen.numpy(), wanted)


def test_scale_discriminator_really_sees_the_signal_downsampled() -> None:
    discriminator, wav = scale_discriminator(downsample_factor=3), draw(900)
    for index in range(3):
        seen = first_input(discriminator, discriminator.discriminators[index], wav)
        wanted = wav.numpy()
        for _ in range(index):
            padded = np.pad(wanted, ((0, 0), (0, 0), (3, 3)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, 6, axis=-1)
            wanted = windows[:, :, ::3].mean(-1)
        np.testing.assert_allclose(seen.numpy(), wanted, atol=1e-6)


def test_scale_discriminator_defaults_follow_its_scales() -> None:
    discriminator = scale_discriminator(groups=None, scale_norms=["none"])
    convs: Any = discriminator.discriminators[0].get_submodule("convs")
    inner = convs[1].conv
    assert (inner.kernel_size, inner.stride, inner.padding, inner.groups) == ((41,), (4,), (20,), 2)
    head = convs[0](draw())
    wanted = F.conv1d(F.pad(draw(), (7, 7), mode="reflect"), convs[0][1].conv.weight, convs[0][1].conv.bias)
    torch.testing.assert_close(head, wanted)


def test_parameter_names_are_those_of_published_files() -> None:
    stft, period, scale = stft_discriminator(), period_discriminator(), scale_discriminator()
    names = set(stft.state_dict())
    assert "discriminators.0.spec_transform.window" in names
    assert {f"discriminators.1.convs.0.conv.{n}" for n in ("weight", "bias")} <= names
    assert {f"discriminators.1.convs.4.conv.{n}" for n in ("weight_g", "weight_v", "bias")} <= names
    assert {f"discriminators.1.conv_post.conv.{n}" for n in ("weight_g", "weight_v", "bias")} <= names
    assert {f"discriminators.1.convs.2.conv.{n}" for n in ("weight_g", "weight_v")} <= set(period.state_dict())
    names = set(scale.state_dict())
    assert {f"discriminators.0.convs.0.1.conv.{n}" for n in ("weight_orig", "weight_u", "weight_v")} <= names
    assert {f"discriminators.2.convs.3.conv.{n}" for n in ("weight_g", "weight_v", "bias")} <= names


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 n_ffts, 2 hop_lengths"):
        stft_discriminator(n_ffts=[256])
    with pytest.raises(ConfigError, match=r"'Leaky' is no module of torch.nn"):
        stft_discriminator(activation="Leaky")
    with pytest.raises(ConfigError, match=r"'slope': 0.1.*do not fit LeakyReLU"):
        period_discriminator(activation_params={"slope": 0.1})
    with pytest.raises(ConfigError, match="no sub-discriminator"):
        period_discriminator(periods=[])
    with pytest.raises(ConfigError, match="two odd numbers"):
        scale_discriminator(kernel_sizes=[5, 4])
    with pytest.raises(ConfigError, match=r"\[\[4\]\] beside downsample_scales=\[4, 4\]"):
        scale_discriminator(groups=[4])
