"""Codebook patterns: sequences written out by hand, and building and undoing as inverses for every K and T."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiotok.errors import ConfigError
from audiotok.models.patterns import PATTERNS, Pattern, get_pattern

S = 99  # special token


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Pattern, torch.Tensor]:
    """Any pattern, and codes that are all different."""
    name = draw(st.sampled_from(PATTERNS))
    n_q, timesteps = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    number = {"delay": n_q, "coarse_first": n_q - 1}.get(name, 0)
    delays = draw(st.none() | st.lists(st.integers(0, 25), min_size=number, max_size=number))
    codes = 1000 + torch.arange(2 * n_q * timesteps).reshape(2, n_q, timesteps)
    return get_pattern(name, n_q, timesteps, delays), codes


# Of codes 1 to 4 (times) + 10 (codebook 1) + 20 (codebook 2); the layouts in AudioCraft's docstrings.
WRITTEN_OUT = [
    ("parallel", None, [[S, 1, 2, 3, 4], [S, 11, 12, 13, 14], [S, 21, 22, 23, 24]]),
    ("delay", None, [[S, 1, 2, 3, 4, S, S], [S, S, 11, 12, 13, 14, S], [S, S, S, 21, 22, 23, 24]]),
    ("delay", [2, 0, 1], [[S, S, S, 1, 2, 3, 4], [S, 11, 12, 13, 14, S, S], [S, S, 21, 22, 23, 24, S]]),
    ("delay", [1, 1, 2], [[S, S, 1, 2, 3, 4, S], [S, S, 11, 12, 13, 14, S], [S, S, S, 21, 22, 23, 24]]),
    (
        "flatten",
        None,
        [
            [S, 1, S, S, 2, S, S, 3, S, S, 4, S, S],
            [S, S, 11, S, S, 12, S, S, 13, S, S, 14, S],
            [S, S, S, 21, S, S, 22, S, S, 23, S, S, 24],
        ],
    ),
    (
        "coarse_first",
        [0, 1],
        [
            [S, 1, 2, 3, 4, S, S, S, S, S],
            [S, S, S, S, S, 11, 12, 13, 14, S],
            [S, S, S, S, S, S, 21, 22, 23, 24],
        ],
    ),
]


@pytest.mark.parametrize(("name", "delays", "expected"), WRITTEN_OUT, ids=lambda x: str(x)[:20])
def test_sequence_is_the_one_written_out(name: str, delays: list[int] | None, expected: list[list[int]]) -> None:
    codes = torch.arange(1, 5) + 10 * torch.arange(3)[:, None]
    sequence, mask = get_pattern(name, 3, 4, delays).build(codes[None], S)
    assert sequence[0].tolist() == expected
    assert torch.equal(mask, sequence[0] != S)


@given(patterns())
def test_undoing_is_the_inverse_of_building(drawn: tuple[Pattern, torch.Tensor]) -> None:
    pattern, codes = drawn
    sequence, mask = pattern.build(codes, S)
    assert sequence.shape == (*codes.shape[:2], pattern.length)
    assert torch.equal(mask.expand_as(sequence), sequence != S)
    assert sorted(sequence[sequence != S].tolist()) == codes.flatten().tolist()  # each code once
    assert not mask[:, 0].any() and mask[:, -1].any()
    undone, inside = pattern.undo(sequence, S)
    assert torch.equal(undone, codes) and bool(inside.all())


@given(patterns())
def test_building_is_the_inverse_of_undoing(drawn: tuple[Pattern, torch.Tensor]) -> None:
    pattern, codes = drawn
    _, mask = pattern.build(codes, S)
    sequence = torch.where(mask, 1000 + torch.arange(2 * mask.numel()).reshape(2, *mask.shape), S)
    assert torch.equal(pattern.build(pattern.undo(sequence, S)[0], S)[0], sequence)


@given(patterns(), st.data())
def test_beginning_of_a_sequence_gives_the_codes_in_it(
    drawn: tuple[Pattern, torch.Tensor], data: st.DataObject
) -> None:
    pattern, codes = drawn
    sequence, _ = pattern.build(codes, S)
    end = data.draw(st.integers(1, pattern.length))
    undone, inside = pattern.undo(sequence[..., :end], -1)
    assert torch.equal(inside, pattern.steps < end)
    assert torch.equal(undone, torch.where(inside, codes, -1))


@given(patterns())
def test_valid_steps_are_the_beginning(drawn: tuple[Pattern, torch.Tensor]) -> None:
    pattern, codes = drawn
    (whole, mask), (valid, valid_mask) = pattern.build(codes, S), pattern.build(codes, S, valid_only=True)
    assert torch.equal(valid, whole[..., : pattern.valid_length])
    assert torch.equal(valid_mask, mask[:, : pattern.valid_length])


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.data())
def test_valid_steps_of_a_segment_are_those_of_the_track(
    n_q: int, timesteps: int, more: int, data: st.DataObject
) -> None:
    """What a model sees of a segment is what it sees of the track that begins with it; one step later it is not."""
    delays = data.draw(st.none() | st.lists(st.integers(0, 9), min_size=n_q, max_size=n_q))
    track = torch.arange(1000, 1000 + n_q * (timesteps + more)).reshape(1, n_q, -1)
    segment = get_pattern("delay", n_q, timesteps, delays)
    of_track, _ = get_pattern("delay", n_q, timesteps + more, delays).build(track, S)
    of_segment, _ = segment.build(track[..., :timesteps], S)
    end = segment.valid_length
    assert torch.equal(of_segment[..., :end], of_track[..., :end])
    if end < segment.length:
        assert not torch.equal(of_segment[..., end], of_track[..., end])


@given(patterns())
def test_gradients_and_reals_pass(drawn: tuple[Pattern, torch.Tensor]) -> None:
    """Losses of positions are undone like codes: nothing of the empty positions reaches the result."""
    pattern, codes = drawn
    values = torch.rand(2, codes.shape[1], pattern.length, requires_grad=True)
    pattern.undo(values, 0.0)[0].sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad[0] == 1, pattern.build(codes, S)[1])


def test_unroll_is_the_name_of_flatten_in_audiocraft() -> None:
    assert torch.equal(get_pattern("unroll", 3, 4).steps, get_pattern("flatten", 3, 4).steps)


@pytest.mark.parametrize(
    ("name", "n_q", "timesteps", "delays", "message"),
    [
        ("delayed", 2, 3, None, "'delayed' is unknown; use one of parallel"),
        ("delay", 2, 3, [0], "takes 2"),
        ("delay", 2, 3, [0, -1], "none negative"),
        ("coarse_first", 3, 3, [0, 1, 2], "takes 2"),
        ("parallel", 2, 3, [0, 0], "takes 0"),
        ("flatten", 2, 0, None, "at least 1"),
        ("parallel", 0, 3, None, "at least 1"),
    ],
)
def test_refusals(name: str, n_q: int, timesteps: int, delays: list[int] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_pattern(name, n_q, timesteps, delays)
