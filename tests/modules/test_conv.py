"""Padded convolutions against windows computed one sample at a time in double precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiotok.errors import ConfigError, DataError
from audiotok.modules import (
    NormConv1d,
    NormConv2d,
    NormConvTranspose1d,
    NormConvTranspose2d,
    StreamableConv1d,
    StreamableConvTranspose1d,
)


def padded_reference(
    x: np.ndarray, weight: np.ndarray, stride: int, dilation: int, causal: bool, pad_mode: str
) -> np.ndarray:
    """Frame t of a convolution by its definition; x [C, T], weight [C', C, k]."""
    frames = math.ceil(x.shape[1] / stride)
    overlap = (weight.shape[2] - 1) * dilation + 1 - stride
    left = overlap if causal else math.ceil(overlap / 2)
    right = frames * stride - x.shape[1] + overlap - left
    borrowed = max(0, max(left, right) + 1 - x.shape[1]) if pad_mode == "reflect" else 0
    x = np.pad(x, ((0, 0), (0, borrowed)))
    x = np.pad(x, ((0, 0), (left, right)), mode="reflect" if pad_mode == "reflect" else "constant")
    out = np.zeros((weight.shape[0], frames))
    for t in range(frames):
        for k in range(weight.shape[2]):
            out[:, t] += weight[:, :, k] @ x[:, t * stride + k * dilation]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (10, 5, 1), (6, 3, 1), (5, 2, 1), (4, 4, 1)]
)
@pytest.mark.parametrize("length", [1, 2, 5, 31])
def test_convolution_equals_its_definition(
    kernel_size: int, stride: int, dilation: int, length: int, causal: bool, pad_mode: str
) -> None:
    torch.manual_seed(kernel_size + length)
    style: dict[str, Any] = {"causal": causal, "norm": "none", "pad_mode": pad_mode}
    conv = StreamableConv1d(2, 3, kernel_size, stride, dilation, bias=False, **style).double()
    x = torch.randn(1, 2, length, dtype=torch.float64)
    weight = conv.conv.conv.weight.detach().numpy()
    expected = padded_reference(x[0].numpy(), weight, stride, dilation, causal, pad_mode)
    np.testing.assert_allclose(conv(x)[0].detach().numpy(), expected, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 50),
    stride=st.integers(1, 6),
    excess=st.integers(0, 7),
    causal=st.booleans(),
    pad_mode=st.sampled_from(["constant", "reflect", "replicate"]),
)
def test_frames_cover_the_input_and_decode_to_at_least_its_length(
    length: int, stride: int, excess: int, causal: bool, pad_mode: str
) -> None:
    conv = StreamableConv1d(1, 1, stride + excess, stride, causal=causal, norm="none", pad_mode=pad_mode)
    transposed = StreamableConvTranspose1d(1, 1, stride + excess, stride, causal=causal, norm="none")
    frames = conv(torch.ones(1, 1, length))
    assert frames.shape[-1] == math.ceil(length / stride)
    assert transposed(frames).shape[-1] == frames.shape[-1] * stride


@pytest.mark.parametrize(
    ("causal", "ratio", "trim_left"), [(False, 1.0, 4), (True, 1.0, 0), (True, 0.0, 7), (True, 0.4, 4)]
)
def test_transposed_convolution_overlaps_adds_and_trims(causal: bool, ratio: float, trim_left: int) -> None:
    torch.manual_seed(0)
    stride, kernel_size, frames = 3, 10, 6
    options: dict[str, Any] = {"causal": causal, "norm": "none", "trim_right_ratio": ratio}
    layer = StreamableConvTranspose1d(2, 2, kernel_size, stride, **options).double()
    x = torch.randn(1, 2, frames, dtype=torch.float64)
    weight, bias = layer.convtr.convtr.weight.detach().numpy(), layer.convtr.convtr.bias
    full = np.zeros((2, (frames - 1) * stride + kernel_size))
    for t in range(frames):
        for k in range(kernel_size):
            full[:, t * stride + k] += weight[:, :, k].T @ x[0, :, t].numpy()
    assert isinstance(bias, nn.Parameter)
    expected = full[:, trim_left : trim_left + frames * stride] + bias.detach().numpy()[:, None]
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-12)


