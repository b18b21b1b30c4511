"""Mutual information and total correlation against SciPy, exact expectations and laws whose information is known."""

import itertools
import logging
import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from audiotok.errors import ConfigError, DataError
from audiotok.metrics import dependence_metrics, estimate_dependence, group_codes

Ints = npt.NDArray[np.int64]
# Clips of these laws are independent draws: a recording each, exchanged.
measure = partial(dependence_metrics, frame_rate=50, shuffle="recordings", num_shuffles=19)
estimate = partial(estimate_dependence, shuffle="recordings", num_shuffles=19)


def entropy(p: float) -> float:
    """Bits of a coin."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def independent(shape: tuple[int, int, int], bins: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(bins, size=shape)


def noisy_pair(bins: int, same: float, clips: int = 50, frames: int = 400, seed: int = 0) -> tuple[Ints, float]:
    """Uniform codes whose second codebook repeats the first with probability `same`, else is random; and its bits."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(bins, size=(clips, 2, frames))
    codes[:, 1] = np.where(rng.random((clips, frames)) < same, codes[:, 0], codes[:, 1])
    law = same * np.eye(bins) / bins + (1 - same) / bins**2
    return codes, 2 * math.log2(bins) + float((law * np.log2(law)).sum())


def sticky(seed: int, clips: int = 24, frames: int = 30, bins: int = 8, stay: float = 0.8) -> Ints:
    """Independent codebooks that keep their code from frame to frame with probability `stay`."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(bins, size=(clips, 2, frames))
    keep = rng.random(codes.shape) < stay
    for t in range(1, frames):
        codes[..., t] = np.where(keep[..., t], codes[..., t - 1], codes[..., t])
    return codes


@pytest.mark.parametrize(("bins", "frames"), [(5, 60), (30, 40), (2048, 500)])
def test_plugin_and_miller_madow_are_scipys_g_statistic_and_entropies(bins: int, frames: int) -> None:
    codes = independent((4, 3, frames), bins) // 2
    found = estimate(codes, bins=bins, delay=False, shuffle="frames", num_shuffles=2)
    x, n = codes.transpose(1, 0, 2).reshape(3, -1), 4 * frames
    for i, j in itertools.combinations(range(3), 2):
        table = stats.contingency.crosstab(x[i], x[j]).count
        g = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        plugin = g / (2 * n * math.log(2))
        assert found.plugin[i, j] == pytest.approx(plugin, abs=1e-9)
        cells = [(table.sum(axis) > 0).sum() for axis in (0, 1)]
        extra = (cells[0] + cells[1] - (table > 0).sum() - 1) / (2 * n * math.log(2))
        assert found.miller_madow[j, i] == pytest.approx(plugin + extra, abs=1e-9)
    wanted = [stats.entropy(np.unique(row, return_counts=True)[1], base=2) for row in x]
    np.testing.assert_allclose(found.plugin.diagonal(), wanted, atol=1e-9)
    np.testing.assert_allclose(found.corrected.diagonal(), wanted, atol=1e-9)
    assert (found.miller_madow.diagonal() > wanted).all()


def test_shuffled_baseline_is_the_exact_expectation_over_permutations() -> None:
    codes = independent((6, 2, 10), 4)
    codes[:, 1] //= 2
    n, rows, columns = 60, np.bincount(codes[:, 0].ravel()), np.bincount(codes[:, 1].ravel())
    exact = 0.0
    for a, b in itertools.product(rows, columns):  # a cell's count is hypergeometric
        for count in range(1, min(a, b) + 1):
            chance = stats.hypergeom.pmf(count, n, a, b)
            exact += chance * count / n * math.log2(n * count / (a * b))
    found = estimate(codes, bins=4, delay=False, shuffle="frames", num_shuffles=400)
    shuffled = found.plugin[0, 1] - found.corrected[0, 1]
    assert shuffled == pytest.approx(exact, abs=4 * found.error[0, 1] / math.sqrt(400))
    assert shuffled > 0.02


@pytest.mark.parametrize(("bins", "same"), [(2, 0.8), (16, 0.3), (32, 0.7)])
def test_known_information_is_found_where_frames_are_enough(bins: int, same: float) -> None:
    codes, true = noisy_pair(bins, same)
    metrics = measure(codes, bins=bins, delay=False)
    assert metrics["mi"] == pytest.approx(true, rel=0.03)
    assert metrics["mi_mm"] == pytest.approx(true, rel=0.03)
    assert metrics["tc"] == pytest.approx(metrics["mi"], abs=1e-9)
    assert metrics["tc_tree"] == pytest.approx(metrics["mi"], abs=1e-9)
    assert metrics["mi_p"] == pytest.approx(1 / 20)


def test_a_binary_symmetric_channel_has_one_bit_minus_its_noise() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(2, size=(40, 1, 500))
    codes = np.concatenate([x, x ^ (rng.random(x.shape) < 0.11)], 1)
    assert measure(codes, bins=2)["mi_mm"] == pytest.approx(1 - entropy(0.11), abs=0.02)


@pytest.mark.parametrize(("bins", "frames"), [(8, 100), (64, 100), (512, 100)])
def test_independent_codebooks_share_nothing_beyond_the_stated_error(bins: int, frames: int) -> None:
    scores = []
    for seed in range(12):
        found = estimate(independent((25, 3, frames), bins, seed), bins=bins, delay=False, seed=seed)
        scores += [found.mean.corrected / found.mean.error, found.tree.corrected / found.tree.error]
        scores += [found.corrected[0, 2] / found.error[0, 2]]
        assert np.abs(found.nmi[~np.eye(3, dtype=bool)]).max() < 0.02
    assert np.abs(scores).max() < 5
    assert 0.5 < np.std(scores) < 1.7
    assert abs(np.mean(scores)) < 0.6


@pytest.mark.parametrize("bins", [4, 2048])
def test_equal_codebooks_share_their_entropy(bins: int) -> None:
    codes = np.repeat(independent((25, 1, 80), bins), 3, axis=1)
    codes[:, 2] = bins - 1 - codes[:, 2]  # other names for the same codes
    found = estimate(codes, bins=bins, delay=False)
    np.testing.assert_allclose(found.plugin, found.plugin[0, 0], atol=1e-9)
    np.testing.assert_allclose(found.miller_madow, found.miller_madow[0, 0], atol=1e-9)
    np.testing.assert_allclose(found.nmi, 1, atol=1e-9)
    assert found.plugin[0, 0] == pytest.approx(math.log2(bins), rel=0.1)
    assert found.tree.plugin == pytest.approx(2 * found.plugin[0, 0])
    if bins == 4:
        assert found.tc is not None
        assert found.tc.plugin == pytest.approx(2 * found.plugin[0, 0])


def test_a_codebook_that_follows_from_another_has_nmi_one() -> None:
    codes = np.repeat(independent((25, 1, 60), 12), 2, axis=1)
    codes[:, 1] //= 4
    found = estimate(codes, bins=12, delay=False)
    assert found.plugin[0, 1] == pytest.approx(found.plugin[1, 1])
    assert found.plugin[0, 0] > found.plugin[1, 1] + 1
    np.testing.assert_allclose(found.nmi, 1, atol=1e-9)


def test_total_correlation_is_scipys_entropies_with_millers_correction() -> None:
    codes = independent((10, 3, 30), 4, seed=4)
    codes[:, 2, :20] = codes[:, 0, :20]
    found = estimate(codes, bins=4, delay=False, shuffle="frames")
    x, n = codes.transpose(1, 0, 2).reshape(3, -1), 300
    counts = [np.unique(row, return_counts=True)[1] for row in (*x, x.T.dot([1, 10, 100]))]
    bits = [float(stats.entropy(c, base=2)) for c in counts]
    madow = [b + (len(c) - 1) / (2 * n * math.log(2)) for b, c in zip(bits, counts, strict=True)]
    assert found.tc is not None
    assert found.tc.plugin == pytest.approx(sum(bits[:3]) - bits[3])
    assert found.tc.miller_madow == pytest.approx(sum(madow[:3]) - madow[3])
    assert found.tc.corrected < found.tc.plugin - 0.05


def test_corrections_bracket_the_truth_with_few_frames_and_agree_with_many() -> None:
    few, true = noisy_pair(64, 0.5, frames=16)
    found = estimate(few, bins=64, delay=False)
    assert found.frames < found.needed / 20
    assert found.corrected[0, 1] < true - 0.5
    assert found.miller_madow[0, 1] > true + 0.5
    many, _ = noisy_pair(64, 0.5, frames=420)
    found = estimate(many, bins=64, delay=False)
    assert found.frames >= found.needed
    assert found.corrected[0, 1] == pytest.approx(true, abs=0.05)
    assert found.miller_madow[0, 1] == pytest.approx(true, abs=0.05)


def test_exclusive_or_is_dependence_that_pairs_do_not_show() -> None:
    codes = independent((40, 3, 250), 2)
    codes[:, 2] = codes[:, 0] ^ codes[:, 1]
    metrics = measure(codes, bins=2, delay=False)
    assert metrics["tc"] == pytest.approx(1, abs=0.01)
    assert metrics["tc_mm"] == pytest.approx(1, abs=0.01)
    assert abs(metrics["mi"]) < 4 * metrics["mi_err"] < 0.01
    assert abs(metrics["tc_tree"]) < 0.01


def test_a_chain_has_the_total_correlation_of_its_tree() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(2, size=(40, 4, 500))
    noise = (0.1, 0.2, 0.05)
    order = (2, 0, 3, 1)  # the chain does not run in the order of the codebooks
    for a, b, flip in zip(order, order[1:], noise, strict=False):
        codes[:, b] = codes[:, a] ^ (rng.random((40, 500)) < flip)
    true = sum(1 - entropy(flip) for flip in noise)
    metrics = measure(codes, bins=2, delay=False)
    assert metrics["tc_tree"] == pytest.approx(true, abs=0.04)
    assert metrics["tc"] == pytest.approx(true, abs=0.04)
    assert metrics["tc"] > metrics["tc_tree"] - 0.001


def test_best_tree_is_that_of_all_trees() -> None:
    codes = independent((30, 5, 40), 3, seed=2)
    codes[:, 4] = codes[:, 1]
    codes[:, 0, :20] = codes[:, 3, :20]
    found = estimate(codes, bins=3, delay=False, num_shuffles=3)
    edges = list(itertools.combinations(range(5), 2))
    sums = []
    for tree in itertools.combinations(edges, 4):
        reached = {0}
        for _ in range(4):
            reached |= {node for edge in tree if reached & set(edge) for node in edge}
        if len(reached) == 5:
            sums.append(tuple(sum(m[edge] for edge in tree) for m in (found.corrected, found.plugin)))
    assert len(sums) == 125  # Cayley
    assert found.tree.plugin == pytest.approx(max(sums)[1])


def test_delay_compares_code_t_with_code_t_minus_k() -> None:
    codes = np.repeat(independent((30, 1, 60), 4), 3, axis=1)
    codes[:, 1, :-1] = codes[:, 0, 1:]  # one frame ahead, so that a delay of one lines it up
    codes[:, 2, :-2] = codes[:, 0, 2:]
    metrics = measure(codes, bins=4)
    for pair in ("q0_q1", "q0_q2", "q1_q2"):
        assert metrics[f"nmi_delay_{pair}"] == pytest.approx(1)
        assert metrics[f"nmi_{pair}"] < 0.1


def test_frames_that_resemble_their_neighbours_are_no_independent_draws() -> None:
    ps = [estimate(sticky(run), bins=8, delay=False, shuffle="frames", seed=run).p for run in range(12)]
    assert sum(p <= 0.1 for p in ps) >= 10


def music(seed: int, recordings: int = 3, clips: int = 8, frames: int = 20) -> tuple[Ints, Ints]:
    """Independent codebooks whose clips resemble each other in a recording."""
    rng = np.random.default_rng(seed)
    shape = (recordings, 2, clips, frames)
    z = (
        rng.standard_normal(shape)
        + 1.5 * rng.standard_normal((*shape[:2], 1, 1))
        + rng.standard_normal((*shape[:3], 1))
    )
    codes = np.digitize(z, (-1.5, 0, 1.5)).transpose(0, 2, 1, 3).reshape(-1, 2, frames)
    return codes, np.arange(len(codes)) // clips


def test_clips_of_few_recordings_are_not_called_dependent() -> None:
    # Counts of p-values in twentieths: 60 runs at level 0.1 give 6, and 17 or more once in 10 000 times.
    shifted = exchanged = 0
    bits = []
    for run in range(60):
        codes, tracks = music(run)
        found = estimate(codes, bins=4, delay=False, tracks=tracks, shuffle="shifts", seed=run)
        shifted += round(20 * found.p) <= 2
        bits.append(found.mean.corrected)
        exchanged += round(20 * estimate(codes, bins=4, delay=False, seed=run).p) <= 2
    assert shifted < 17
    assert exchanged > 24  # each clip taken for a recording of its own
    assert abs(np.mean(bits)) < 4 * np.std(bits) / math.sqrt(60)


def test_p_is_that_of_all_shifts_where_these_are_few() -> None:
    codes, _ = music(1, recordings=1, clips=24)
    tracks = np.zeros(24, dtype=int)
    x = codes.transpose(1, 0, 2).reshape(2, -1)

    def bits(shift: int) -> float:
        table = stats.contingency.crosstab(x[0], np.roll(x[1], shift * 20)).count
        return float(stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic) / (
            2 * x.shape[1] * math.log(2)
        )

    every = np.array([bits(shift) for shift in range(24)])
    found = estimate(codes, bins=4, delay=False, tracks=tracks, shuffle="shifts", num_shuffles=999)
    exact = (every >= every[0] - 1e-9).mean()
    assert found.plugin[0, 1] == pytest.approx(every[0])
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 999) + 1 / 1000)
    apart = every[3:-2]  # of 24 places two codebooks are 24 // (4 * 2) = 3 or more apart
    assert found.corrected[0, 1] == pytest.approx(every[0] - apart.mean(), abs=4 * apart.std() / math.sqrt(40))


def test_dependence_within_recordings_is_found_and_measured() -> None:
    codes, tracks = music(3)
    codes[:, 1] = np.where(np.random.default_rng(0).random(codes[:, 1].shape) < 0.5, codes[:, 0], codes[:, 1])
    found = estimate(codes, bins=4, delay=False, tracks=tracks, shuffle="shifts", num_shuffles=199)
    assert found.p == 1 / 200
    assert found.mean.corrected > 5 * found.mean.error


def test_without_a_shuffle_that_holds_there_is_no_p_but_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    codes, tracks = music(0, recordings=3, clips=2)
    options: dict[str, Any] = {"bins": 4, "delay": False}
    few = measure(codes, tracks=tracks, shuffle="shifts", **options)
    assert "mi" in few and not [name for name in few if name.startswith("mi_p")]
    assert "arrange two codebooks in 8 way(s), and a p-value of 0.05 takes 20" in caplog.text
    none = measure(codes, tracks=np.arange(6), shuffle="shifts", **options)
    exchanged = measure(codes, tracks=tracks, shuffle="recordings", **options)
    for metrics in (none, exchanged):
        assert {name for name in metrics if name.startswith(("mi", "nmi", "tc"))} == {"mi_mm", "mi_mm_q0_q1", "tc_mm"}
        assert all(math.isfinite(value) for value in metrics.values())
    assert "none of 6 recording(s) has two clips" in caplog.text
    assert "3 recording(s) are too few to exchange; it takes 20" in caplog.text


def lost(x: Ints, y: Ints, bins: int) -> float:
    """Bits of codes y [N] that x [N] of the same step still tells beside the codes of the step before, plug-in."""
    past = x[:-1] * bins + y[:-1]

    def bits(*parts: Ints) -> float:
        return float(stats.entropy(np.unique(np.stack(parts), axis=1, return_counts=True)[1], base=2))

    return bits(past, x[1:]) + bits(past, y[1:]) - bits(past, x[1:], y[1:]) - bits(past)


def test_mutual_information_is_not_what_a_model_with_a_past_loses() -> None:
    rng = np.random.default_rng(0)
    # A common state that lasts, one of two, beside a coin of each codebook: shared, but known from the past.
    state = np.cumsum(rng.random(40000) < 0.002) % 2
    slow = 2 * state + rng.integers(2, size=(2, 40000))
    # A sum with the step before looks independent of the other codebook, and follows from it and the past.
    first = rng.integers(16, size=40000)
    sums = np.stack([first, first.cumsum() % 16])
    for series, bins, bits, loss in ((slow, 4, 1.0, 0.02), (sums, 16, 0.0, 4.0)):
        codes = series.reshape(2, 40, 1000).transpose(1, 0, 2)
        found = estimate(codes, bins=bins, delay=False, shuffle="frames", num_shuffles=2)
        assert found.mean.corrected == pytest.approx(bits, abs=0.05)
        assert lost(series[0], series[1], bins) == pytest.approx(loss, abs=0.1)


def test_names_of_codes_and_kind_of_array_do_not_matter() -> None:
    codes, _ = noisy_pair(16, 0.4, clips=20, frames=50)
    renamed = np.random.default_rng(1).permutation(16)[codes]
    first = measure(codes, bins=16)
    assert measure(torch.from_numpy(codes).int(), bins=16) == first
    assert measure(codes.astype(np.uint8), bins=16) == first
    again = measure(renamed, bins=16)
    for name in ("mi", "mi_mm", "nmi", "tc", "tc_tree_delay", "entropy_q1", "perplexity"):
        assert again[name] == pytest.approx(first[name], abs=1e-9)


def test_metrics_are_finite_named_alike_and_seeded() -> None:
    usual = measure(independent((20, 3, 30), 40), bins=40, seed=1)
    constant = measure(np.zeros((20, 3, 30), dtype=np.int64), bins=40)
    unique = np.arange(600).reshape(20, 1, 30).repeat(3, axis=1)
    unseen = measure(unique, bins=2048)
    assert list(usual) == list(constant) == list(unseen)
    for metrics in (usual, constant, unseen):
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert (constant["mi"], constant["nmi"], constant["mi_p"]) == (0, 0, 1)
    assert unseen["nmi"] == 0  # each code occurs once: nothing to tell
    assert measure(independent((20, 3, 30), 40), bins=40, seed=1) == usual
    assert measure(independent((20, 3, 30), 40), bins=40, seed=2)["mi"] != usual["mi"]
    assert "mi_q0_q1" not in measure(unique, bins=2048, pairs=False)


def test_total_correlation_is_given_only_with_a_frame_per_cell() -> None:
    codes = independent((32, 3, 16), 8)  # 512 frames, 8^3 cells
    assert "tc" in measure(codes, bins=8)
    assert "tc_delay" not in measure(codes, bins=8)
    assert "tc" not in measure(codes, bins=9)


def test_what_cannot_be_trusted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        measure(independent((40, 2, 100), 4), bins=4)
    assert not caplog.messages
    measure(np.arange(400).reshape(4, 2, 50) % 16, bins=1024)
    assert "give 10240 frames or more" in caplog.text
    assert f"need {5 * 16 * 16} frames" in caplog.text
    assert "4 recording(s) are too few to exchange" in caplog.text


@pytest.mark.parametrize(("recordings", "clips", "known"), [(12, 2, False), (4, 3, False), (5, 3, True), (1, 20, True)])
def test_an_error_takes_shuffles_that_differ(
    recordings: int, clips: int, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With two clips each there is one way to part two codebooks: its spread of 0 would pass for certainty."""
    codes = np.random.default_rng(0).integers(8, size=(recordings * clips, 2, 60))
    tracks = np.repeat(np.arange(recordings), clips)
    found = dependence_metrics(codes, bins=8, frame_rate=50, tracks=tracks)
    errors = {name for name in found if "_err" in name}
    assert errors == ({"mi_err", "tc_tree_err", "tc_err"} if known else set()) | (
        {"mi_err_delay", "tc_tree_err_delay", "tc_err_delay"} if known else set()
    )
    assert "mi" in found and all(found[name] > 0.001 for name in errors)
    assert ("the errors of mi and tc are left out" in caplog.text) is not known


