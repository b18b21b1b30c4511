"""The factorisation gap: bits that a language model loses by predicting the codebooks of a step side by side.

It is the negative log-likelihood of the parallel head minus that of the chain head, on the same state of the same
trunk and on the same held-out steps. Both heads see the same past, and the second also the codebooks before it in the
step: were both the best there are, their difference would be the total correlation of the codebooks of a step given
the past, in the alignment of the pattern.

Sources: Watanabe, "Information theoretical analysis of multivariate correlation", 1960; Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993 (chapter 6; resampling of clusters and ratios of sums).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError
from audiotok.models.lm import ChainHead, CodeNLL

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)
RESAMPLES = 2000
_PARALLEL, _CHAIN, _ALONE_PARALLEL, _ALONE_CHAIN, _COUNT = range(5)  # rows of the sums of a recording


@dataclass
class GapMeter:
    """Adds up the bits of held-out codes by recording, and gives the gap with its error over recordings.

    Every code counts the same, so that long recordings count more. Errors are those of the bootstrap over recordings:
    frames of one recording resemble each other and are no independent draws. An error holds what another choice of
    recordings would change, not what another fit of the model would.

    Args:
        warmup: times at the beginning of a clip that are context only, for there the past is shorter than the model
            can see.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        self._sums: dict[int, Floats] = {}  # of each recording: [5, K], bits in rows, then how many codes

    def update(self, nll: CodeNLL, tracks: Tensor, nll_alone: CodeNLL | None = None) -> None:
        """Add a batch.

        Args:
            nll: of held-out clips, by a model with a chain head.
            tracks: recording of each clip, [B] integers.
            nll_alone: of the same clips, without context; either with every batch or with none.

        Raises:
            ConfigError: for a model without a chain head.
            DataError: for tracks that do not fit the clips.
        """
        if nll.chain is None:
            raise ConfigError("The factorisation gap needs a language model with lm.heads: [parallel, chain].")
        owners = tracks.tolist()
        if tracks.dim() != 1 or len(owners) != len(nll.parallel) or tracks.is_floating_point():
            raise DataError(
                f"tracks {list(tracks.shape)} of {tracks.dtype}; give an integer for each of {len(nll.parallel)} clips."
            )
        mask = nll.mask.clone()
        mask[:, : self.warmup] = False
        rows = [nll.parallel, nll.chain]
        if nll_alone is not None:
            assert nll_alone.chain is not None
            rows += [nll_alone.parallel, nll_alone.chain]
        bits = [(row.detach().double() * mask).sum(dim=2).cpu().numpy() / math.log(2) for row in rows]
        bits += [np.full_like(bits[0], np.nan)] * (_COUNT - len(rows))
        counts = np.broadcast_to(mask.sum(dim=1).cpu().numpy(), bits[0].shape)
        for owner, sums in zip(owners, np.stack([*bits, counts], axis=1), strict=True):
            self._sums[owner] = self._sums[owner] + sums if owner in self._sums else sums

    def merge(self, other: "GapMeter") -> None:
        """Add what another meter has read, such as that of another process (a meter can be pickled)."""
        for owner, sums in other._sums.items():
            self._sums[owner] = self._sums[owner] + sums if owner in self._sums else sums

    def chain_bits(self) -> Floats:
        """Bits of each codebook by the chain head, with and without context, [2, K]."""
        total: Floats = np.sum(list(self._sums.values()), axis=0)
        bits: Floats = total[[_CHAIN, _ALONE_CHAIN]] / total[_COUNT]
        return bits

    def compute(self, *, seed: int = 0) -> dict[str, float]:
        """Metrics of all that was added, in bits per frame; lower is better.

        - `bits_parallel`, `bits_chain`: negative log-likelihood of a frame by either head, sums over codebooks;
        - `gap`: their difference, and `gap_q2` … of each codebook after the first, whose sum it is;
        - `gap_alone`: the difference without context, and `bits_alone`, what the parallel head has there;
        - `gap_recordings`: how many recordings that is over;
        - each of them with `_err` (`gap_err`, `gap_q2_err`): standard error over recordings; from two of
          them on, and rather low with few.

        Args:
            seed: of the bootstrap.

        Raises:
            DataError: if no code was added.
        """
        sums = np.stack([self._sums[owner] for owner in sorted(self._sums)]) if self._sums else np.zeros((1, 5, 1))
        if not sums[:, _COUNT].sum(axis=0).all():
            raise DataError(f"No held-out codes after the first {self.warmup} frames of each clip.")
        values = _bits(np.ones((1, len(sums))), sums)
        if len(sums) > 1:
            rng = np.random.default_rng(seed)
            weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
            resampled = _bits(weights, sums)
            widen = math.sqrt(len(sums) / (len(sums) - 1))  # the bootstrap's variance is that of 1 / N
        metrics = {}
        for name, value in values.items():
            if np.isfinite(value[0]):
                metrics[name] = float(value[0])
                if len(sums) > 1:
                    metrics[f"{name}_err"] = float(np.nanstd(resampled[name])) * widen
        return metrics | {"gap_recordings": float(len(sums))}


@contextmanager
@torch.no_grad()
def shrunk(heads: Sequence[ChainHead], measure: Callable[[], GapMeter]) -> Iterator[None]:
    """Within it, what chain heads add to the logits of each codebook is scaled by the factor of fewest bits.

    A head that has learned from few frames adds noise beside what it knows, and would lose more bits by it than weakly
    dependent codebooks have to give.

    Args:
        heads: the chain head, and that without context, if there are.
        measure: reads codes that are neither fitted nor measured, once for each of `FACTORS`.
    """
    if not heads:
        yield
        return
    # Of each head and codebook: the parameters of its last layer and their values.
    layers = [[[(p, p.clone()) for p in linear.parameters()] for linear in head.linears] for head in heads]

    def scale(factors: Floats) -> None:
        for linears, of_head in zip(layers, factors.tolist(), strict=True):
            for parameters, factor in zip(linears, of_head, strict=True):
                for parameter, value in parameters:
                    parameter.copy_(value * factor)

    as_learned = np.ones((len(heads), len(layers[0])))
    try:
        bits = []
        for factor in FACTORS:
            scale(factor * as_learned)
            bits.append(measure().chain_bits()[: len(heads), 1:])
        factors = np.array(FACTORS)[np.argmin(bits, axis=0)]
        logger.info("the chain head is scaled by %s", ", ".join(f"{factor:g}" for factor in factors[0]))
        scale(factors)
        yield
    finally:
        scale(as_learned)


def _bits(weights: npt.NDArray[np.float64] | npt.NDArray[np.int64], sums: Floats) -> dict[str, Floats]:
    """Metrics [R] of R weightings [R, N] of recordings whose sums are [N, 5, K]."""
    total = np.tensordot(weights.astype(np.float64), sums, axes=1).transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):  # recordings too short for a delayed codebook
        parallel, chain, alone_parallel, alone_chain = total[:_COUNT] / total[_COUNT]
    gaps = parallel - chain
    named = {"gap": gaps.sum(axis=1), "bits_parallel": parallel.sum(axis=1), "bits_chain": chain.sum(axis=1)}
    named |= {f"gap_q{k + 1}": gaps[:, k] for k in range(1, gaps.shape[1])}
    return named | {"gap_alone": (alone_parallel - alone_chain).sum(axis=1), "bits_alone": alone_parallel.sum(axis=1)}
