"""The MMD step: the gradient of all batches together, at the memory of one, and nothing touched but the encoder."""

import pytest
import torch

from audiotok.errors import ConfigError, DivergedError
from audiotok.losses import MMDLoss
from audiotok.models.encodec import EncodecModel
from audiotok.modules.seanet import SEANetDecoder, SEANetEncoder
from audiotok.quantization import DummyQuantizer, ResidualVectorQuantizer
from audiotok.quantization.base import BaseQuantizer
from audiotok.solvers.macro_batch import MacroBatch, MMDWeight, stream_mmd


def tiny_model(quantizer: BaseQuantizer | None = None) -> EncodecModel:
    torch.manual_seed(0)
    sizes = {
        "channels": 1,
        "dimension": 6,
        "n_filters": 2,
        "ratios": [4, 2],
        "lstm": 1,
        "norm": "weight_norm",
    }
    quantizer = quantizer or ResidualVectorQuantizer(dimension=6, n_q=3, bins=8, kmeans_init=False)
    model = EncodecModel(
        SEANetEncoder(**sizes), SEANetDecoder(**sizes), quantizer, frame_rate=100, sample_rate=800, channels=1
    )
    return model.train()


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 1, 160, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("stream", ["input", "residual", "code"])
def test_gradient_is_that_of_one_large_batch(stream: str) -> None:
    # In float64, where rounding cannot hide a mistake.
    model, wavs, weight = tiny_model().double(), [wav.double() for wav in batches(3)], 7.0
    loss = MMDLoss("median", "unbiased", True)
    macro = MacroBatch(loss, stream, num_batches=3, seed=5)
    assert [macro.add(wav) for wav in wavs] == [False, False, True]
    value = macro.value(model, weight)
    cached = {name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.grad is not None}

    model.zero_grad()
    latent = model.encode_latent(torch.cat(wavs))[0]
    direct = stream_mmd(loss, model, latent, stream, torch.Generator().manual_seed(5))
    (weight * direct).backward()
    assert value == pytest.approx(direct.item(), rel=1e-8)
    assert cached and max(g.abs().max() for g in cached.values()) > 0
    for name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in model.decoder.parameters())


@pytest.mark.parametrize(("count", "passes"), [(1, 1), (3, 6)])
def test_a_single_batch_is_encoded_once_and_more_of_them_twice(count: int, passes: int) -> None:
    model, seen = tiny_model(), []
    model.encoder.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    macro = MacroBatch(MMDLoss([1.0], "unbiased", True), "residual", num_batches=count, seed=0)
    for wav in batches(count):
        macro.add(wav)
    macro.value(model, weight=1.0)
    assert len(seen) == passes and sum(seen) == count  # with a graph, each batch once


@pytest.mark.parametrize("count", [1, 2])
def test_codebooks_that_the_step_did_not_use_take_no_part(count: int) -> None:
    model, wavs = tiny_model().double(), [wav.double() for wav in batches(count)]
    model.state_dict()["quantizer.vq.layers.2._codebook.inited"].zero_()  # not even set, as before its k-means start
    loss = MMDLoss([5.0], "unbiased", True)
    macro = MacroBatch(loss, "residual", num_batches=count, seed=0)
    for wav in wavs:
        macro.add(wav)
    value = macro.value(model, 1.0, n_q=2)
    cached = [p.grad.clone() for p in model.encoder.parameters() if p.grad is not None]
    model.zero_grad()
    model.quantizer.set_num_codebooks(2)
    latent = model.encode_latent(torch.cat(wavs))[0]
    direct = stream_mmd(loss, model, latent, "residual", torch.Generator().manual_seed(0))
    direct.backward()
    assert value == pytest.approx(direct.item(), rel=1e-8)
    torch.testing.assert_close(cached, [p.grad for p in model.encoder.parameters()], rtol=1e-6, atol=1e-9)


def test_the_latest_batches_are_kept() -> None:
    macro = MacroBatch(MMDLoss([1.0], "unbiased", True), "residual", num_batches=2, seed=0)
    wavs = batches(4)
    assert [macro.add(wav) for wav in wavs] == [False, True, True, True]
    assert all(torch.equal(kept, wav) for kept, wav in zip(macro.pending, wavs[2:], strict=True))