def test_weight_norm_splits_direction_and_length() -> None:
    torch.manual_seed(0)
    layer = NormConv1d(2, 3, 5, norm="weight_norm", bias=False).double()
    state = layer.state_dict()
    assert sorted(state) == ["conv.weight_g", "conv.weight_v"]
    direction = state["conv.weight_v"].numpy()
    lengths = np.sqrt((direction**2).sum(axis=(1, 2), keepdims=True))
    state["conv.weight_g"] *= 3
    layer.load_state_dict(state)
    plain = NormConv1d(2, 3, 5, norm="none", bias=False).double()
    plain.conv.weight.data = torch.from_numpy(state["conv.weight_g"].numpy() * direction / lengths)
    x = torch.randn(1, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("kind", [NormConv1d, NormConvTranspose1d])
def test_weight_norm_without_memory_takes_weights_as_any(kind: type[NormConv1d | NormConvTranspose1d]) -> None:
    torch.manual_seed(0)
    layer = kind(3, 5, 4, norm="weight_norm")
    with torch.device("meta"):
        other = kind(3, 5, 4, norm="weight_norm")
    assert all(one.is_meta for one in other.parameters())
    assert [*other.state_dict()] == [*layer.state_dict()]
    other.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 3, 10)
    assert torch.equal(other(x), layer(x))


def test_spectral_norm_converges_to_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer = NormConv1d(4, 3, 5, norm="spectral_norm", bias=False).double().train()
    for _ in range(200):
        layer(torch.zeros(1, 4, 5, dtype=torch.float64))
    matrix = layer.state_dict()["conv.weight_orig"].numpy().reshape(3, -1)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(layer.conv.weight.detach().numpy().reshape(3, -1), matrix / largest, rtol=1e-6)


def test_time_group_norm_gives_zero_mean_and_unit_variance_per_clip() -> None:
    torch.manual_seed(0)
    layer = NormConv1d(2, 3, 5, norm="time_group_norm").double()
    assert sorted(layer.state_dict()) == ["conv.bias", "conv.weight", "norm.bias", "norm.weight"]
    y = layer(torch.randn(4, 2, 200, dtype=torch.float64) * 7 + 3).detach().numpy()
    np.testing.assert_allclose(y.mean(axis=(1, 2)), 0, atol=1e-9)
    np.testing.assert_allclose(y.var(axis=(1, 2)), 1, atol=1e-4)


def test_two_dimensional_layers_keep_the_names_and_their_own_padding() -> None:
    conv = NormConv2d(1, 4, (3, 9), stride=(1, 2), padding=(1, 4), norm="weight_norm")
    transposed = NormConvTranspose2d(4, 1, (3, 4), stride=(1, 2), padding=1, norm="none")
    assert sorted(conv.state_dict()) == ["conv.bias", "conv.weight_g", "conv.weight_v"]
    assert sorted(transposed.state_dict()) == ["convtr.bias", "convtr.weight"]
    hidden = conv(torch.randn(2, 1, 10, 20))
    assert hidden.shape == (2, 4, 10, 10)
    assert transposed(hidden).shape == (2, 1, 10, 20)


def test_transposed_names() -> None:
    assert "convtr.weight_g" in NormConvTranspose1d(1, 1, 2, norm="weight_norm").state_dict()


