"""Residual vector quantisation: each codebook quantises what the ones before it left over.

Sources: Zeghidour et al., "SoundStream", TASLP 2021, algorithm 1 and section III-C (k-means start, renewal of unused
codes); Défossez et al., TMLR 2023, section 3.2; van den Oord et al., "Neural Discrete Representation Learning", NeurIPS
2017, appendix A.1 (moving averages).
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiotok.distributed import is_source, shared_randint, sum_over_ranks_, take_from_source_
from audiotok.errors import AudiotokError, ConfigError, DataError
from audiotok.quantization.base import BaseQuantizer, QuantizedResult
from audiotok.quantization.kmeans import STARTS, draw, kmeans, nearest, tally

STREAM_KINDS = ("input", "residual", "code")
# A code is never dead while it gets this share of the average use. Otherwise a threshold of 2, at 3200 frames
# per update and 2048 codes (1.6 uses each), would declare most of the codebook dead at every update.
_FAIR_SHARE = 0.1


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
            a sample of the batch; 0 for never. Lowered to `_FAIR_SHARE` of the average use if that is less.
        kmeans_start: which samples k-means starts from, "sample" or "plusplus"; see `kmeans`.
        epsilon: smoothing of the use counts.

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
        *,
        decay: float,
        kmeans_init: bool,
        kmeans_iters: int,
        threshold_ema_dead_code: float,
        kmeans_start: str,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_codebook(dim, bins, decay, kmeans_iters, threshold_ema_dead_code, kmeans_start)
        self.bins, self.decay, self.epsilon = bins, decay, epsilon
        self.kmeans_iters, self.kmeans_start = kmeans_iters, kmeans_start
        self.threshold_ema_dead_code = threshold_ema_dead_code
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
        quantized = self.decode(codes)  # before the update, which would move the vectors under the codes
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
        # One collective for both. Samples of all ranks, and so the same buffers on all ranks.
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
        dead = self.cluster_size < (_FAIR_SHARE * average).clamp(max=self.threshold_ema_dead_code)
        num_dead = int(dead.sum())  # from shared buffers: all ranks agree
        if num_dead == 0:
            return
        # Drawn from each rank's own samples, then replaced by rank 0's: `broadcast` needs a tensor of the same shape.
        fresh = take_from_source_(draw(samples, num_dead).contiguous())
        self.embed[dead] = fresh
        self.embed_avg[dead] = fresh * average
        self.cluster_size[dead] = average


class ResidualVectorQuantizer(BaseQuantizer):
    """A stack of n_q codebooks of `bins` vectors each.

    Args:
        dimension: channels of the latent.
        n_q: codebooks.
        q_dropout: whether each training step uses a random number of them, from 1 to those in use.
        bins: vectors per codebook.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code, kmeans_start: see `EuclideanCodebook`.
        orthogonal_reg_weight: weight in the penalty of the mean squared cosine between different vectors. As
            the vectors learn without gradients, it reports and does not train.
        orthogonal_reg_active_codes_only: whether that concerns only the vectors in use in the batch.
        orthogonal_reg_max_codes: how many of them, at random; None for all.
        commitment_weight: weight in the penalty of the mean squared error of each stage.

    Shape:
        latent [B, dimension, T] <-> codes [B, num_codebooks, T].

    Raises:
        ConfigError: for values that cannot be used.
    """

    def __init__(
        self,
        dimension: int,
        n_q: int = 8,
        q_dropout: bool = False,
        bins: int = 1024,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        threshold_ema_dead_code: float = 2.0,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        commitment_weight: float = 1.0,
        kmeans_start: str = "sample",
    ) -> None:
        super().__init__()
        if not isinstance(n_q, int) or n_q < 1:
            raise ConfigError(f"rvq.n_q={n_q!r}; give a whole number from 1 up.")
        if not (commitment_weight >= 0 and orthogonal_reg_weight >= 0):
            raise ConfigError(
                f"rvq.commitment_weight={commitment_weight!r} and "
                f"rvq.orthogonal_reg_weight={orthogonal_reg_weight!r}; neither may be negative."
            )
        self.dimension = dimension
        self.q_dropout = q_dropout
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.commitment_weight = commitment_weight
        self._bins = bins
        self._n_q = n_q
        options: dict[str, Any] = {"decay": decay, "kmeans_init": kmeans_init, "kmeans_iters": kmeans_iters}
        options |= {"threshold_ema_dead_code": threshold_ema_dead_code, "kmeans_start": kmeans_start}
        self.vq = _Stages(EuclideanCodebook(dimension, bins, **options) for _ in range(n_q))

    def forward(self, latent: Tensor, frame_rate: float) -> QuantizedResult:
        """Quantise latent [B, D, T]; frame_rate in Hz serves to compute the bandwidth.

        In training mode the codebooks are updated, the gradient passes straight through to the latent and the
        penalty holds the commitment; in evaluation mode nothing changes and the penalty is 0.
        """
        self._check_latent(latent)
        n_q = self._n_q
        if self.training and self.q_dropout:
            n_q = shared_randint(1, n_q, latent.device)  # the same on all ranks, whose updates are collectives
        residual = latent.transpose(1, 2)
        total = torch.zeros_like(residual)
        codes, penalties = [], []
        for codebook in self.vq.codebooks(n_q):
            quantized, stage_codes = codebook(residual)
            if self.training:
                penalties.append(self._penalty(residual, quantized, stage_codes, codebook))
            residual = residual - quantized  # quantized has no gradient: every stage's commitment pulls the latent
            total = total + quantized
            codes.append(stage_codes)
        x = total.transpose(1, 2)
        penalty = torch.stack(penalties).mean() if penalties else latent.new_zeros(())
        if self.training:
            x = latent + (x - latent).detach()  # straight through: the value is x, the gradient that of latent
        kbps = latent.new_full((), n_q * math.log2(self._bins) * frame_rate / 1000)
        return QuantizedResult(x, torch.stack(codes, dim=1), kbps, penalty)

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Codes [B, num_codebooks, T] of latent [B, D, T]; all zero before the k-means start."""
        self._check_latent(latent)
        residual = latent.transpose(1, 2)
        codes = []
        for codebook in self.vq.codebooks(self._n_q):
            codes.append(codebook.encode(residual))
            residual = residual - codebook.decode(codes[-1])
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Latent [B, D, T] of codes [B, K, T], where K may be anything up to total_codebooks.

        DataError if codes have another shape, are not whole numbers, or lie outside of [0, bins).
        """
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.total_codebooks or codes.is_floating_point():
            raise DataError(
                f"codes are {list(codes.shape)} {codes.dtype}; give whole numbers [B, K, T] with K "
                f"from 1 to {self.total_codebooks}."
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self._bins:
            raise DataError(
                f"codes go from {int(codes.min())} to {int(codes.max())}; they start at 0 and stay "
                f"below bins={self._bins}. Was another model used to encode?"
            )
        stages = zip(self.vq.codebooks(codes.shape[1]), codes.unbind(dim=1), strict=True)
        parts = [codebook.decode(stage_codes) for codebook, stage_codes in stages]
        return sum(parts[1:], start=parts[0]).transpose(1, 2)

    def streams(self, latent: Tensor, kind: str, n_q: int | None = None) -> Tensor:
        """What flows through each stage, with a gradient to the latent and without side effects in any mode.

        With r_0 the latent, q_k the vector chosen for r_(k-1) and r_k = r_(k-1) - q_k, where q_k carries no
        gradient, the stream of stage k is r_(k-1) ("input"), r_k ("residual"), or q_k with the gradient of
        r_(k-1) passed straight through ("code").

        Args:
            latent: [B, D, T].
            kind: one of `STREAM_KINDS`.
            n_q: stages K, from 1 to total_codebooks; those in use by default.

        Returns:
            streams [B, K, D, T].

        Raises:
            ConfigError: if kind or n_q is not allowed.
            DataError: if the latent does not fit.
            AudiotokError: if a codebook still waits for its k-means start.
        """
        if kind not in STREAM_KINDS:
            raise ConfigError(f"stream kind={kind!r}; choose one of: {', '.join(STREAM_KINDS)}.")
        n_q = self._n_q if n_q is None else self._checked_count(n_q)
        self._check_latent(latent)
        residual = latent.transpose(1, 2)
        streams = []
        for index, codebook in enumerate(self.vq.codebooks(n_q)):
            if not codebook.ready:
                raise AudiotokError(
                    f"codebook {index} is not set yet: k-means does it in the first training step "
                    "that uses it. Take the streams after that, or use kmeans_init=false."
                )
            quantized = codebook.decode(codebook.encode(residual))  # not forward, which would update in training mode
            after = residual - quantized
            through = residual + (quantized - residual).detach()
            streams.append({"input": residual, "residual": after, "code": through}[kind])
            residual = after
        return torch.stack(streams, dim=1).transpose(2, 3)

    @property
    def bins(self) -> int:
        """Vectors per codebook."""
        return self._bins

    @property
    def total_codebooks(self) -> int:
        """How many codebooks there are."""
        return len(self.vq.layers)

    @property
    def num_codebooks(self) -> int:
        """How many codebooks are in use."""
        return self._n_q

    @property
    def ready(self) -> bool:
        """Whether all codebooks in use hold vectors."""
        return all(codebook.ready for codebook in self.vq.codebooks(self._n_q))

    def set_num_codebooks(self, n: int) -> None:
        """Use the first n codebooks only; ConfigError if there are not as many."""
        self._n_q = self._checked_count(n)

    def _checked_count(self, n: int) -> int:
        if not 1 <= n <= self.total_codebooks:
            raise ConfigError(f"num_codebooks={n}; this quantiser has {self.total_codebooks}, choose from 1 up.")
        return n

    def _check_latent(self, latent: Tensor) -> None:
        if latent.dim() != 3 or latent.shape[1] != self.dimension:
            raise DataError(f"latent is {list(latent.shape)}; this quantiser takes [B, {self.dimension}, T].")

    def _penalty(self, x: Tensor, quantized: Tensor, codes: Tensor, codebook: EuclideanCodebook) -> Tensor:
        """Commitment of x [B, T, D] to the vectors chosen for it, plus the vectors' own similarity."""
        penalty = self.commitment_weight * F.mse_loss(x, quantized)
        if self.orthogonal_reg_weight > 0:
            vectors = codebook.embed
            if self.orthogonal_reg_active_codes_only:
                vectors = vectors[torch.bincount(codes.flatten(), minlength=len(vectors)) > 0]
            limit = self.orthogonal_reg_max_codes
            if limit is not None and len(vectors) > limit:
                vectors = vectors[torch.randperm(len(vectors), device=vectors.device)[:limit]]
            penalty = penalty + self.orthogonal_reg_weight * _similarity(vectors)
        return penalty


