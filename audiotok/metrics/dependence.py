"""How much the codebooks of a codec share, from its codes alone: mutual information and total correlation, in bits.

Counts overestimate dependence: codebooks with m and m' codes in use that are independent share about
(m - 1)(m' - 1) / (2 N ln 2) bits in N frames. Two corrections are given. Miller's adds (occupied - 1) / (2 N ln 2) to
every entropy, and still lies high where cells outnumber frames. Subtracting what shuffled codebooks share is right for
independent codebooks at any N, and lies low for others. Enough frames bring the two together; see docs/dependence.md.

Sources: Miller, "Note on the bias of information estimates", 1955; Watanabe, "Information theoretical analysis of
multivariate correlation", 1960; Chow and Liu, "Approximating discrete probability distributions with dependence
trees", 1968; Vinh et al., "Information theoretic measures for clusterings comparison", JMLR 2010 (chance).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from audiotok.errors import ConfigError, DataError
from audiotok.losses.mmd import joint_samples
from audiotok.metrics.codes import (
    FRAMES_PER_BIN,
    Codes,
    Floats,
    Ints,
    check_codes,
    codebook_metrics,
    count_cells,
    entropy_bits,
    miller_madow,
    p_value,
)
from audiotok.metrics.shuffles import BASELINES, FRAMES_ALONE, Shuffles, Tracks
from audiotok.quantization.kmeans import kmeans, nearest

logger = logging.getLogger(__name__)

GROUPINGS = 4  # starts of k-means that groups are a mean over
MOST_PAIRS = 28  # all of 8 codebooks; a p-value of more takes that many, evenly chosen
_FRAMES_PER_CELL = 5
_GROUPING_ITERATIONS = 20
_TINY = 1e-9


def dependence_metrics(
    codes: Codes,
    *,
    bins: int,
    frame_rate: float,
    tracks: Tracks = None,
    delay: bool = True,
    num_shuffles: int = 199,
    shuffle: str = "shifts",
    pairs: bool = True,
    vectors: Sequence[torch.Tensor] | None = None,
    groups: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics of codes [B, K, T]: those of `codebook_metrics`, and the dependence of the codebooks, all finite.

    In bits per frame and lower is more independent where nothing else is given; means over pairs of codebooks:

    - `mi`: mutual information minus that of shuffled codebooks, and `mi_err`, its standard error if independent;
    - `mi_mm`: mutual information with Miller's correction instead;
    - `nmi`: 0 by chance, 1 if codebooks determine each other, without unit; see `Dependence`;
    - `mi_p`: p-value of `mi`; small means dependent;
    - `tc_tree`: lower bound of the total correlation from pairs, and `tc_tree_err`;
    - `tc`, `tc_mm`, `tc_err`: the total correlation itself, only if bins^K is at most the number of frames;
    - `mi_q0_q1`, `mi_mm_q0_q1`, `nmi_q0_q1` and so on: each pair.

    With delay, all of these a second time with `_delay` after the name (`mi_delay`, `mi_delay_q0_q1`), between codes
    that delayed prediction puts into one step. With vectors, all of these a second time with `_groups` after the name
    (`mi_groups`, `mi_groups_delay`, `mi_groups_delay_q0_q1`), between groups of like codes: lower bounds that need
    far fewer frames, means over GROUPINGS starts of k-means whose spread is part of their error; see `group_codes`.

    With one codebook none of these exists. Where no shuffle holds (see `Shuffles`), what rests on one is left out, and
    so is a p-value that could never be small. The log says why.

    Args:
        codes: integers in 0..bins-1, tensor or array.
        bins: size of a codebook.
        frame_rate: in Hz.
        tracks: recording of each clip, B integers, clips of one recording in the order of time. None: each clip is a
            recording of its own.
        delay: also measure the codebooks in delayed alignment.
        num_shuffles: shuffles behind p-values, and up to BASELINES behind baselines and errors; 2 or more.
        shuffle: 'shifts' within each recording, exchange of whole 'recordings' from 20 on, or 'frames' where these are
            independent draws.
        pairs: give each pair; K = 32 codebooks have 496.
        vectors: of each codebook, K times [bins, D]; None leaves groups out.
        groups: groups of codes per codebook.
        seed: of the shuffles and groups.

    Raises:
        ConfigError: if bins, frame_rate, num_shuffles, shuffle or groups cannot be.
        DataError: if codes, tracks or vectors are of another shape, kind or range, or there are too few frames.
    """
    found = check_codes(codes, bins)
    clips, k, t = found.shape
    metrics = codebook_metrics(found, bins=bins, frame_rate=frame_rate)
    if clips * t < FRAMES_PER_BIN * bins:
        logger.warning(
            "usage and entropy of %d bins from %d frames: unused and unseen codes look alike; give %d frames or more",
            *(bins, clips * t, FRAMES_PER_BIN * bins),
        )
    if k == 1:
        logger.warning("one codebook: its dependence is undefined, so mi, nmi and tc are left out")
        return metrics
    kinds = {"": ([found], bins)}
    if vectors is not None:
        starts = range(1 if groups >= bins else GROUPINGS)
        kinds["_groups"] = ([group_codes(found, vectors, groups, seed + i) for i in starts], min(groups, bins))
    for delayed in (False, True) if delay else (False,):
        arranged = _arranged(clips, t, k, delayed, tracks, shuffle)
        for kind, (symbols, size) in kinds.items():
            estimate = _estimate_all(symbols, size, delayed, arranged, num_shuffles, seed)
            if not delayed and estimate.frames < estimate.needed:
                logger.warning(
                    "mi%s from %d frames: for dependent codebooks it tends to be too low, and mi_mm%s too high; they "
                    "need %d frames, %d for each pair of codes in use. mi_p%s holds with any number.",
                    *(kind, estimate.frames, kind, estimate.needed, _FRAMES_PER_CELL, kind),
                )
            metrics.update(_named(estimate, kind + ("_delay" if delayed else ""), pairs))
    if arranged.missing:
        logger.warning("mi, nmi, tc and their p-values are left out: %s", arranged.missing)
    elif arranged.missing_p:
        logger.warning("mi_p is left out: %s", arranged.missing_p)
    if arranged.missing_error and not arranged.missing:
        logger.warning("the errors of mi and tc are left out: %s", arranged.missing_error)
    return metrics


