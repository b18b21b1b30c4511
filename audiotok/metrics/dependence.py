"""All that codes alone say about their codebooks, by name: dependence between them and health of each.

The estimators are in `information` and `codebooks`; docs/dependence.md says what each number means and
when to trust it.
"""

import logging
from collections.abc import Sequence

import torch

from audiotok.metrics.codebooks import FRAMES_PER_BIN, codebook_metrics
from audiotok.metrics.codes import Codes, check_codes
from audiotok.metrics.groups import group_codes
from audiotok.metrics.information import FRAMES_PER_CELL, Dependence, estimate_dependence

CLIPS = 20

logger = logging.getLogger(__name__)


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

    In bits per frame, lower is more independent, unless said otherwise; means over pairs of codebooks:

    - `mi`: mutual information minus that of shuffled codebooks, and `mi_err`, its standard error if independent;
    - `mi_mm`: mutual information with Miller's correction instead;
    - `nmi`: 0 by chance, 1 if codebooks tell each other, without unit; see `Dependence`;
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
        frame_rate: Hz.
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
            if not delayed:
                _warn(estimate, kind)
            metrics.update(_named(estimate, kind + ("_delay" if delayed else ""), pairs))
    return metrics


def _warn(estimate: Dependence, kind: str) -> None:
    if estimate.frames < estimate.needed:
        logger.warning(
            "mi%s from %d frames: for dependent codebooks it tends to be too low, and mi_mm%s too high; they need %d "
            "frames, %d for each pair of codes in use. mi_p%s holds with any number.",
            *(kind, estimate.frames, kind, estimate.needed, FRAMES_PER_CELL, kind),
        )


def _named(estimate: Dependence, suffix: str, pairs: bool) -> dict[str, float]:
    upper = [(i, j) for i in range(len(estimate.nmi)) for j in range(i + 1, len(estimate.nmi))]
    matrices = {"mi": estimate.corrected, "mi_mm": estimate.miller_madow, "nmi": estimate.nmi}
    metrics = {
        f"mi{suffix}": estimate.mean.corrected,
        f"mi_err{suffix}": estimate.mean.error,
        f"mi_mm{suffix}": estimate.mean.miller_madow,
        f"mi_p{suffix}": estimate.p,
        f"nmi{suffix}": sum(float(estimate.nmi[pair]) for pair in upper) / len(upper),
        f"tc_tree{suffix}": estimate.tree.corrected,
        f"tc_tree_err{suffix}": estimate.tree.error,
    }
    if estimate.tc is not None:
        metrics[f"tc{suffix}"] = estimate.tc.corrected
        metrics[f"tc_mm{suffix}"] = estimate.tc.miller_madow
        metrics[f"tc_err{suffix}"] = estimate.tc.error
    if pairs:
        for name, matrix in matrices.items():
            metrics.update({f"{name}{suffix}_q{i}_q{j}": float(matrix[i, j]) for i, j in upper})
    return metrics
