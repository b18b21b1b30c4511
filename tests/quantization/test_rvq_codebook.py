"""One codebook: moving averages against their formula, the k-means start, and the renewal of dead codes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.errors import ConfigError
from audiotok.quantization import EuclideanCodebook


def buffers(codebook: EuclideanCodebook) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in codebook.named_buffers()}


def make_codebook(dim: int, bins: int, **options: Any) -> EuclideanCodebook:
    usual = {"decay": 0.99, "kmeans_init": True, "kmeans_iters": 10, "kmeans_start": "sample"}
    return EuclideanCodebook(dim, bins, **{**usual, "threshold_ema_dead_code": 2.0, **options})


def test_moving_averages_follow_their_formula() -> None:
    torch.manual_seed(0)
    decay, epsilon, bins = 0.9, 1e-5, 8
    codebook = make_codebook(3, bins, decay=decay, kmeans_init=False, threshold_ema_dead_code=0).train()
    embed = codebook.embed.double().numpy().copy()
    average, size = embed.copy(), np.zeros(bins)
    for _ in range(5):
        x = torch.randn(4, 10, 3)
        quantized, codes = codebook(x)
        samples = x.double().numpy().reshape(-1, 3)
        nearest = ((samples[:, None] - embed[None]) ** 2).sum(axis=2).argmin(axis=1)
        assert codes.flatten().tolist() == nearest.tolist()
        np.testing.assert_allclose(quantized.reshape(-1, 3).numpy(), embed[nearest], rtol=1e-5)
        for k in range(bins):
            mine = samples[nearest == k]
            size[k] = decay * size[k] + (1 - decay) * len(mine)
            average[k] = decay * average[k] + (1 - decay) * mine.sum(axis=0)
        for k in range(bins):
            embed[k] = average[k] / ((size[k] + epsilon) / (size.sum() + bins * epsilon) * size.sum())
        np.testing.assert_allclose(codebook.cluster_size.numpy(), size, rtol=1e-5)
        np.testing.assert_allclose(codebook.embed_avg.numpy(), average, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(codebook.embed.numpy(), embed, rtol=1e-5, atol=1e-6)


def test_first_training_batch_sets_the_vectors_and_one_update_keeps_them() -> None:
    torch.manual_seed(0)
    centers = 20 * torch.eye(4)
    codebook = make_codebook(4, 4, kmeans_iters=20, threshold_ema_dead_code=0).train()
    x = centers.repeat(50, 1) + 0.01 * torch.randn(200, 4)
    for _ in range(20):  # k-means may start with two points of one cluster
        codebook.inited.zero_()
        codebook(x)
        if (codebook.cluster_size > 0).all() and len(set(codebook.encode(centers).tolist())) == 4:
            break
    assert codebook.ready
    assert len(set(codebook.encode(centers).tolist())) == 4
    np.testing.assert_allclose(codebook.embed[codebook.encode(centers)].numpy(), centers.numpy(), atol=0.05)
    np.testing.assert_allclose(codebook.cluster_size.numpy(), 50, rtol=1e-5)


def test_a_start_apart_finds_every_cluster_at_once() -> None:
    centers = 20 * torch.eye(16)
    codebook = make_codebook(16, 16, threshold_ema_dead_code=0, kmeans_start="plusplus").train()
    torch.manual_seed(0)
    codebook(centers.repeat(20, 1) + 0.01 * torch.randn(320, 16))
    np.testing.assert_allclose(codebook.decode(codebook.encode(centers)), centers, atol=0.05)


def test_evaluation_changes_nothing() -> None:
    torch.manual_seed(0)
    codebook = make_codebook(3, 8).eval()
    before = buffers(codebook)
    codebook(torch.randn(40, 3))
    assert not codebook.ready
    codebook.train()(torch.randn(40, 3))
    codebook.eval()
    trained = buffers(codebook)
    codebook(torch.randn(40, 3))
    assert all(torch.equal(value, trained[name]) for name, value in codebook.named_buffers())
    assert not torch.equal(before["embed"], trained["embed"])


@pytest.mark.parametrize(("threshold", "used"), [(0.0, 1), (2.0, 8)])
def test_dead_codes_come_back_to_life(threshold: float, used: int) -> None:
    torch.manual_seed(0)
    codebook = make_codebook(2, 8, kmeans_init=False, threshold_ema_dead_code=threshold).train()
    # One vector close to the data takes it all, the others are out of reach.
    codebook.embed.copy_(torch.tensor([[0.0, 0.0]] + [[1e3, 1e3]] * 7))
    codebook.embed_avg.copy_(codebook.embed * 5)
    codebook.cluster_size.fill_(5.0)
    for _ in range(150):
        codebook(torch.randn(400, 2))
    codes = codebook.encode(torch.randn(400, 2))
    assert len(set(codes.tolist())) == used


def test_renewed_codes_survive_the_next_update() -> None:
    torch.manual_seed(0)
    codebook = make_codebook(2, 4, kmeans_init=False, threshold_ema_dead_code=2.0).train()
    codebook.embed.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1e3, 1e3]]))
    codebook.cluster_size.copy_(torch.tensor([30.0, 30.0, 30.0, 0.01]))
    codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
    x = torch.randn(90, 2)
    codebook(x)
    renewed = codebook.embed[3].clone()
    assert (x == renewed).all(dim=1).any()  # it is one of the samples
    np.testing.assert_allclose((codebook.embed_avg / codebook.cluster_size[:, None])[3], renewed, rtol=1e-5)
    codebook((-50 * renewed).repeat(90, 1))  # far on the other side, nobody uses it: only the past speaks
    np.testing.assert_allclose(codebook.embed[3].numpy(), renewed.numpy(), rtol=1e-3)


def test_a_code_with_a_fair_share_is_not_dead_even_below_the_threshold() -> None:
    codebook = make_codebook(1, 16, kmeans_init=False, threshold_ema_dead_code=2.0, decay=0.0).train()
    codebook.embed.copy_(torch.arange(16.0)[:, None])
    codebook(torch.arange(16.0)[:, None])  # each code has one use, less than two
    np.testing.assert_allclose(codebook.embed.flatten().numpy(), np.arange(16.0), atol=1e-4)


def test_half_precision_input_is_quantised_in_single_precision() -> None:
    torch.manual_seed(0)
    codebook = make_codebook(16, 64, kmeans_init=False).eval()
    x = torch.randn(100, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = codebook.encode(x)
    assert torch.equal(codes, codebook.encode(x))
    quantized, _ = codebook(x.bfloat16())
    assert quantized.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "rvq.bins=1; give a whole number from 2"),
        ({"bins": 4.0}, "rvq.bins=4.0"),
        ({"decay": 1.0}, "rvq.decay=1.0"),
        ({"kmeans_iters": 0}, "rvq.kmeans_iters=0"),
        ({"kmeans_start": "best"}, "rvq.kmeans_start='best'; choose one of: sample, plusplus"),
        ({"threshold_ema_dead_code": -1.0}, "rvq.threshold_ema_dead_code=-1.0"),
    ],
)
def test_impossible_values_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    kwargs: dict[str, Any] = {"dim": 2, "bins": 4, **options}
    with pytest.raises(ConfigError, match=message):
        make_codebook(**kwargs)