@dataclass(frozen=True)
class Estimate:
    """A number of bits, corrected in two ways."""

    plugin: float  # of the observed frequencies
    miller_madow: float  # with Miller's correction of every entropy
    corrected: float  # plug-in value minus its mean over shuffles; NaN where no shuffle holds
    error: float  # standard error of `corrected` for independent codebooks, from the spread over shuffles


@dataclass(frozen=True)
class Dependence:
    """Dependence of K codebooks in bits; matrices are symmetric, [K, K], with entropies on the diagonal.

    What rests on shuffles is NaN where none holds.

    Attributes:
        plugin: mutual information of the observed frequencies.
        miller_madow: with Miller's correction, of the diagonal too.
        corrected: `plugin` minus its mean over shuffles; the diagonal is that of `plugin`.
        error: standard error of `corrected` for independent codebooks; 0 on the diagonal.
        nmi: (I - S) / (min(H, H') - S) with I plug-in and S its mean over shuffles: 0 by chance, 1 when one codebook
            determines the other (diagonal), and 0 when the sample is too small to distinguish the two.
        mean: mutual information, mean over pairs.
        p: p-value of `mean` (of MOST_PAIRS pairs, where there are more), at least 1 / (1 + num_shuffles); NaN where
            `missing_p` says why there is none.
        tree: total correlation as far as the best tree of pairs holds it: from below, since the total correlation is
            at least the sum of the mutual informations along any tree. Its plug-in and Miller values are sums too.
        tc: total correlation, the sum of the entropies minus the joint one; None if bins^K exceeds `frames`.
        frames: frames N that were used.
        needed: _FRAMES_PER_CELL frames for each pair of codes in use, in the two codebooks that use most.
        missing_p: None if there is a p-value.
    """

    plugin: Floats
    miller_madow: Floats
    corrected: Floats
    error: Floats
    nmi: Floats
    mean: Estimate
    p: float
    tree: Estimate
    tc: Estimate | None
    frames: int
    needed: int
    missing_p: str | None


