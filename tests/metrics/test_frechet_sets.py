"""Fréchet distance of sets of different clips: the jackknife in double loops, and distances of known Gaussians."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from audiotok.errors import DataError
from audiotok.metrics.frechet import Moments, distance_of_sets, frechet_distance

DIMS = 8


def recordings(count: int, frames: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> list[Tensor]:
    """Gaussian vectors whose neighbours in a recording are alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, frames, DIMS, generator=generator, dtype=torch.float64)
    for step in range(1, frames):
        x[:, step] = 0.5 * x[:, step - 1] + math.sqrt(0.75) * x[:, step]
    return list(scale * x + shift)


def moments(sets: Sequence[Tensor]) -> list[Moments]:
    return [Moments.of(one) for one in sets]


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return frechet_distance(Moments.of(torch.cat(list(a))), Moments.of(torch.cat(list(b))))


def without(sets: Sequence[Tensor], index: int) -> list[Tensor]:
    return [one for other, one in enumerate(sets) if other != index]


def test_value_and_error_are_those_of_the_jackknife_of_either_set() -> None:
    a, b = recordings(5, 20, 1, shift=1.0), recordings(7, 30, 2)
    whole = distance(a, b)
    value, variance = whole, 0.0
    for rest in ([distance(without(a, i), b) for i in range(5)], [distance(a, without(b, i)) for i in range(7)]):
        mean = sum(rest) / len(rest)
        value -= (len(rest) - 1) * (mean - whole)
        variance += (len(rest) - 1) / len(rest) * sum((one - mean) ** 2 for one in rest)
    found = distance_of_sets(moments(a), moments(b))
    assert found.plain == pytest.approx(whole, rel=1e-9)
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.error == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_recordings_of_unequal_length_weigh_by_their_frames() -> None:
    a = recordings(40, 20, 1, shift=1.0)
    b = [one[: 10 + 3 * i] for i, one in enumerate(recordings(6, 40, 2))]
    total, whole = sum(map(len, b)), distance(a, b)
    value, pseudo = whole, []
    for i, one in enumerate(b):  # Busing et al., 1999, equations 5 to 7
        rest, h = distance(a, without(b, i)), total / len(one)
        value -= (1 - 1 / h) * (rest - whole)
        pseudo.append((h * whole - (h - 1) * rest, h))
    variance = sum((one - value) ** 2 / (h - 1) for one, h in pseudo) / len(b)
    found = distance_of_sets(moments(a), moments(b))
    only_b = type(found)(found.plain, found.left_out[1:])
    assert only_b.value == pytest.approx(value, rel=1e-9)
    assert only_b.error == pytest.approx(math.sqrt(variance), rel=1e-7)
    assert len(found.left_out[0][0]) == 32  # of 40 recordings, some two and two


def test_pairs_are_left_out_together_and_their_difference_has_its_own_error() -> None:
    reference = recordings(6, 30, 1)
    near, far = ([one + step + 0.1 * i for i, one in enumerate(reference)] for step in (0.3, 0.4))
    first, second = (distance_of_sets(moments(one), moments(reference), paired=True) for one in (near, far))
    rest = [[distance(without(one, i), without(reference, i)) for i in range(6)] for one in (near, far)]
    differences = [b - a for a, b in zip(*rest, strict=True)]
    spread = torch.tensor(differences, dtype=torch.float64).std().item() * 5 / math.sqrt(6)
    gap = second - first
    assert gap.plain == pytest.approx(distance(far, reference) - distance(near, reference), rel=1e-9)
    assert gap.value == pytest.approx(second.value - first.value, rel=1e-9)
    assert gap.error == pytest.approx(spread, rel=1e-7)
    assert 0 < gap.error < 0.5 * first.error


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.3, 0.4)])
def test_bias_leaves_with_infinitely_many_recordings_and_the_error_is_the_spread(scale: float, shift: float) -> None:
    repeats, true = 60, DIMS * (shift**2 + (scale - 1) ** 2)
    found = []
    for seed in range(repeats):
        a, b = recordings(16, 30, 2 * seed, scale=scale, shift=shift), recordings(24, 30, 2 * seed + 1)
        one = distance_of_sets(moments(a), moments(b))
        found.append((one.plain - true, one.value - true, one.error))
    values = torch.tensor(found)
    plain, value, error = values.mean(0).tolist()
    spread = float(values[:, 1].std())
    assert plain > 5 * spread / math.sqrt(repeats)
    assert abs(value) < 4 * spread / math.sqrt(repeats)
    assert 0.7 * spread < error < 2 * spread


def test_scale_is_the_variance_of_the_reference() -> None:
    a, b = recordings(5, 20, 1, shift=1.0), recordings(7, 30, 2)
    plain, relative = (distance_of_sets(moments(a), moments(b), relative=relative) for relative in (False, True))
    assert relative.plain == pytest.approx(plain.plain / float(torch.cat(b).var(0).sum()), rel=1e-9)
    louder = distance_of_sets(moments([10 * x for x in a]), moments([10 * x for x in b]), relative=True)
    assert louder.value == pytest.approx(relative.value, rel=1e-9)
    assert louder.error == pytest.approx(relative.error, rel=1e-6)


def test_what_cannot_be_measured_has_a_reason() -> None:
    good = moments(recordings(4, 20, 1))
    with pytest.raises(DataError, match="1 recordings in the generated set"):
        distance_of_sets(good[:1], good)
    with pytest.raises(DataError, match="3 generated clips for 4 recordings"):
        distance_of_sets(good[:3], good, paired=True)
    few = moments([torch.randn(3, DIMS), torch.randn(5, DIMS), torch.randn(5, DIMS)])
    with pytest.raises(DataError, match=r"13 frames in the reference set, 8 without .* vectors of 8 dimensions"):
        distance_of_sets(good, few)
    constant = moments([torch.ones(20, DIMS)] * 3)
    with pytest.raises(DataError, match="equal"):
        distance_of_sets(good, constant, relative=True)
