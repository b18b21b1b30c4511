"""Encoder and decoder: lengths, causality, names and sizes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError
from audiotok.modules import SEANetDecoder, SEANetEncoder, SEANetResnetBlock

SMALL: dict[str, Any] = {
    "dimension": 8,
    "n_filters": 2,
    "n_residual_layers": 1,
    "ratios": [5, 3, 2],
    "lstm": 1,
    "norm": "weight_norm",
    "pad_mode": "reflect",
}
FULL_32KHZ: dict[str, Any] = {
    "dimension": 128,
    "n_filters": 64,
    "n_residual_layers": 1,
    "ratios": [8, 5, 4, 4],
    "norm": "weight_norm",
    "pad_mode": "constant",
    "lstm": 2,
}


@pytest.mark.parametrize("length", [1, 7, 29, 30, 31, 299])
@pytest.mark.parametrize("causal", [False, True])
def test_any_length_is_encoded_in_full_and_decoded_to_whole_frames(length: int, causal: bool) -> None:
    torch.manual_seed(0)
    encoder, decoder = SEANetEncoder(**SMALL, causal=causal), SEANetDecoder(**SMALL, causal=causal)
    latent = encoder(torch.randn(2, 1, length))
    assert latent.shape == (2, 8, math.ceil(length / 30))
    wav = decoder(latent)
    assert wav.shape == (2, 1, latent.shape[-1] * 30)
    assert wav.shape[-1] >= length


def unchanged_frames(module: nn.Module, x: Tensor, cut: int) -> int:
    """How many leading outputs do not notice that the input changes from cut on."""
    changed = x.clone()
    changed[..., cut:] += 1.0
    same = (module(x) - module(changed)).abs().amax(dim=(0, 1)) < 1e-9
    return int(same.long().cumprod(0).sum())


@torch.no_grad()
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_causal_networks_do_not_look_ahead(pad_mode: str) -> None:
    torch.manual_seed(0)
    for causal in (True, False):
        encoder = SEANetEncoder(**SMALL | {"causal": causal, "pad_mode": pad_mode}).double()
        decoder = SEANetDecoder(**SMALL | {"causal": causal, "pad_mode": pad_mode}).double()
        wav = torch.randn(1, 1, 600, dtype=torch.float64)
        latent = torch.randn(1, 8, 20, dtype=torch.float64)
        # Samples from 300 on belong to frame 10 and later, in both directions.
        assert (unchanged_frames(encoder, wav, 300) == 10) is causal
        assert (unchanged_frames(decoder, latent, 10) == 300) is causal


@torch.no_grad()
def test_causal_prefix_is_the_prefix() -> None:
    torch.manual_seed(0)
    encoder = SEANetEncoder(**SMALL | {"causal": True, "pad_mode": "constant"}).double()
    wav = torch.randn(1, 1, 600, dtype=torch.float64)
    torch.testing.assert_close(encoder(wav[..., :240]), encoder(wav)[..., :8])


def test_full_size_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder, decoder = SEANetEncoder(**FULL_32KHZ), SEANetDecoder(**FULL_32KHZ)
    count = sum(p.numel() for module in (encoder, decoder) for p in module.parameters())
    assert round(count / 1e6, 1) == 56.9
    assert encoder.hop_length == decoder.hop_length == 640


def test_parameter_names_are_those_of_the_files() -> None:
    with torch.device("meta"):
        encoder, decoder = SEANetEncoder(**FULL_32KHZ).state_dict(), SEANetDecoder(**FULL_32KHZ).state_dict()
    assert {f"model.0.conv.conv.{name}" for name in ("bias", "weight_g", "weight_v")} <= set(encoder)
    assert {f"model.1.block.{i}.conv.conv.weight_v" for i in (1, 3)} <= set(encoder)
    assert encoder["model.3.conv.conv.weight_v"].shape == (128, 64, 8)  # ratio 4 comes first
    assert encoder["model.12.conv.conv.weight_v"].shape == (1024, 512, 16)  # ratio 8 last
    assert encoder["model.13.lstm.weight_ih_l1"].shape == (4096, 1024)
    assert encoder["model.15.conv.conv.weight_g"].shape == (128, 1, 1)
    assert not any(key.startswith("model.16") for key in encoder)
    assert decoder["model.1.lstm.bias_hh_l0"].shape == (4096,)
    assert decoder["model.3.convtr.convtr.weight_v"].shape == (1024, 512, 16)
    assert decoder["model.15.conv.conv.weight_v"].shape == (1, 64, 7)


def test_convolutional_skip_and_group_norm_names() -> None:
    options = SMALL | {"norm": "time_group_norm", "true_skip": False}
    state = SEANetEncoder(**options).state_dict()
    assert {"model.1.shortcut.conv.conv.weight", "model.1.shortcut.conv.norm.bias"} <= set(state)
    assert not any("weight_g" in key for key in state)


@pytest.mark.parametrize(
    ("blocks", "normed"), [(0, [0, 1, 2, 3, 4]), (1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (5, [])]
)
def test_outer_blocks_without_norm_are_counted_from_the_waveform(blocks: int, normed: list[int]) -> None:
    options = SMALL | {"lstm": 0, "n_residual_layers": 0, "disable_norm_outer_blocks": blocks}
    for network, layers in ((SEANetEncoder, [0, 2, 4, 6, 8]), (SEANetDecoder, [8, 6, 4, 2, 0])):
        keys = network(**options).state_dict()
        found = [
            i for i, layer in enumerate(layers) if any(k.startswith(f"model.{layer}.") and "_g" in k for k in keys)
        ]
        assert found == normed


def test_dilations_grow_with_the_residual_layers() -> None:
    encoder = SEANetEncoder(**SMALL | {"n_residual_layers": 3, "dilation_base": 3})
    blocks = [module for module in encoder.modules() if isinstance(module, SEANetResnetBlock)]
    convolutions = [block.get_submodule("block.1.conv.conv") for block in blocks]
    dilations = [conv.dilation[0] for conv in convolutions if isinstance(conv, nn.Conv1d)]
    assert dilations == [1, 3, 9] * 3


def test_final_activation_bounds_the_waveform() -> None:
    torch.manual_seed(0)
    latent = 1e4 * torch.randn(1, 8, 5)
    assert SEANetDecoder(**SMALL)(latent).abs().max() > 1
    assert SEANetDecoder(**SMALL, final_activation="Tanh")(latent).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, r"seanet.ratios=\[\]"),
        ({"ratios": [2, 0]}, r"seanet.ratios=\[2, 0\]"),
        ({"n_filters": 0}, "seanet.n_filters=0.*from 1 up"),
        ({"lstm": -1}, "seanet.lstm=-1"),
        ({"channels": True}, "seanet.channels=True; give a whole number"),
        ({"norm_params": 7}, "seanet.norm_params=7; give a section"),
        ({"activation": "Elu"}, "activation='Elu'.*ELU"),
        ({"activation_params": {"beta": 1}}, "activation_params.*beta"),
        ({"disable_norm_outer_blocks": 6}, "disable_norm_outer_blocks=6.*to 5"),
        ({"compress": 3}, "compress=3.*from 1 to 2"),
        ({"trim_right_ratio": 1.0}, "seanet.trim_right_ratio=1.0 is unknown.*n_filters"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SEANetEncoder(**{**SMALL, **options})