def test_groups_bound_the_information_of_many_codes_from_below(caplog: pytest.LogCaptureFixture) -> None:
    # Vectors on a circle; the second codebook names the point of the first, blurred by up to 1/8 of the circle.
    rng = np.random.default_rng(0)
    turns = torch.arange(1024) / 1024 * 2 * math.pi
    vectors = [torch.stack([turns.cos(), turns.sin()], 1)] * 2
    codes = rng.integers(1024, size=(50, 2, 200))
    codes[:, 1] = (codes[:, 0] + rng.integers(128, size=(50, 200))) % 1024
    metrics = measure(codes, bins=1024, delay=False, vectors=vectors, groups=16)
    true = math.log2(1024 / 128)
    assert metrics["mi"] < 0.2 * true  # 10 000 frames for a million pairs of codes
    assert metrics["mi_mm"] > 2 * true
    assert 0.7 * true < metrics["mi_groups"] < true
    assert metrics["mi_groups"] == pytest.approx(metrics["mi_mm_groups"], abs=0.05)
    assert metrics["tc_groups"] == pytest.approx(metrics["mi_groups"])
    assert "mi from 10000 frames" in caplog.text
    assert "mi_groups from" not in caplog.text


def test_groups_are_clusters_of_vectors_whatever_the_codes() -> None:
    centres = torch.tensor([[0.0, 0], [50, 0], [0, 50]])
    noise = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(0))
    owners = (torch.arange(30) % 3, torch.arange(30) // 10)
    vectors = [centres[owner] + offsets for owner, offsets in zip(owners, noise, strict=True)]
    codes = independent((5, 2, 90), 30)
    grouped = group_codes(codes, vectors, 3, seed=2).numpy()
    for q in range(2):
        joint = stats.contingency.crosstab(owners[q].numpy()[codes[:, q]].ravel(), grouped[:, q].ravel()).count
        assert (joint > 0).sum() == len(joint) == 3  # one name for each centre
    np.testing.assert_array_equal(group_codes(codes, vectors, 30).numpy(), codes)
    with pytest.raises(DataError, match=r"K times \[bins, D\]"):
        group_codes(codes, vectors[:1], 3)
    with pytest.raises(DataError, match="bins=20"):
        group_codes(codes, [v[:20] for v in vectors], 3)
    with pytest.raises(ConfigError, match="num_clusters=0"):
        group_codes(codes, vectors, 0)


def test_one_codebook_has_health_and_no_dependence(caplog: pytest.LogCaptureFixture) -> None:
    metrics = measure(independent((20, 1, 30), 4), bins=4)
    assert "one codebook" in caplog.text
    assert metrics["usage"] == 1
    assert not [name for name in metrics if name.startswith(("mi", "nmi", "tc"))]
    with pytest.raises(DataError, match="two or more"):
        estimate(independent((20, 1, 30), 4), bins=4, delay=False)


def test_mistakes_are_told() -> None:
    codes = independent((4, 2, 10), 4)
    with pytest.raises(DataError, match=r"\[B, K, T\]"):
        estimate(codes[0], bins=4, delay=False)
    with pytest.raises(DataError, match="integers"):
        estimate(torch.rand(4, 2, 10), bins=4, delay=False)
    with pytest.raises(DataError, match="bins=3 allows 0 to 2"):
        estimate(codes, bins=3, delay=False)
    with pytest.raises(DataError, match="from -1"):
        estimate(codes - 1, bins=4, delay=False)
    with pytest.raises(DataError, match="empty"):
        estimate(codes[:0], bins=4, delay=False)
    with pytest.raises(DataError, match="needs 3 or more"):
        estimate(codes[..., :2], bins=4, delay=True)
    with pytest.raises(DataError, match="one integer for each of 4"):
        estimate(codes, bins=4, delay=False, tracks=[0, 1])
    with pytest.raises(ConfigError, match="shifts, recordings, frames"):
        estimate(codes, bins=4, delay=False, shuffle="clip")
    with pytest.raises(ConfigError, match="num_shuffles=1"):
        estimate(codes, bins=4, delay=False, num_shuffles=1)
    with pytest.raises(ConfigError, match="bins=0"):
        estimate(codes, bins=0, delay=False)