def estimate_dependence(
    codes: Codes,
    *,
    bins: int,
    delay: bool,
    tracks: Tracks = None,
    num_shuffles: int = 199,
    shuffle: str = "shifts",
    seed: int = 0,
) -> Dependence:
    """Estimate how much the codebooks of codes [B, K, T] depend on each other, K >= 2.

    Args:
        codes: integers in 0..bins-1, tensor or array.
        bins: size of a codebook.
        delay: align codebooks as delayed prediction does; see `joint_samples`.
        tracks: see `dependence_metrics`.
        num_shuffles: likewise.
        shuffle: likewise.
        seed: of the shuffles.

    Raises:
        ConfigError: if bins, num_shuffles or shuffle cannot be.
        DataError: if codes or tracks are of another shape, kind or range, or hold one codebook or too few frames.
    """
    found = check_codes(codes, bins)
    clips, k, t = found.shape
    if k < 2:
        raise DataError("codes hold K=1 codebook; dependence needs two or more.")
    return _estimate_all([found], bins, delay, _arranged(clips, t, k, delay, tracks, shuffle), num_shuffles, seed)


def _arranged(clips: int, t: int, k: int, delay: bool, tracks: Tracks, shuffle: str) -> Shuffles:
    if delay and t <= k:
        raise DataError(f"codes hold T={t} frames; delaying K={k} codebooks needs {k + 1} or more.")
    return Shuffles(clips, t - k if delay else t, tracks, shuffle, FRAMES_ALONE)


