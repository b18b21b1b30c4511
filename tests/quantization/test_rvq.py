"""Residual quantisation against a brute-force loop in double precision, and the properties of its streams."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.errors import AudiotokError, ConfigError, DataError
from audiotok.quantization import STREAM_KINDS, DummyQuantizer, ResidualVectorQuantizer

DIM, BINS, N_Q = 6, 16, 4


@pytest.fixture
def rvq() -> ResidualVectorQuantizer:
    torch.manual_seed(0)
    return ResidualVectorQuantizer(dimension=DIM, n_q=N_Q, bins=BINS, kmeans_init=False).eval()


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(3, DIM, 11, generator=torch.Generator().manual_seed(1))


def brute_force(rvq: ResidualVectorQuantizer, latent: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [B, K, T], chosen vectors and residuals after each stage [B, K, D, T]."""
    tables = [rvq.state_dict()[f"vq.layers.{k}._codebook.embed"].double().numpy() for k in range(N_Q)]
    batch, dim, frames = latent.shape
    codes = np.zeros((batch, N_Q, frames), dtype=int)
    chosen, after = np.zeros((batch, N_Q, dim, frames)), np.zeros((batch, N_Q, dim, frames))
    for b in range(batch):
        for t in range(frames):
            rest = latent[b, :, t].double().numpy()
            for k, table in enumerate(tables):
                code = min(range(len(table)), key=lambda i: float(((rest - table[i]) ** 2).sum()))
                rest = rest - table[code]
                codes[b, k, t], chosen[b, k, :, t], after[b, k, :, t] = code, table[code], rest
    return codes, chosen, after


def test_codes_and_vectors_equal_the_brute_force_loop(rvq: ResidualVectorQuantizer, latent: Tensor) -> None:
    codes, chosen, _ = brute_force(rvq, latent)
    result = rvq(latent, 50)
    assert np.array_equal(rvq.encode(latent).numpy(), codes)
    assert np.array_equal(result.codes.numpy(), codes)
    for x in (result.x, rvq.decode(result.codes)):
        np.testing.assert_allclose(x.numpy(), chosen.sum(axis=1), atol=1e-5)
    assert result.penalty == 0


def test_fewer_codebooks_give_a_prefix(rvq: ResidualVectorQuantizer, latent: Tensor) -> None:
    codes, errors = rvq.encode(latent), []
    assert (rvq.total_codebooks, rvq.num_codebooks) == (N_Q, N_Q)
    for n in range(1, N_Q + 1):
        rvq.set_num_codebooks(n)
        assert torch.equal(rvq.encode(latent), codes[:, :n])
        assert torch.equal(rvq.decode(codes[:, :n]), rvq(latent, 50).x)
        errors.append(float((rvq(latent, 50).x - latent).pow(2).mean()))
        assert (rvq.total_codebooks, rvq.num_codebooks) == (N_Q, n)
    for n in (0, N_Q + 1):
        with pytest.raises(ConfigError, match=f"num_codebooks={n}.*has 4"):
            rvq.set_num_codebooks(n)


