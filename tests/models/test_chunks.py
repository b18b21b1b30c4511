"""Audio in chunks is coded as in one pass; of models that normalise over time, as Transformers codes it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncodecConfig
from transformers import EncodecModel as TheirModel

from audiotok.errors import ConfigError, DataError
from audiotok.models import EncodecModel
from audiotok.models.chunks import WindowDecoder, layout_of, volume
from tests.codecs import RATE, small_codec
from tests.models.test_windows import KINDS

HOP = 80
MORE: dict[str, dict[str, Any]] = {
    "causal mirrored": {"causal": True, "pad_mode": "reflect"},
    "causal that looks ahead": {"causal": True, "decoder": {"trim_right_ratio": 0.5}},
    "with a last activation": {"decoder": {"final_activation": "Tanh"}},
}
ALL = {**KINDS, **MORE}


def noise(channels: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, length, generator=generator, dtype=dtype) * 0.3


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("window_s", [0.01, 0.07, 0.5])
def test_chunks_are_coded_as_in_one_pass(kind: str, window_s: float) -> None:
    model = small_codec(**ALL[kind]).double()
    wav = noise(model.channels, 2 * RATE + 37)
    codes, scale = model.encode(wav)
    for length in (171, RATE):
        chunks = wav.split(length, dim=2)
        whole = volume(chunks) if model.renormalize else None
        got = list(model.encode_chunks(chunks, scale=whole, window_s=window_s))
        assert torch.equal(joined([each for each, _ in got]), codes)
        parts = list(model.decode_chunks(codes.split(7, dim=2), scale=scale, window_s=window_s))
        torch.testing.assert_close(joined(parts), model.decode(codes, scale), rtol=0, atol=1e-12)
        if whole is not None and scale is not None:
            torch.testing.assert_close(whole, scale.float())
    assert parts[0].shape[2] < RATE, "audio comes before the end"


@pytest.mark.parametrize("length", [1, 79, 80, 81, 159, 161, 400, 560, 561])
@pytest.mark.parametrize("kind", ["plain", "causal mirrored"])
def test_every_length_around_the_end_of_a_window(kind: str, length: int) -> None:
    model = small_codec(**ALL[kind]).double()
    wav = noise(1, length)
    codes, _ = model.encode(wav)
    assert torch.equal(joined([each for each, _ in model.encode_chunks([wav], window_s=0.02)]), codes)
    parts = joined(list(model.decode_chunks([codes], window_s=0.02)))
    torch.testing.assert_close(parts, model.decode(codes), rtol=0, atol=1e-12)


def test_float32_differs_by_rounding_alone() -> None:
    model = small_codec()
    wav = noise(1, 4 * RATE, torch.float32)
    codes, _ = model.encode(wav)
    pairs = model.encode_chunks(wav.split(999, dim=2), window_s=0.3)
    got = joined([each for each, _ in pairs])
    assert (got != codes).float().mean() < 0.001
    once, parts = model.decode(codes), joined(list(model.decode_chunks([codes], window_s=0.3)))
    assert (once - parts).abs().max() < 1e-5 * once.abs().max() + 1e-6


def test_only_a_window_is_in_memory() -> None:
    model = small_codec()
    longest, step = 0, WindowDecoder.step

    def chunks() -> Any:
        for _ in range(200):
            yield noise(1, RATE // 10, torch.float32)

    def watched(self: WindowDecoder, codes: Tensor, last: bool) -> Tensor | None:
        nonlocal longest
        longest = max(longest, codes.shape[2])
        return step(self, codes, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowDecoder, "step", watched)
        wavs = list(model.decode_chunks(model.encode_chunks(chunks(), window_s=0.5), window_s=0.5))
    assert longest == 50 and joined(wavs).shape[2] == 20 * RATE


def theirs_and_ours() -> tuple[Any, EncodecModel]:
    """The same weights in both: our names follow theirs by place, and both normalise over time."""
    ours = small_codec(norm="time_group_norm", renormalize=True, channels=2, lstm=1, bins=64, pad_mode="reflect")
    cfg = EncodecConfig(
        target_bandwidths=[1.2], sampling_rate=RATE, audio_channels=2, normalize=True, chunk_length_s=1.0,
        overlap=0.01, hidden_size=8, num_filters=4, num_residual_layers=1, upsampling_ratios=[5, 4, 4],
        norm_type="time_group_norm", kernel_size=7, last_kernel_size=7, residual_kernel_size=3, dilation_growth_rate=2,
        use_causal_conv=False, pad_mode="reflect", compress=2, num_lstm_layers=1, codebook_size=64, codebook_dim=8,
        use_conv_shortcut=False,
    )  # fmt: skip
    theirs: Any = TheirModel(cfg).double().train(False)
    ours = ours.double()
    codebooks: Any = ours.quantizer.vq
    for name in ("encoder", "decoder"):
        one = [value for value in getattr(ours, name).state_dict().values()]
        state = dict(zip(getattr(theirs, name).state_dict(), one, strict=True))
        getattr(theirs, name).load_state_dict(state)
    for one, other in zip(codebooks.layers, theirs.quantizer.layers, strict=False):
        other.codebook.embed.copy_(one._codebook.embed)
    return theirs, ours


@torch.no_grad()
def test_a_model_that_normalises_over_time_is_coded_as_by_transformers() -> None:
    theirs, ours = theirs_and_ours()
    length = 2 * int(0.99 * RATE) + 4000  # two of their chunks and half a one
    wav = noise(2, length)
    found = theirs.encode(wav, torch.ones(2, 1, length, dtype=torch.bool), bandwidth=1.2)
    got = list(ours.encode_chunks(wav.split(777, dim=2)))
    assert len(got) == len(found.audio_codes) == 3 and found.last_frame_pad_length == 50
    for (codes, scale), codes_, scale_ in zip(got, found.audio_codes, found.audio_scales, strict=True):
        assert torch.equal(codes, codes_[..., : codes.shape[2]])
        torch.testing.assert_close(scale, scale_)
    once = theirs.decode(found.audio_codes, found.audio_scales, last_frame_pad_length=50)[0]
    torch.testing.assert_close(joined(list(ours.decode_chunks(got))), once, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [1, RATE - 1, RATE, RATE + 1, RATE + 7920, 3 * RATE + 5])
def test_chunks_of_a_model_that_normalises_over_time_are_those_of_its_layout(length: int) -> None:
    model = small_codec(norm="time_group_norm", renormalize=True)
    got = list(model.encode_chunks([noise(1, length, torch.float32)]))
    assert [codes.shape[2] for codes, _ in got] == layout_of(model).frames(length)
    wav = joined(list(model.decode_chunks(got)))
    assert length <= wav.shape[2] < length + HOP and bool(torch.isfinite(wav).all())


def test_no_graph_is_kept_but_where_training_needs_one() -> None:
    model = small_codec()
    wav = noise(1, RATE, torch.float32).requires_grad_()
    codes, _ = model.encode(wav)
    assert not codes.requires_grad and not model.decode(codes).requires_grad
    assert all(not part.requires_grad for part in model.decode_chunks(model.encode_chunks([wav])))
    assert torch.is_grad_enabled()
    assert model.encode_latent(wav)[0].requires_grad and model(wav).x.requires_grad
    model.train()
    assert not model.encode(wav)[0].requires_grad and model.decode(codes).requires_grad


def test_faults() -> None:
    plain, loud = small_codec(), small_codec(renormalize=True)
    wav = noise(1, RATE, torch.float32)
    with pytest.raises(DataError, match="no sample"):
        list(plain.encode_chunks([]))
    with pytest.raises(DataError, match="empty"):
        list(plain.decode_chunks([]))
    with pytest.raises(DataError, match=r"takes \[B, 1, T\]"):
        list(plain.encode_chunks([wav.expand(2, 8, -1)]))
    with pytest.raises(ConfigError, match="volume of the whole signal"):
        list(loud.encode_chunks([wav]))
    with pytest.raises(ConfigError, match="windows of 0"):
        list(plain.encode_chunks([wav], window_s=0))
    with pytest.raises(ConfigError, match="got a scale"):
        list(plain.decode_chunks([plain.encode(wav)[0]], scale=torch.ones(2, 1)))
    with pytest.raises(DataError, match="codes"):
        list(plain.decode_chunks([torch.full((1, 2, 3), 64)]))