def _estimate_all(
    variants: Sequence[torch.Tensor], bins: int, delay: bool, arranged: Shuffles, num_shuffles: int, seed: int
) -> Dependence:
    """Mean of the dependence of variants [B, K, T] of the same codes, under the same shuffles."""
    if num_shuffles < 2:
        raise ConfigError(f"num_shuffles={num_shuffles}; the error of an estimate needs 2 or more.")
    samples = [_Sample.of(_samples_of(codes[arranged.clips], delay), bins) for codes in variants]
    k = len(samples[0].x)
    baselines: list[list[_Bits]] = [[] for _ in samples]
    rng = np.random.default_rng(seed)
    for _ in range(0 if arranged.missing else min(num_shuffles, BASELINES)):
        order = arranged.draw_apart(k, rng)
        for sample, draws in zip(samples, baselines, strict=True):
            draws.append(sample.bits(order))
    estimates = [_corrected(sample, draws) for sample, draws in zip(samples, baselines, strict=True)]
    if arranged.missing_error:
        estimates = [_without_error(estimate) for estimate in estimates]
    p = math.nan
    if arranged.missing_p is None:
        upper = np.stack(np.triu_indices(k, 1), axis=1)
        chosen = upper[np.arange(min(len(upper), MOST_PAIRS)) * len(upper) // min(len(upper), MOST_PAIRS)]
        observed = sum(sample.total(chosen) for sample in samples)
        orders = (arranged.draw(k, rng) for _ in range(num_shuffles))
        null = [sum(sample.total(chosen, order) for sample in samples) for order in orders]
        p = p_value(observed, np.array(null), _TINY)
    return _mean_of(estimates, p, arranged.missing_p)


def group_codes(codes: Codes, vectors: Sequence[torch.Tensor], groups: int, seed: int = 0) -> torch.Tensor:
    """Replace each code by the group of its vector; groups are k-means clusters of the vectors of one codebook.

    Fewer codes can only lose information (the data processing inequality): dependence between groups is a lower bound,
    and one that far fewer frames estimate well. Groups depend on the codebooks alone, never on the codes, so that no
    dependence is picked out by the grouping.

    Args:
        codes: integers [B, K, T].
        vectors: of each codebook, K times [bins, D].
        groups: how many groups a codebook is cut into; `bins` or more leaves all codes apart.
        seed: of the starting points.

    Returns:
        Groups [B, K, T] in 0..groups-1.

    Raises:
        ConfigError: if groups < 1.
        DataError: if codes and vectors do not fit together.
    """
    k = codes.shape[1] if codes.ndim == 3 else 0
    if len(vectors) != k or any(v.dim() != 2 or len(v) != len(vectors[0]) for v in vectors):
        shapes = ", ".join(str(list(v.shape)) for v in vectors)
        raise DataError(f"codes {list(codes.shape)} and vectors {shapes}; give [B, K, T] and K times [bins, D].")
    bins = len(vectors[0])
    found = check_codes(codes, bins)
    if groups >= bins:
        return found
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for v in vectors:
        points = v.detach().cpu().float()
        means, _ = kmeans(points, groups, _GROUPING_ITERATIONS, generator)
        maps.append(nearest(points, means))
    return torch.stack([table[found[:, q]] for q, table in enumerate(maps)], dim=1)


def _samples_of(codes: torch.Tensor, delay: bool) -> Ints:
    """Samples [K, N] of codes [B, K, T], N = B * T' in the order b * T' + t; delay as in `joint_samples`."""
    return joint_samples(codes[:, :, None], delay)[..., 0].T.contiguous().numpy()


def _named(estimate: Dependence, suffix: str, pairs: bool) -> dict[str, float]:
    upper = [(i, j) for i in range(len(estimate.nmi)) for j in range(i + 1, len(estimate.nmi))]
    metrics = {
        f"mi{suffix}": estimate.mean.corrected,
        f"mi_err{suffix}": estimate.mean.error,
        f"mi_mm{suffix}": estimate.mean.miller_madow,
        f"mi_p{suffix}": estimate.p,
        f"nmi{suffix}": sum(float(estimate.nmi[pair]) for pair in upper) / len(upper),
        f"tc_tree{suffix}": estimate.tree.corrected,
        f"tc_tree_err{suffix}": estimate.tree.error,
    }
    if (tc := estimate.tc) is not None:
        metrics |= {f"tc{suffix}": tc.corrected, f"tc_mm{suffix}": tc.miller_madow, f"tc_err{suffix}": tc.error}
    if pairs:
        for name, matrix in (("mi", estimate.corrected), ("mi_mm", estimate.miller_madow), ("nmi", estimate.nmi)):
            metrics.update({f"{name}{suffix}_q{i}_q{j}": float(matrix[i, j]) for i, j in upper})
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


class _Bits(NamedTuple):
    """Plug-in bits of one arrangement: between pairs, with entropies on the diagonal, and the total correlation."""

    pairs: Floats
    tc: float | None


@dataclass(frozen=True)
class _Sample:
    """Symbols x [K, N] in 0..used-1 of each codebook, and what no shuffle changes: entropies, Miller's corrections."""

    x: Ints
    used: Ints
    entropies: Floats
    extras: Floats
    log_counts: Floats  # c log2 c for c in 0..N: entropies of counts without a logarithm
    cells: int | None  # of the joint law of all codebooks; None where they outnumber the frames

    @classmethod
    def of(cls, x: Ints, bins: int) -> "_Sample":
        k, n = x.shape
        found = [np.unique(row, return_inverse=True, return_counts=True) for row in x]
        counts = [c for _, _, c in found]
        log_counts = np.arange(n + 1, dtype=np.float64)
        log_counts[1:] *= np.log2(log_counts[1:])
        return cls(
            np.stack([inverse for _, inverse, _ in found]),
            np.array([len(c) for c in counts]),
            np.array([entropy_bits(c) for c in counts]),
            np.array([miller_madow(len(c), n) for c in counts]),
            log_counts,
            bins**k if bins**k <= n else None,
        )

    def bits(self, order: Ints | None = None) -> _Bits:
        """Bits of the samples as they are, or with those of codebook q in the order [K, N]."""
        x = self._in(order)
        k = len(x)
        pairs = np.diag(self.entropies)
        for i in range(k):
            for j in range(i):
                pairs[i, j] = pairs[j, i] = self._shared(x, i, j)
        tc = None if self.cells is None else self.entropies.sum() - self._entropy(self.joint(x))
        return _Bits(pairs, tc)

    def total(self, pairs: Ints, order: Ints | None = None) -> float:
        """Sum of the bits that pairs [P, 2] of codebooks share."""
        x = self._in(order)
        return math.fsum(self._shared(x, int(i), int(j)) for i, j in pairs)

    def joint(self, x: Ints) -> Ints:
        """Counts of the joint law of all codebooks; there have to be few enough cells."""
        return count_cells(np.ravel_multi_index(tuple(x), tuple(self.used)), int(np.prod(self.used)))

    def pair(self, x: Ints, i: int, j: int) -> Ints:
        """Counts of the joint law of two codebooks."""
        return count_cells(x[i] * self.used[j] + x[j], int(self.used[i] * self.used[j]))

    def _in(self, order: Ints | None) -> Ints:
        return self.x if order is None else np.take_along_axis(self.x, order, axis=1)

    def _shared(self, x: Ints, i: int, j: int) -> float:
        return float(self.entropies[i] + self.entropies[j]) - self._entropy(self.pair(x, i, j))

    def _entropy(self, counts: Ints) -> float:
        n: int = self.x.shape[1]
        return max(0.0, math.log2(n) - float(self.log_counts[counts].sum()) / n)


def _corrected(sample: _Sample, null: list[_Bits]) -> Dependence:
    observed, n = sample.bits(), sample.x.shape[1]
    plugin, k = observed.pairs, len(observed.pairs)
    upper = np.triu_indices(k, 1)
    correction = np.diag(sample.extras)
    for i, j in zip(*upper, strict=True):
        occupied = len(sample.pair(sample.x, int(i), int(j)))
        correction[i, j] = correction[j, i] = sample.extras[i] + sample.extras[j] - miller_madow(occupied, n)
    draws = np.stack([draw.pairs for draw in null]) if null else np.full((1, k, k), np.nan)
    entropies = plugin.diagonal()
    shuffled = np.where(np.eye(k, dtype=bool), 0.0, draws.mean(0))
    means = draws[:, upper[0], upper[1]].mean(1)
    # Chance-adjusted: what shuffled codebooks share too is neither evidence nor within reach.
    headroom = np.minimum(entropies[:, None], entropies) - shuffled
    nmi = np.where(headroom > _TINY, (plugin - shuffled) / np.maximum(headroom, _TINY), 0.0)
    nmi[np.isnan(headroom)] = np.nan
    np.fill_diagonal(nmi, 1.0)
    tree = _best_tree(plugin - shuffled if null else plugin)
    # The best tree of noise is above 0 too: the trees of the shuffles show by how much.
    excess = np.array([(draw - shuffled)[_best_tree(draw - shuffled)].sum() if null else np.nan for draw in draws])
    tree_null = shuffled[tree].sum() + excess
    tc = None
    if observed.tc is not None:
        extra = sample.extras.sum() - miller_madow(len(sample.joint(sample.x)), n)
        tc = _estimate(observed.tc, extra, np.array([draw.tc for draw in null] or [np.nan]))
    error = np.where(np.eye(k, dtype=bool), 0.0, _spread(draws))
    return Dependence(
        plugin=plugin,
        miller_madow=plugin + correction,
        corrected=plugin - shuffled,
        error=error,
        nmi=nmi,
        mean=_estimate(plugin[upper].mean(), correction[upper].mean(), means),
        p=math.nan,
        tree=_estimate(plugin[tree].sum(), correction[tree].sum(), tree_null),
        tc=tc,
        frames=n,
        needed=int(_FRAMES_PER_CELL * np.prod(np.sort(sample.used)[-2:])),
        missing_p=None,
    )


def _without_error(estimate: Dependence) -> Dependence:
    """The estimate, its errors NaN."""
    mean, tree, tc = (one and replace(one, error=math.nan) for one in (estimate.mean, estimate.tree, estimate.tc))
    assert mean is not None and tree is not None
    error = np.where(np.eye(len(estimate.error), dtype=bool), 0.0, np.nan)
    return replace(estimate, mean=mean, tree=tree, tc=tc, error=error)


def _mean_of(estimates: list[Dependence], p: float, missing_p: str | None) -> Dependence:
    """Mean of estimates from the same frames; the error holds their spread too."""

    def mean(parts: Sequence[Estimate]) -> Estimate:
        plugin, madow, corrected, error = (np.array([getattr(e, f.name) for e in parts]) for f in fields(Estimate))
        joint = float(_joint_error(corrected, error))
        return Estimate(float(plugin.mean()), float(madow.mean()), float(corrected.mean()), joint)

    def matrix(name: str) -> Floats:
        return np.stack([getattr(estimate, name) for estimate in estimates])

    tcs = [estimate.tc for estimate in estimates if estimate.tc is not None]
    return Dependence(
        plugin=matrix("plugin").mean(0),
        miller_madow=matrix("miller_madow").mean(0),
        corrected=matrix("corrected").mean(0),
        error=_joint_error(matrix("corrected"), matrix("error")),
        nmi=matrix("nmi").mean(0),
        mean=mean([estimate.mean for estimate in estimates]),
        p=p,
        tree=mean([estimate.tree for estimate in estimates]),
        tc=mean(tcs) if tcs else None,
        frames=estimates[0].frames,
        needed=max(estimate.needed for estimate in estimates),
        missing_p=missing_p,
    )


def _joint_error(values: Floats, errors: Floats) -> Any:
    """Error of the mean of values [G, ...] whose errors have the shuffles in common, and whose groupings differ."""
    count = len(values)
    between = values.var(axis=0, ddof=1) / count if count > 1 else 0.0
    return np.sqrt((errors**2).mean(axis=0) + between)


def _estimate(plugin: float, correction: float, null: Floats) -> Estimate:
    return Estimate(float(plugin), float(plugin + correction), float(plugin - null.mean()), float(_spread(null)))


def _spread(null: Floats) -> Any:
    """Error of a difference: the spread of one draw [R, ...], and that of the mean over R that is subtracted."""
    r = len(null)
    return null.std(axis=0, ddof=1) * math.sqrt(1 + 1 / r) if r > 1 else np.full(null.shape[1:], np.nan)


def _best_tree(weights: Floats) -> tuple[Ints, Ints]:
    """Edges (i, j) of the spanning tree of largest total weight, by Prim's algorithm."""
    edges = []
    reach, via = weights[0].copy(), np.zeros(len(weights), dtype=np.int64)
    reach[0] = -np.inf
    for _ in range(len(weights) - 1):
        new = int(reach.argmax())
        edges.append((int(via[new]), new))
        better = (weights[new] > reach) & np.isfinite(reach)
        via[better] = new
        reach = np.where(better, weights[new], reach)
        reach[new] = -np.inf
    rows, columns = np.array(edges).T
    return rows, columns