@pytest.mark.parametrize(
    ("start", "ramp", "shares"),
    [
        (1, 0, [1, 1, 1, 1, 1, 1]),
        (1, 1, [1, 1, 1, 1, 1, 1]),
        (3, 0, [0, 0, 1, 1, 1, 1]),
        (1, 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        (3, 2, [0, 0, 0.5, 1, 1, 1]),
    ],
)
def test_the_weight_follows_the_epoch(start: int, ramp: int, shares: list[float]) -> None:
    weight = MMDWeight(1000.0, start, ramp)
    assert [weight(epoch) for epoch in range(1, 7)] == [1000 * share for share in shares]
    assert [MMDWeight(0.0, start, ramp)(epoch) for epoch in range(1, 7)] == [0] * 6


@pytest.mark.parametrize(("options", "message"), [((0, 0), "start_epoch=0"), ((1, -1), "ramp_epochs=-1")])
def test_impossible_epochs_are_refused(options: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"mmd.{message}; give a whole number"):
        MMDWeight(1.0, *options)


def test_quantiser_is_left_alone_and_batches_are_dropped() -> None:
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    macro = MacroBatch(MMDLoss([1.0], "samples", False), "code", num_batches=1, seed=0)
    macro.add(batches(1)[0])
    macro.value(model, weight=1.0)
    assert macro.pending == [] and macro.steps == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_weight_zero_only_measures() -> None:
    model = tiny_model()
    macro = MacroBatch(MMDLoss([1.0], "unbiased", True), "residual", num_batches=1, seed=0)
    macro.add(batches(1)[0])
    assert torch.isfinite(macro.value(model, weight=0.0))
    assert all(p.grad is None for p in model.parameters())


def test_saved_batches_give_the_same_step() -> None:
    model, wavs = tiny_model(), batches(2)
    one = MacroBatch(MMDLoss([5.0], "unbiased", True), "residual", num_batches=2, seed=3)
    two = MacroBatch(MMDLoss([5.0], "unbiased", True), "residual", num_batches=2, seed=3)
    one.steps = 4
    one.add(wavs[0])
    two.load_state_dict(one.state_dict())
    one.add(wavs[1])
    two.add(wavs[1])
    assert one.value(model, 0.0) == two.value(model, 0.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="num_batches_mmd=0"):
        MacroBatch(MMDLoss([1.0], "unbiased", True), "residual", num_batches=0, seed=0)
    model = tiny_model(DummyQuantizer())
    with pytest.raises(ConfigError, match="quantizer=rvq"):
        stream_mmd(MMDLoss([1.0], "unbiased", True), model, torch.zeros(2, 6, 20), "code", torch.Generator())


def test_an_encoder_that_diverged_is_said_so() -> None:
    latent = torch.zeros(2, 6, 20)
    latent[1, 2, 3] = float("inf")
    with pytest.raises(DivergedError, match="not finite"):
        stream_mmd(MMDLoss([1.0], "unbiased", True), tiny_model(), latent, "code", torch.Generator())


@pytest.mark.parametrize(
    ("most", "delay", "between", "encoded"),
    [(None, True, "codebooks", 8), (40, True, "codebooks", 3), (40, False, "dimensions", 2), (3, False, "frames", 3),
     (1000, True, "codebooks", 8)],
)  # fmt: skip
def test_a_step_that_measures_only_encodes_as_many_clips_as_it_compares(
    most: int | None, delay: bool, between: str, encoded: int
) -> None:
    model, seen = tiny_model(), []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    macro = MacroBatch(MMDLoss([1.0], "closed", delay, between=between), "residual", 4, seed=0, max_samples=most)
    wavs = batches(4)  # of 2 clips of 20 frames
    for wav in wavs:
        macro.add(wav)
    macro.value(model, weight=0.0)
    clips = torch.cat(wavs)
    assert len(seen) == encoded
    for index, clip in enumerate(seen):  # spread over the batches, in their order
        assert torch.equal(clip, clips[index * 8 // encoded])


def test_a_step_with_weight_compares_all_samples() -> None:
    model, loss, wavs = tiny_model(), MMDLoss([1.0], "closed", True), batches(3)
    capped, whole = (MacroBatch(loss, "residual", 3, seed=0, max_samples=most) for most in (20, None))
    for wav in wavs:
        capped.add(wav)
        whole.add(wav)
    assert capped.value(model, weight=1.0) == whole.value(model, weight=1.0)


def test_a_capped_step_takes_the_criterion_that_is_given_for_it() -> None:
    model, wavs = tiny_model(), batches(3)
    own, other = MMDLoss([1.0], "unbiased", True), MMDLoss([1.0], "closed", True)
    values = {}
    for most in (20, None):
        macro = MacroBatch(own, "residual", 3, seed=0, max_samples=most, measure=other)
        for wav in wavs:
            macro.add(wav)
        values[most] = macro.value(model, weight=0.0)
    clips = torch.cat(wavs)
    for most, loss, chosen in ((20, other, clips[::3]), (None, own, clips)):
        latent = model.encode_latent(chosen)[0].detach()
        generator = torch.Generator().manual_seed(0)
        torch.testing.assert_close(values[most], stream_mmd(loss, model, latent, "residual", generator))
