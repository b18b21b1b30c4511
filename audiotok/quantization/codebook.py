"""One codebook, learnt by exponential moving averages instead of gradients.

Source: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, appendix A.1; k-means
start and renewal of unused codes from Zeghidour et al., "SoundStream", TASLP 2021, section III-C.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiotok.distributed import is_source, sum_over_ranks_, take_from_source_
from audiotok.errors import ConfigError
from audiotok.quantization.kmeans import STARTS, draw, kmeans, nearest, tally

# A code is never dead while it gets this share of the average use. Otherwise a threshold of 2, at 3200 frames
# per update and 2048 codes (1.6 uses each), would declare most of the codebook dead at every update.
FAIR_SHARE = 0.1


class EuclideanCodebook(nn.Module):
    """Vectors `embed` [bins, D], each the moving average of the samples that were closest to it.

    In training mode every forward pass is one update, from the samples of all ranks together; ranks that held
    the same buffers before it hold the same buffers after it. Buffer names are those of the EnCodec files.

    Args:
        dim: size of a vector.
        bins: number of vectors, at least 2.
        decay: weight of the past in the moving averages, in [0, 1).
        kmeans_init: whether the first training batch (rank 0's part of it) sets the vectors.
        kmeans_iters: rounds of k-means for that, at most.
        threshold_ema_dead_code: uses per update (moving average, all ranks) below which a code is replaced by
            a sample of the batch; 0 for never. Lowered to `FAIR_SHARE` of the average use if that is less.
        epsilon: smoothing of the use counts.
        kmeans_start: which samples k-means starts from, "sample" or "plusplus"; see `kmeans`.

    Shape:
        [..., D] -> quantised [..., D] without gradient, and codes [...].

    Raises:
        ConfigError: for a value outside of the above.
    """

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(
        self,
        dim: int,
        bins: int,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 2.0,
        epsilon: float = 1e-5,
        kmeans_start: str = "sample",
    ) -> None:
        super().__init__()
        _check(dim, bins, decay, kmeans_iters, threshold_ema_dead_code)
        if kmeans_start not in STARTS:
            raise ConfigError(f"rvq.kmeans_start={kmeans_start!r}; choose one of: {', '.join(STARTS)}.")
        self.bins = bins
        self.decay = decay
        self.kmeans_iters = kmeans_iters
        self.kmeans_start = kmeans_start
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.epsilon = epsilon
        embed = torch.zeros(bins, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
        self.register_buffer("inited", torch.full((1,), float(not kmeans_init)))
        self.register_buffer("cluster_size", torch.zeros(bins))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    @property
    def ready(self) -> bool:
        """Whether the vectors are set: False before the first update if k-means is to set them."""
        return bool(self.inited.item())

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes [...] of x [..., D]."""
        return nearest(x.reshape(-1, x.shape[-1]).to(self.embed), self.embed).view(x.shape[:-1])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors [..., D] of codes [...]."""
        return F.embedding(codes, self.embed)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise x [..., D] with the vectors as they are, then update them if in training mode."""
        samples = x.detach().reshape(-1, x.shape[-1]).to(self.embed)
        if self.training and not self.ready:
            self._start(samples)
        codes = self.encode(x)
        quantized = self.decode(codes)
        if self.training:
            self._update(samples, codes.flatten())
            self._revive(samples)
        return quantized.to(x.dtype), codes

    def _start(self, samples: Tensor) -> None:
        """Set the vectors by k-means on rank 0's samples."""
        if is_source():
            embed, counts = kmeans(samples, self.bins, self.kmeans_iters, start=self.kmeans_start)
            self.embed.copy_(embed)
            # A cluster left empty counts as one sample, so that its vector survives the first average.
            self.cluster_size.copy_(counts.clamp(min=1))
        take_from_source_(self.embed)
        take_from_source_(self.cluster_size)
        # The average is a sum over the uses: with anything else the first update would undo k-means.
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.inited.fill_(1.0)

    def _update(self, samples: Tensor, codes: Tensor) -> None:
        """Move the averages towards the batch: counts, sums, and vectors as their smoothed ratio."""
        counts, sums = tally(samples, codes, self.bins)
        both = sum_over_ranks_(torch.cat([counts[:, None], sums], dim=1))
        self.cluster_size.mul_(self.decay).add_(both[:, 0], alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(both[:, 1:], alpha=1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.epsilon) / (total + self.bins * self.epsilon) * total
        self.embed.copy_(self.embed_avg / smoothed[:, None])

    def _revive(self, samples: Tensor) -> None:
        """Put samples of rank 0 in the place of dead codes, with the average use to their credit.

        The three buffers change together: a new vector in `embed` alone would be undone by the next update.
        """
        if self.threshold_ema_dead_code == 0:
            return
        average = self.cluster_size.mean()
        dead = self.cluster_size < (FAIR_SHARE * average).clamp(max=self.threshold_ema_dead_code)
        num_dead = int(dead.sum())  # from shared buffers: all ranks agree on going on
        if num_dead == 0:
            return
        fresh = take_from_source_(draw(samples, num_dead).contiguous())
        self.embed[dead] = fresh
        self.embed_avg[dead] = fresh * average
        self.cluster_size[dead] = average


def _check(dim: int, bins: int, decay: float, kmeans_iters: int, threshold: float) -> None:
    for name, value, least in (("dimension", dim, 1), ("bins", bins, 2), ("kmeans_iters", kmeans_iters, 1)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"rvq.{name}={value!r}; give a whole number from {least} up.")
    if not 0 <= decay < 1:
        raise ConfigError(f"rvq.decay={decay!r}; choose from 0 up to, not including, 1.")
    if not threshold >= 0:
        raise ConfigError(f"rvq.threshold_ema_dead_code={threshold!r}; choose 0 (never replace) or more.")
