"""Lloyd's k-means in little memory: distances come from matrix products, a block of samples at a time.

Source: Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory, 1982; starting points from
Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
"""

import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError

STARTS = ("sample", "plusplus")
CHUNK = 8192  # samples per block: 64 MB of distances for 2048 means in single precision


def kmeans(
    samples: Tensor,
    num_clusters: int,
    num_iters: int,
    generator: torch.Generator | None = None,
    init: Tensor | None = None,
    start: str = "sample",
) -> tuple[Tensor, Tensor]:
    """Cluster samples by squared Euclidean distance; memory beyond samples and means grows with CHUNK * num_clusters.

    Args:
        samples: [N, D], floating point.
        num_clusters: how many means; beyond N some clusters stay empty, and keep their starting point.
        num_iters: rounds of assignment and averaging.
        generator: source of the starting points; the global one by default.
        init: starting points [num_clusters, D] instead of chosen samples.
        start: how to choose them: "sample" (at random) or "plusplus" (far from each other, see `draw_apart`).

    Returns:
        means [num_clusters, D] and counts [num_clusters], the samples behind each mean in the last round.

    Raises:
        ConfigError: if num_clusters or num_iters is below 1, start is unknown, or init does not fit.
        DataError: if there is no sample.
    """
    if num_clusters < 1 or num_iters < 1:
        raise ConfigError(f"k-means with num_clusters={num_clusters}, num_iters={num_iters}; both start at 1.")
    if samples.dim() != 2 or samples.shape[0] == 0:
        raise DataError(f"k-means needs samples [N, D] with N >= 1, not {list(samples.shape)}.")
    if start not in STARTS:
        raise ConfigError(f"k-means with start={start!r}; choose one of: {', '.join(STARTS)}.")
    choose = draw if start == "sample" else draw_apart
    means = choose(samples, num_clusters, generator) if init is None else init.to(samples).clone()
    if means.shape != (num_clusters, samples.shape[1]):
        raise ConfigError(f"k-means init is {list(means.shape)}; give {[num_clusters, samples.shape[1]]}.")
    counts, owners = samples.new_zeros(num_clusters), None
    for _ in range(num_iters):
        previous, owners = owners, nearest(samples, means)
        if previous is not None and torch.equal(owners, previous):
            break  # all rounds to come would give the same means
        counts, sums = tally(samples, owners, num_clusters)
        # An empty cluster keeps its mean, rather than 0 / 0.
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


def nearest(samples: Tensor, means: Tensor, chunk: int = CHUNK) -> Tensor:
    """Index [N] of the mean [K, D] next to each of the samples [N, D]; the first of equals."""
    codes = []
    # Autocast would take the distances in half precision, where many means look equally far.
    with torch.autocast(samples.device.type, enabled=False):
        norms = means.pow(2).sum(dim=1)
        for x in torch.split(samples, chunk):
            # (|x|^2 - 2 x.m) + |m|^2 in this order: near ties fall by rounding, as they do in EnCodec.
            distances = torch.addmm(x.pow(2).sum(dim=1, keepdim=True), x, means.t(), alpha=-2).add_(norms)
            codes.append(distances.min(dim=1).indices)
    return torch.cat(codes)


def tally(samples: Tensor, indices: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Counts [K] and sums [K, D] of the samples [N, D] that belong to each cluster."""
    # Not bincount, for which the program waits for the GPU.
    counts = samples.new_zeros(num_clusters).index_add_(0, indices, samples.new_ones(len(samples)))
    sums = samples.new_zeros(num_clusters, samples.shape[1]).index_add_(0, indices, samples)
    return counts, sums


def draw(samples: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose num of the samples [N, D]: all different if there are enough, with replacement otherwise."""
    total, device = samples.shape[0], samples.device
    where = device if generator is None else generator.device
    if total >= num:
        indices = torch.randperm(total, generator=generator, device=where)[:num]
    else:
        indices = torch.randint(total, (num,), generator=generator, device=where)
    return samples[indices.to(device)]


def draw_apart(samples: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose num of the samples [N, D] by k-means++.

    Each is drawn with a chance proportional to its squared distance to the nearest of those before it: no sample twice
    while another is left, then any. Takes num passes over the samples.
    """
    device = samples.device
    where = device if generator is None else generator.device
    chances = torch.rand(num, generator=generator, device=where, dtype=torch.float64).to(device)
    indices = torch.zeros(num, dtype=torch.long, device=device)
    weights = samples.new_ones(len(samples))
    distances = torch.full_like(weights, torch.inf)
    for i in range(num):
        reach = weights.cumsum(dim=0, dtype=torch.float64)
        # right: the first sample beyond the point, never one of weight 0; clamp: the point may round up to the end
        indices[i] = torch.searchsorted(reach, chances[i] * reach[-1], right=True).clamp(max=len(samples) - 1)
        latest = samples.index_select(0, indices[i : i + 1])
        distances = torch.minimum(distances, (samples - latest).pow(2).sum(dim=1))
        weights = torch.where(distances.sum() > 0, distances, torch.ones_like(distances))
    return samples[indices]
