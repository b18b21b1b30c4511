"""The codec as a whole: shapes, lengths, volume, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.models import EncodecModel
from audiotok.modules import SEANetDecoder, SEANetEncoder
from audiotok.quantization import DummyQuantizer, ResidualVectorQuantizer

HOP = 6


def codec(channels: int = 1, causal: bool = False, renormalize: bool = False, quantize: bool = True) -> EncodecModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "channels": channels,
        "dimension": 8,
        "n_filters": 4,
        "n_residual_layers": 1,
        "ratios": [3, 2],
        "causal": causal,
        "pad_mode": "constant",
        "lstm": 1,
    }
    rvq = ResidualVectorQuantizer(dimension=8, n_q=4, bins=16, kmeans_init=False)
    return EncodecModel(
        SEANetEncoder(**options),
        SEANetDecoder(**options),
        rvq if quantize else DummyQuantizer(),
        frame_rate=100,
        sample_rate=600,
        channels=channels,
        causal=causal,
        renormalize=renormalize,
    ).eval()


@pytest.mark.parametrize("length", [1, 5, 6, 7, 100])
@pytest.mark.parametrize(("channels", "renormalize"), [(1, False), (2, True)])
def test_reconstruction_has_the_length_of_the_input(length: int, channels: int, renormalize: bool) -> None:
    model = codec(channels, renormalize=renormalize)
    wav = torch.randn(3, channels, length)
    result = model(wav)
    frames = -(-length // HOP)
    assert result.x.shape == wav.shape
    assert result.codes.shape == (3, 4, frames)
    codes, scale = model.encode(wav)
    assert torch.equal(codes, result.codes)
    assert (None if scale is None else scale.shape) == ((3, 1) if renormalize else None)
    decoded = model.decode(codes, scale)
    assert decoded.shape == (3, channels, frames * HOP)
    torch.testing.assert_close(decoded[..., :length], result.x)


def test_without_quantiser_the_codec_is_its_autoencoder() -> None:
    model = codec(quantize=False)
    wav = torch.randn(2, 1, 60)
    assert torch.equal(model(wav).x, model.decoder(model.encoder(wav)))


def test_latent_is_what_the_quantiser_sees_and_carries_a_gradient() -> None:
    model = codec(channels=2, renormalize=True).train()
    wav = torch.randn(2, 2, 61)
    latent, _ = model.encode_latent(wav)
    assert latent.shape == (2, 8, 11)
    assert torch.equal(model.quantizer.encode(latent), model.encode(wav)[0])
    latent.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_decoded_latent_sums_the_vectors() -> None:
    model = codec()
    codes = torch.randint(16, (2, 4, 5))
    tables = [model.state_dict()[f"quantizer.vq.layers.{k}._codebook.embed"].numpy() for k in range(4)]
    expected = sum(table[codes[:, k].numpy()] for k, table in enumerate(tables))
    np.testing.assert_allclose(model.decode_latent(codes).numpy(), np.swapaxes(expected, 1, 2), atol=1e-6)


@torch.no_grad()
def test_volume_does_not_reach_a_renormalised_encoder() -> None:
    model = codec(channels=2, renormalize=True)
    wav = torch.randn(3, 2, 120)
    gain = torch.tensor([0.01, 1.0, 30.0])[:, None, None]
    codes, scale = model.encode(wav)
    louder, louder_scale = model.encode(gain * wav)
    assert scale is not None
    assert louder_scale is not None
    rms = wav.double().mean(dim=1).pow(2).mean(dim=1).sqrt().numpy()
    np.testing.assert_allclose(scale[:, 0].numpy(), rms, rtol=1e-5)
    np.testing.assert_allclose(louder_scale.numpy(), (gain[:, 0] * scale).numpy(), rtol=1e-5)
    assert torch.equal(codes, louder)
    torch.testing.assert_close(model(gain * wav).x, gain * model(wav).x, rtol=1e-4, atol=1e-5)
    silence = model(torch.zeros(1, 2, 60)).x
    assert silence.isfinite().all()
    assert silence.abs().max() < 1e-6


@torch.no_grad()
def test_a_causal_codec_encodes_the_beginning_alike() -> None:
    model = codec(causal=True).double()
    wav = torch.randn(1, 1, 120, dtype=torch.float64)
    codes, _ = model.encode(wav)
    assert torch.equal(model.encode(wav[..., :60])[0], codes[..., :10])
    torch.testing.assert_close(model(wav[..., :60]).x, model(wav).x[..., :60])


def test_facts_and_active_codebooks() -> None:
    model = codec()
    assert (model.sample_rate, model.frame_rate, model.channels, model.cardinality) == (600, 100, 1, 16)
    assert (model.num_codebooks, model.total_codebooks) == (4, 4)
    wav = torch.randn(1, 1, 60)
    codes, _ = model.encode(wav)
    assert float(model(wav).bandwidth) == pytest.approx(4 * 4 * 100 / 1000)
    model.set_num_codebooks(2)
    assert (model.num_codebooks, model.total_codebooks) == (2, 4)
    assert torch.equal(model.encode(wav)[0], codes[:, :2])
    assert float(model(wav).bandwidth) == pytest.approx(2 * 4 * 100 / 1000)


def test_training_reaches_all_parameters() -> None:
    model = codec().train()
    result = model(torch.randn(2, 1, 60))
    assert result.penalty is not None
    (result.x.pow(2).mean() + result.penalty).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    model = codec(channels=2)
    for wav in (torch.zeros(1, 1, 9), torch.zeros(2, 9), torch.zeros(1, 2, 0)):
        with pytest.raises(DataError, match=r"this model takes \[B, 2, T\].*600 Hz"):
            model(wav)
    with pytest.raises(ConfigError, match="renormalize=false"):
        model.decode(torch.zeros(1, 4, 2, dtype=torch.long), torch.ones(1, 1))
    with pytest.raises(ConfigError, match=r"causal=true.*renormalize=true"):
        codec(causal=True, renormalize=True)