def test_more_codebooks_fit_better_once_trained(latent: Tensor) -> None:
    torch.manual_seed(0)
    rvq = ResidualVectorQuantizer(dimension=DIM, n_q=N_Q, bins=BINS, kmeans_iters=10).train()
    for _ in range(5):
        rvq(latent, 50)
    rvq.eval()
    errors = []
    for n in range(1, N_Q + 1):
        rvq.set_num_codebooks(n)
        errors.append(float((rvq(latent, 50).x - latent).pow(2).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


def test_bandwidth_of_the_published_models() -> None:
    with torch.device("meta"):
        music = ResidualVectorQuantizer(dimension=8, n_q=4, bins=2048, kmeans_init=False).eval()
    music = music.to_empty(device="cpu")
    assert float(music(torch.zeros(1, 8, 1), 50).bandwidth) == pytest.approx(2.2)
    music.set_num_codebooks(1)
    assert float(music(torch.zeros(1, 8, 1), 75).bandwidth) == pytest.approx(11 * 75 / 1000)


def test_gradient_passes_straight_through_and_the_penalty_commits(latent: Tensor) -> None:
    torch.manual_seed(0)
    weight = 0.25
    rvq = ResidualVectorQuantizer(
        dimension=DIM, n_q=N_Q, bins=BINS, kmeans_init=False, commitment_weight=weight
    ).train()
    _, chosen, after = brute_force(rvq, latent)
    x = latent.clone().requires_grad_()
    result = rvq(x, 50)
    np.testing.assert_allclose(result.x.detach().numpy(), chosen.sum(axis=1), atol=1e-5)
    upstream = torch.randn(result.x.shape)
    (grad,) = torch.autograd.grad(result.x, x, upstream, retain_graph=True)
    assert torch.equal(grad, upstream)
    assert result.penalty is not None
    assert float(result.penalty.detach()) == pytest.approx(weight * (after**2).mean(), rel=1e-5)
    (grad,) = torch.autograd.grad(result.penalty, x)
    np.testing.assert_allclose(grad.numpy(), 2 * weight * after.sum(axis=1) / after.size, rtol=1e-4, atol=1e-8)


def test_orthogonality_is_the_mean_squared_cosine(latent: Tensor) -> None:
    torch.manual_seed(0)
    rvq = ResidualVectorQuantizer(
        dimension=DIM, n_q=1, bins=BINS, kmeans_init=False, commitment_weight=0.0, orthogonal_reg_weight=3.0
    ).train()
    result = rvq(latent, 50)
    vectors = rvq.state_dict()["vq.layers.0._codebook.embed"].double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean([(a @ b - (i == j)) ** 2 for i, a in enumerate(unit) for j, b in enumerate(unit)])
    assert float(result.penalty) == pytest.approx(3 * expected, rel=1e-4)


def test_dropout_uses_every_count_in_training_only(latent: Tensor) -> None:
    torch.manual_seed(0)
    rvq = ResidualVectorQuantizer(dimension=DIM, n_q=N_Q, bins=BINS, q_dropout=True).train()
    results = [rvq(latent, 50) for _ in range(60)]
    counts = [result.codes.shape[1] for result in results]
    assert set(counts) == {1, 2, 3, 4}
    assert [float(r.bandwidth) for r in results] == pytest.approx([n * math.log2(BINS) * 0.05 for n in counts])
    rvq.set_num_codebooks(2)
    assert {rvq(latent, 50).codes.shape[1] for _ in range(30)} == {1, 2}
    assert {rvq.eval()(latent, 50).codes.shape[1] for _ in range(10)} == {2}


@pytest.mark.parametrize("train", [False, True])
def test_streams_equal_the_brute_force_loop_without_side_effects(
    rvq: ResidualVectorQuantizer, latent: Tensor, train: bool
) -> None:
    rvq.train(train)
    before = {name: value.clone() for name, value in rvq.state_dict().items()}
    _, chosen, after = brute_force(rvq, latent)
    expected = {
        "input": np.concatenate([latent.double().numpy()[:, None], after[:, :-1]], axis=1),
        "residual": after,
        "code": chosen,
    }
    x = latent.clone().requires_grad_()
    for kind in STREAM_KINDS:
        streams = rvq.streams(x, kind)
        assert streams.shape == (3, N_Q, DIM, 11)
        np.testing.assert_allclose(streams.detach().numpy(), expected[kind], atol=1e-5)
        upstream = torch.randn(streams.shape)
        (grad,) = torch.autograd.grad(streams, x, upstream)
        np.testing.assert_allclose(grad.numpy(), upstream.sum(dim=1).numpy(), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in rvq.state_dict().items())


def test_streams_concern_the_codebooks_in_use(rvq: ResidualVectorQuantizer, latent: Tensor) -> None:
    every = rvq.streams(latent, "input")
    assert torch.equal(rvq.streams(latent, "input", n_q=3), every[:, :3])
    rvq.set_num_codebooks(2)
    assert torch.equal(rvq.streams(latent, "input"), every[:, :2])
    assert torch.equal(rvq.streams(latent, "input", n_q=4), every)


def test_streams_refuse_what_they_cannot_give(rvq: ResidualVectorQuantizer, latent: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"kind='inputs'; choose one of: input, residual, code"):
        rvq.streams(latent, "inputs")
    with pytest.raises(ConfigError, match="num_codebooks=5"):
        rvq.streams(latent, "code", n_q=5)
    pending = ResidualVectorQuantizer(dimension=DIM, n_q=2, bins=BINS, kmeans_init=True).train()
    with pytest.raises(AudiotokError, match="codebook 0 is not set yet"):
        pending.streams(latent, "code")
    pending(latent, 50)
    assert pending.streams(latent, "code").shape == (3, 2, DIM, 11)


def test_state_names_are_those_of_the_files(rvq: ResidualVectorQuantizer) -> None:
    names = [
        f"vq.layers.{k}._codebook.{b}" for k in range(N_Q) for b in ("inited", "cluster_size", "embed", "embed_avg")
    ]
    assert list(rvq.state_dict()) == names
    assert list(rvq.parameters()) == []


def test_wrong_input_is_refused(rvq: ResidualVectorQuantizer) -> None:
    for bad in (torch.zeros(1, DIM + 1, 3), torch.zeros(DIM, 3)):
        with pytest.raises(DataError, match=r"this quantiser takes \[B, 6, T\]"):
            rvq(bad, 50)
    for codes in (
        torch.zeros(1, 5, 3, dtype=torch.long),
        torch.zeros(5, 3, dtype=torch.long),
        torch.zeros(1, 4, 3),
    ):
        with pytest.raises(DataError, match="K from 1 to 4"):
            rvq.decode(codes)
    for value in (-1, BINS):
        with pytest.raises(DataError, match=rf"go from {value} to {value}.*bins=16"):
            rvq.decode(torch.full((1, 2, 3), value))
    with pytest.raises(ConfigError, match=r"rvq.n_q=0"):
        ResidualVectorQuantizer(dimension=DIM, n_q=0)
    with pytest.raises(ConfigError, match=r"rvq.commitment_weight=-1.0"):
        ResidualVectorQuantizer(dimension=DIM, commitment_weight=-1.0)


def test_no_quantiser_is_the_identity(latent: Tensor) -> None:
    none = DummyQuantizer()
    result = none(latent, 50)
    assert torch.equal(result.x, latent)
    assert torch.equal(none.decode(none.encode(latent)), latent)
    assert float(result.bandwidth) == pytest.approx(32 * DIM * 50 / 1000)  # D floats of 32 bits, 50 times a second
    none.set_num_codebooks(1)
    with pytest.raises(ConfigError, match="num_codebooks=2"):
        none.set_num_codebooks(2)
    with pytest.raises(ConfigError, match="no_quant"):
        _ = none.bins


def test_ready_means_that_all_codebooks_in_use_hold_vectors() -> None:
    torch.manual_seed(0)
    model = ResidualVectorQuantizer(dimension=4, n_q=2, bins=4, kmeans_iters=2, q_dropout=False)
    assert not model.ready
    model.set_num_codebooks(1)
    model.train()(torch.randn(2, 4, 20), frame_rate=50)
    assert model.ready
    model.set_num_codebooks(2)
    assert not model.ready
