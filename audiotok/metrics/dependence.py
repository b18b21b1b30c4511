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
from collections.abc import Sequence
from dataclasses import dataclass

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
    check_shuffle,
    codebook_metrics,
    count_cells,
    draw_shuffles,
    entropy_bits,
    miller_madow,
    p_value,
)
from audiotok.quantization.kmeans import kmeans, nearest

logger = logging.getLogger(__name__)

CLIPS = 20  # with fewer, many keep their place in a shuffle
_FRAMES_PER_CELL = 5
_GROUPING_ITERATIONS = 20
_TINY = 1e-9


def dependence_metrics(
    codes: Codes,
    *,
    bins: int,
    frame_rate: float,
    delay: bool = True,
    num_shuffles: int = 20,
    shuffle: str = "clips",
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
    - `mi_p`: permutation p-value of `mi`; small means dependent;
    - `tc_tree`: lower bound of the total correlation from pairs, and `tc_tree_err`;
    - `tc`, `tc_mm`, `tc_err`: the total correlation itself, only if bins^K is at most the number of frames;
    - `mi_q0_q1`, `mi_mm_q0_q1`, `nmi_q0_q1` and so on: each pair.

    With delay, all of these a second time with `_delay` after the name (`mi_delay`, `mi_delay_q0_q1`), between codes
    that delayed prediction puts into one step. With vectors, all of these a second time with `_groups` after the name
    (`mi_groups`, `mi_groups_delay`, `mi_groups_delay_q0_q1`), between groups of like codes: lower bounds that need
    far fewer frames; see `group_codes`. With one codebook none of these exists, which is logged.

    Args:
        codes: integers in 0..bins-1, tensor or array.
        bins: size of a codebook.
        frame_rate: in Hz.
        delay: also measure the codebooks in delayed alignment.
        num_shuffles: shuffles behind baselines, errors and p; 2 or more.
        shuffle: what they exchange: whole 'clips', or 'frames' where these are independent draws.
        pairs: give each pair; K = 32 codebooks have 496.
        vectors: of each codebook, K times [bins, D]; None leaves groups out.
        groups: groups of codes per codebook.
        seed: of the shuffles and groups.

    Raises:
        ConfigError: if bins, frame_rate, num_shuffles, shuffle or groups cannot be.
        DataError: if codes or vectors are of another shape, kind or range, or there are too few frames or clips.
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
    if shuffle == "clips" and clips < CLIPS:
        logger.warning("%d clips to shuffle: many keep their place; give %d or more, or shuffle frames", clips, CLIPS)
    kinds = {"": (found, bins)}
    if vectors is not None:
        kinds["_groups"] = (group_codes(found, vectors, groups, seed), min(groups, bins))
    for kind, (symbols, size) in kinds.items():
        for delayed in (False, True) if delay else (False,):
            estimate = estimate_dependence(
                symbols, bins=size, delay=delayed, num_shuffles=num_shuffles, shuffle=shuffle, seed=seed
            )
            if not delayed and estimate.frames < estimate.needed:
                logger.warning(
                    "mi%s from %d frames: for dependent codebooks it tends to be too low, and mi_mm%s too high; they "
                    "need %d frames, %d for each pair of codes in use. mi_p%s holds with any number.",
                    *(kind, estimate.frames, kind, estimate.needed, _FRAMES_PER_CELL, kind),
                )
            metrics.update(_named(estimate, kind + ("_delay" if delayed else ""), pairs))
    return metrics


@dataclass(frozen=True)
class Estimate:
    """A number of bits, corrected in two ways."""

    plugin: float  # of the observed frequencies
    miller_madow: float  # with Miller's correction of every entropy
    corrected: float  # plug-in value minus its mean over shuffles
    error: float  # standard error of `corrected` for independent codebooks, from the spread over shuffles


@dataclass(frozen=True)
class Dependence:
    """Dependence of K codebooks in bits; matrices are symmetric, [K, K], with entropies on the diagonal.

    Attributes:
        plugin: mutual information of the observed frequencies.
        miller_madow: with Miller's correction, of the diagonal too.
        corrected: `plugin` minus its mean over shuffles; the diagonal is that of `plugin`.
        error: standard error of `corrected` for independent codebooks; 0 on the diagonal.
        nmi: (I - S) / (min(H, H') - S) with I plug-in and S its mean over shuffles: 0 by chance, 1 when one codebook
            determines the other (diagonal), and 0 when the sample is too small to distinguish the two.
        mean: mutual information, mean over pairs.
        p: permutation p-value of `mean`, at least 1 / (1 + num_shuffles).
        tree: total correlation as far as the best tree of pairs holds it: from below, since the total correlation is
            at least the sum of the mutual informations along any tree. Its plug-in and Miller values are sums too.
        tc: total correlation, the sum of the entropies minus the joint one; None if bins^K exceeds `frames`.
        frames: frames N that were used.
        needed: _FRAMES_PER_CELL frames for each pair of codes in use, in the two codebooks that use most.
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


def estimate_dependence(
    codes: Codes, *, bins: int, delay: bool, num_shuffles: int = 20, shuffle: str = "clips", seed: int = 0
) -> Dependence:
    """Estimate how much the codebooks of codes [B, K, T] depend on each other, K >= 2.

    Args:
        codes: integers in 0..bins-1, tensor or array.
        bins: size of a codebook.
        delay: align codebooks as delayed prediction does; see `joint_samples`.
        num_shuffles: see `dependence_metrics`.
        shuffle: likewise.
        seed: of the shuffles.

    Raises:
        ConfigError: if bins, num_shuffles or shuffle cannot be.
        DataError: if codes are of another shape, kind or range, or hold one codebook or too few frames or clips.
    """
    if num_shuffles < 2:
        raise ConfigError(f"num_shuffles={num_shuffles}; the error of an estimate needs 2 or more.")
    found = check_codes(codes, bins)
    clips, k, _ = found.shape
    if k < 2:
        raise DataError("codes hold K=1 codebook; dependence needs two or more.")
    check_shuffle(shuffle, clips)
    x = _samples_of(found, delay)
    generator = torch.Generator().manual_seed(seed)
    marginals = [count_cells(row, bins) for row in x]  # a shuffle leaves them as they are
    observed = _Counts.of(x, bins, marginals)
    null = []
    for _ in range(num_shuffles):
        order = draw_shuffles(k, clips, x.shape[1] // clips, shuffle, generator).numpy()
        null.append(_Counts.of(np.take_along_axis(x, order, axis=1), bins, marginals))
    return _corrected(observed, null)


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
    _, k, t = codes.shape
    if delay and t <= k:
        raise DataError(f"codes hold T={t} frames; delaying K={k} codebooks needs {k + 1} or more.")
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
    return metrics


@dataclass(frozen=True)
class _Counts:
    """What is counted in one sample [K, N]: plug-in bits, and bits of Miller's correction to them.

    The diagonals of both matrices hold entropies; tc is None where cells outnumber frames.
    """

    pairs: Floats
    correction: Floats
    tc: tuple[float, float] | None
    frames: int
    used: Ints

    @classmethod
    def of(cls, x: Ints, bins: int, marginals: list[Ints]) -> "_Counts":
        k, n = x.shape
        entropies = np.array([entropy_bits(counts) for counts in marginals])
        extras = np.array([miller_madow(len(counts), n) for counts in marginals])
        pairs, correction = np.diag(entropies), np.diag(extras)
        for i in range(k):
            for j in range(i):
                joint = count_cells(x[i] * bins + x[j], bins**2)
                pairs[i, j] = pairs[j, i] = entropies[i] + entropies[j] - entropy_bits(joint)
                correction[i, j] = correction[j, i] = extras[i] + extras[j] - miller_madow(len(joint), n)
        tc = None
        if bins**k <= n:
            joint = count_cells(np.ravel_multi_index(tuple(x), (bins,) * k), bins**k)
            tc = entropies.sum() - entropy_bits(joint), extras.sum() - miller_madow(len(joint), n)
        return cls(pairs, correction, tc, n, np.array([len(counts) for counts in marginals]))


def _corrected(observed: _Counts, null: list[_Counts]) -> Dependence:
    plugin = observed.pairs
    draws = np.stack([draw.pairs for draw in null])
    entropies = plugin.diagonal()
    upper = np.triu_indices(len(plugin), 1)
    shuffled = draws.mean(0) * (1 - np.eye(len(plugin)))
    means = draws[:, upper[0], upper[1]].mean(1)
    # Chance-adjusted: what shuffled codebooks share too is neither evidence nor within reach.
    headroom = np.minimum(entropies[:, None], entropies) - shuffled
    nmi = np.where(headroom > _TINY, (plugin - shuffled) / np.maximum(headroom, _TINY), 0.0)
    np.fill_diagonal(nmi, 1.0)
    tree = _best_tree(plugin - shuffled)
    # The best tree of noise is above 0 too: the trees of the shuffles show by how much.
    excess = np.array([(draw - shuffled)[_best_tree(draw - shuffled)].sum() for draw in draws])
    return Dependence(
        plugin=plugin,
        miller_madow=plugin + observed.correction,
        corrected=plugin - shuffled,
        error=draws.std(0, ddof=1) * np.sqrt(1 + 1 / len(null)),
        nmi=nmi,
        mean=_estimate(plugin[upper].mean(), observed.correction[upper].mean(), means),
        p=p_value(plugin[upper].mean(), means),
        tree=_estimate(plugin[tree].sum(), observed.correction[tree].sum(), shuffled[tree].sum() + excess),
        tc=None if observed.tc is None else _estimate(*observed.tc, np.array([d.tc[0] for d in null if d.tc])),
        frames=observed.frames,
        needed=_FRAMES_PER_CELL * int(np.prod(np.sort(observed.used)[-2:])),
    )


def _estimate(plugin: float, correction: float, null: Floats) -> Estimate:
    # Of a difference: the spread of one draw, and that of the mean over shuffles that is subtracted.
    error = float(null.std(ddof=1) * np.sqrt(1 + 1 / len(null)))
    return Estimate(float(plugin), float(plugin + correction), float(plugin - null.mean()), error)


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
