"""The criterion end to end, quantiser and MMD, against loops in float64 that share no code with it."""

import itertools
import math

import numpy as np
import pytest
import torch

from audiotok.losses import MMDLoss
from audiotok.quantization import ResidualVectorQuantizer

B, D, T, K, BINS = 3, 2, 9, 3, 5


def loop_streams(latent: np.ndarray, books: list[np.ndarray], kind: str) -> np.ndarray:
    streams = np.zeros((B, K, D, T))
    for b, t in itertools.product(range(B), range(T)):
        residual = latent[b, :, t].copy()
        for k in range(K):
            distances = [float(((residual - vector) ** 2).sum()) for vector in books[k]]
            code = books[k][int(np.argmin(distances))]
            streams[b, k, :, t] = {"input": residual, "residual": residual - code, "code": code}[kind]
            residual = residual - code
    return streams


def loop_samples(streams: np.ndarray, delay: bool) -> list[list[list[float]]]:
    """Samples [N][K][D], standardised."""
    samples = []
    for b in range(B):
        for t in range(K if delay else 0, T):
            samples.append([[float(streams[b, k, d, t - (k if delay else 0)]) for d in range(D)] for k in range(K)])
    for k, d in itertools.product(range(K), range(D)):
        values = [sample[k][d] for sample in samples]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        for sample in samples:
            sample[k][d] = (sample[k][d] - mean) / math.sqrt(variance + 1e-8)
    return samples


def loop_mmd(samples: list[list[list[float]]], permutations: np.ndarray, sigmas: list[float], estimator: str) -> float:
    n = len(samples)
    joint = [[v for book in sample for v in book] for sample in samples]
    product = [[v for k in range(K) for v in samples[permutations[k][i]][k]] for i in range(n)]

    def kernel(u: list[float], v: list[float]) -> float:
        squared = math.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True))
        return math.fsum(math.exp(-squared / (2 * a)) for a in sigmas)

    def total(us: list[list[float]], vs: list[list[float]]) -> float:
        return math.fsum(kernel(u, v) for u in us for v in vs)

    xx, yy, xy, w = total(joint, joint), total(product, product), total(joint, product), len(sigmas)
    if estimator == "samples":
        return (xx + yy - 2 * xy) / n**2
    size = n if estimator == "unbiased" else B
    same = (xx + yy - 2 * w * size) / (size * (size - 1))
    value = same - 2 * xy / size**2
    return max(value, 0.0) if estimator == "clips" else value


@pytest.mark.parametrize("estimator", ["clips", "samples", "unbiased"])
@pytest.mark.parametrize("stream", ["input", "residual", "code"])
@pytest.mark.parametrize("delay", [True, False])
def test_value_is_that_of_the_loops(estimator: str, stream: str, delay: bool) -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(dimension=D, n_q=K, bins=BINS, kmeans_init=False).double()
    latent = torch.randn(B, D, T, dtype=torch.float64)
    books = [codebook.embed.numpy() for codebook in quantizer.vq.codebooks(K)]
    frames = B * (T - K if delay else T)
    permutations = torch.stack([torch.randperm(frames) for _ in range(K)])
    sigmas = [0.1, 1.0, 5.0, 10.0, 20.0, 50.0]

    ours = MMDLoss(sigmas, estimator, delay)(quantizer.streams(latent, stream), permutations)
    samples = loop_samples(loop_streams(latent.numpy(), books, stream), delay)
    theirs = loop_mmd(samples, permutations.numpy(), sigmas, estimator)
    assert ours.item() == pytest.approx(theirs, rel=1e-6, abs=1e-9)