def test_values_that_cannot_work_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"norm='batch'.*weight_norm"):
        NormConv1d(1, 1, 1, norm="batch")
    with pytest.raises(ConfigError, match=r"time_group_norm.*causal"):
        StreamableConv1d(1, 1, 3, causal=True, norm="time_group_norm", pad_mode="reflect")
    with pytest.raises(ConfigError, match=r"pad_mode='mirror'.*reflect"):
        StreamableConv1d(1, 1, 3, norm="none", pad_mode="mirror")
    with pytest.raises(ConfigError, match=r"kernel of 3.*stride 4"):
        StreamableConv1d(1, 1, 3, stride=4, norm="none", pad_mode="reflect")
    with pytest.raises(ConfigError, match=r"trim_right_ratio=0.5.*causal"):
        StreamableConvTranspose1d(1, 1, 4, 2, norm="none", trim_right_ratio=0.5)
    with pytest.raises(ConfigError, match=r"trim_right_ratio=1.5"):
        StreamableConvTranspose1d(1, 1, 4, 2, norm="none", causal=True, trim_right_ratio=1.5)
    with pytest.raises(DataError, match="no sample"):
        StreamableConv1d(1, 1, 3, norm="none", pad_mode="reflect")(torch.zeros(1, 1, 0))


@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "groups"),
    [(7, 1, 1, 1), (1, 1, 1, 1), (3, 1, 4, 1), (5, 2, 1, 3), (4, 4, 1, 1)],
)
@pytest.mark.parametrize("length", [1, 37])
def test_inference_computes_the_same_with_the_channels_last(
    kernel_size: int, stride: int, dilation: int, groups: int, length: int, pad_mode: str
) -> None:
    torch.manual_seed(0)
    conv = StreamableConv1d(6, 9, kernel_size, stride, dilation, groups, norm="weight_norm", pad_mode=pad_mode).eval()
    x = torch.randn(2, 6, length)
    with torch.no_grad():
        found = conv(x)
    torch.testing.assert_close(found.double(), conv.double()(x.double()).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (10, 5), (7, 3), (3, 3), (5, 1)])
@pytest.mark.parametrize("length", [1, 4, 300])  # short clips leave the weights as they are
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_inference_computes_the_same_with_the_channels_last(
    kernel_size: int, stride: int, length: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = NormConvTranspose1d(12, 8, kernel_size, stride, norm="weight_norm", bias=bias).eval()
    x = torch.randn(2, 12, length)
    with torch.no_grad():
        found = conv(x)
    torch.testing.assert_close(found.double(), conv.double()(x.double()).detach(), atol=1e-5, rtol=1e-5)


def test_training_is_as_pytorch_computes_it_bit_by_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 50)
    conv = NormConv1d(6, 9, 5, 2, norm="none")
    transposed = NormConvTranspose1d(6, 9, 5, 2, norm="none")
    expected = nn.functional.conv1d(x, conv.conv.weight, conv.conv.bias, 2)
    expected_transposed = nn.functional.conv_transpose1d(x, transposed.convtr.weight, transposed.convtr.bias, 2)
    assert torch.equal(conv(x), expected)
    assert torch.equal(transposed(x), expected_transposed)
    with torch.no_grad():  # a pass of the training that needs no gradients
        assert torch.equal(conv(x), expected)
        assert torch.equal(transposed(x), expected_transposed)


def test_inference_keeps_the_channels_last_from_layer_to_layer() -> None:
    style: dict[str, Any] = {"norm": "weight_norm", "pad_mode": "reflect"}
    layers = [StreamableConv1d(8, 16, 4, 2, **style), nn.ELU(), StreamableConvTranspose1d(16, 8, 4, 2, norm="none")]
    with torch.inference_mode():
        x = torch.randn(1, 8, 8000)
        for layer in layers:
            x = layer.eval()(x)
            assert x.stride(1) == 1


def test_a_recorded_graph_is_of_the_plain_layers() -> None:
    conv = StreamableConv1d(2, 3, 7, norm="weight_norm", pad_mode="reflect").eval()
    x = torch.randn(1, 2, 40)
    with torch.no_grad():
        exported = torch.export.export(conv, (x,))
        assert "copy_" not in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), conv(x))