class _Stages(nn.Module):
    """The codebooks under the names they have in EnCodec files: `layers.K._codebook`."""

    def __init__(self, codebooks: Iterable[EuclideanCodebook]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"_codebook": codebook}) for codebook in codebooks)

    def codebooks(self, n_q: int) -> list[EuclideanCodebook]:
        return [cast(EuclideanCodebook, cast(nn.ModuleDict, layer)["_codebook"]) for layer in self.layers[:n_q]]


def _similarity(vectors: Tensor) -> Tensor:
    """Mean squared cosine between different vectors [N, D] (Shin et al., arXiv 2112.00384, equation 2)."""
    unit = F.normalize(vectors, dim=1)
    cosines = unit @ unit.t() - torch.eye(len(unit), device=unit.device)
    return cosines.pow(2).mean()


def _check_codebook(dim: int, bins: int, decay: float, kmeans_iters: int, threshold: float, kmeans_start: str) -> None:
    for name, value, least in (("dimension", dim, 1), ("bins", bins, 2), ("kmeans_iters", kmeans_iters, 1)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"rvq.{name}={value!r}; give a whole number from {least} up.")
    if not 0 <= decay < 1:
        raise ConfigError(f"rvq.decay={decay!r}; choose from 0 up to, not including, 1.")
    if not threshold >= 0:
        raise ConfigError(f"rvq.threshold_ema_dead_code={threshold!r}; choose 0 (never replace) or more.")
    if kmeans_start not in STARTS:
        raise ConfigError(f"rvq.kmeans_start={kmeans_start!r}; choose one of: {', '.join(STARTS)}.")
