"""The gap of codes drawn from sources whose total correlation of a step, given the past, is known in closed form."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError
from audiotok.metrics import factorisation_gap
from audiotok.metrics.gap_fit import _checks, split_recordings
from benchmarks.gap import BINS, CLIPS, FIT, FRAMES

TRACKS = torch.arange(CLIPS) // 6


def uniform(*shape: int, bins: int = BINS) -> Tensor:
    return torch.randint(bins, shape, generator=torch.Generator().manual_seed(sum(shape) + bins))


def independent() -> Tensor:
    return uniform(CLIPS, 2, FRAMES)


def independent_past() -> Tensor:
    """Each codebook follows a table of its own two codes before with probability 3/4, else it is drawn anew."""
    fresh, kept, tables = uniform(CLIPS, 2, FRAMES), uniform(CLIPS, 2, FRAMES, bins=8) > 1, uniform(2, BINS, BINS)
    codes = fresh.clone()
    for t in range(2, FRAMES):
        for k in range(2):
            likely = tables[k][codes[:, k, t - 1], codes[:, k, t - 2]]
            codes[:, k, t] = torch.where(kept[:, k, t], likely, fresh[:, k, t])
    return codes


def copied() -> Tensor:
    """c1[t] is c0[t] with probability 1/2, else drawn anew."""
    codes = uniform(CLIPS, 2, FRAMES)
    codes[:, 1] = torch.where(uniform(CLIPS, FRAMES, bins=2) == 0, codes[:, 0], codes[:, 1])
    return codes


def through_the_past() -> Tensor:
    """Each codebook is a state of two, which changes in one of 100 frames, and a coin of its own."""
    changes = (uniform(CLIPS, FRAMES, bins=100) == 0).long()
    state = (changes.cumsum(dim=1) + uniform(CLIPS, 1, bins=2)) % 2
    return 2 * state[:, None] + uniform(CLIPS, 2, FRAMES, bins=2)


def summed() -> Tensor:
    """c1[t] = c0[t] + c1[t-1], modulo BINS: codebooks of a frame are independent."""
    codes = uniform(CLIPS, 2, FRAMES)
    codes[:, 1] = codes[:, 0].cumsum(dim=1) % BINS
    return codes


def exclusive_or() -> Tensor:
    codes = uniform(CLIPS, 3, FRAMES, bins=2)
    codes[:, 2] = codes[:, 0] ^ codes[:, 1]
    return codes


def ahead() -> Tensor:
    """c1[t] = c0[t+1]: what a delay of one brings into one step."""
    codes = uniform(CLIPS, 2, FRAMES + 1)
    codes[:, 1, :-1] = codes[:, 0, 1:]
    return codes[..., :-1].contiguous()


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log2(p) for p in probabilities)


COPIED = 2 - entropy(5 / 8, 1 / 8, 1 / 8, 1 / 8)
TABLE = entropy(13 / 16, 1 / 16, 1 / 16, 1 / 16)
CHANGE = entropy(0.01, 0.99)  # bits of the state that the past does not tell, and either codebook does


@pytest.mark.parametrize(
    ("source", "pattern", "gap", "bits_chain", "gap_alone"),
    [
        (independent, "parallel", 0, 4, 0),
        (independent_past, "parallel", 0, 2 * TABLE, 0),
        (copied, "parallel", COPIED, 4 - COPIED, COPIED),
        (copied, "delay", 0, 4 - COPIED, 0),  # c0[t] is past when c1[t] is predicted
        (through_the_past, "parallel", CHANGE, 2 + CHANGE, 1),
        (summed, "parallel", 2, 2, 0),
        (summed, "delay", 0, 2, 0),
        (exclusive_or, "parallel", 1, 2, 1),
        (ahead, "delay", 2, 2, 2),
    ],
)
def test_truths(source: Callable[[], Tensor], pattern: str, gap: float, bits_chain: float, gap_alone: float) -> None:
    """The errors are those of the sources' draws; beside them a fit may lack 0.04 bit."""
    bins = 2 if source is exclusive_or else BINS
    found = factorisation_gap(source(), bins, tracks=TRACKS, pattern=pattern, fit=FIT)
    truths = {"gap": gap, "bits_chain": bits_chain, "bits_parallel": bits_chain + gap, "gap_alone": gap_alone}
    for name, truth in truths.items():
        assert found[name] == pytest.approx(truth, abs=0.04 + 5 * found[f"{name}_err"]), name
    assert found["gap_err"] < 0.03
    if gap == 0:  # a larger network shall not pass for dependence
        assert found["gap"] < 0.005 + 3 * found["gap_err"]
    if source is exclusive_or:
        assert found["gap_q2"] == pytest.approx(0, abs=0.04)


def test_a_fit_that_is_cut_off_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """After 30 updates bits fall by tenths; of independent codes the curve is flat, and the fit ends before its 200."""
    cut = factorisation_gap(summed(), BINS, tracks=TRACKS, pattern="delay", fit=replace(FIT, updates=30, min_updates=9))
    assert cut["gap_converged"] == 0 and cut["gap_fall"] > FIT.tolerance and cut["gap_updates"] == 30
    assert "has not converged: in the last fifth of 30 updates" in caplog.text
    caplog.clear()
    whole = factorisation_gap(independent(), BINS, tracks=TRACKS, fit=replace(FIT, updates=200, min_updates=50))
    assert whole["gap_converged"] == 1 and whole["gap_updates"] < 200
    assert not caplog.text


def test_a_gap_is_a_function_of_codes_and_seed() -> None:
    """Also of codes as an array, whatever the state of PyTorch's generator, which is left alone."""
    short = replace(FIT, updates=4, min_updates=4, dropout=0.1)
    first = factorisation_gap(copied(), BINS, tracks=TRACKS, fit=short)
    torch.manual_seed(5)
    again = factorisation_gap(copied().numpy(), BINS, tracks=TRACKS.tolist(), fit=short)
    assert first == again
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert factorisation_gap(copied(), BINS, tracks=TRACKS, fit=short, seed=1) != first


def test_only_held_out_recordings_are_measured() -> None:
    """Recording 3 is a stranger: measured it raises the bits, in the fit it hardly does."""
    codes, short = independent() // 2, replace(FIT, updates=40, min_updates=40)
    codes[TRACKS == 3] += 2
    steps: list[tuple[int, int]] = []
    found = factorisation_gap(
        codes, BINS, tracks=TRACKS, held_out=[3, 8], fit=short, progress=lambda done, total: steps.append((done, total))
    )
    assert found["gap_recordings"] == 2 and found["gap_recordings_fit"] + found["gap_recordings_choose"] == 38
    assert (
        found["bits_parallel"]
        > 4
        > 2.5
        > factorisation_gap(codes, BINS, tracks=TRACKS, held_out=[2, 8], fit=short)["bits_parallel"]
    )
    assert steps == [(done, 40) for done in range(1, 41)]


def test_one_codebook_has_nothing_to_lose() -> None:
    found = factorisation_gap(independent()[:, :1], BINS, tracks=TRACKS, fit=replace(FIT, updates=5, min_updates=5))
    assert found["gap"] == found["gap_alone"] == 0 and "gap_q2" not in found


@pytest.mark.parametrize("number", [4, 5, 9, 40])
def test_parts_are_whole_recordings(number: int) -> None:
    tracks = torch.arange(number).repeat(3) * 7
    parts = split_recordings(tracks, 0)
    assert sorted(itertools.chain(*parts)) == sorted(set(tracks.tolist()))
    assert len(parts[2]) == max(2, round(number / 4)) and min(map(len, parts)) >= 1
    assert split_recordings(tracks.flip(0), 0) == parts
    if number == 40:
        assert split_recordings(tracks, 1) != parts
    given = split_recordings(tracks, 0, held_out=[7, 0])
    assert given[2] == [0, 7] and sorted(itertools.chain(*given)) == sorted(set(tracks.tolist()))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tracks": TRACKS[:-1]}, DataError, r"tracks \[239\] of torch.int64; give one integer for each of 240 clips"),
        ({"tracks": TRACKS * 0.5}, DataError, r"tracks \[240\] of torch.float32"),
        ({"tracks": TRACKS // 14}, DataError, "3 recording.* too few for the factorisation gap: it takes 4 or more"),
        ({"held_out": [0, 99]}, DataError, r"held_out names recording\(s\) \[99\] without clips"),
        ({"held_out": [0]}, DataError, "held_out names 1 of 40 recordings; 2 or more have to be measured"),
        ({"held_out": list(range(39))}, DataError, "held_out names 39 of 40 recordings"),
        ({"bins": 3}, DataError, "codes from 0 to 3; bins=3 allows 0 to 2"),
        ({"codes": independent().float()}, DataError, "expected integers"),
        ({"codes": independent()[..., :1]}, DataError, "Clips of 1 frames are too short for the pattern delay"),
        ({"delays": [0, 45]}, DataError, "Clips of 48 frames are too short for the pattern delay"),
        ({"pattern": "zigzag"}, ConfigError, "Pattern 'zigzag' is unknown"),
    ],
)
def test_what_cannot_be_measured(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    options: dict[str, Any] = {"codes": independent(), "bins": BINS, "tracks": TRACKS, "fit": replace(FIT, updates=2)}
    with pytest.raises(error, match=message):
        factorisation_gap(**(options | changes))


@pytest.mark.parametrize(
    "changes", [{"updates": 1}, {"min_updates": 1}, {"batch_size": 0}, {"warmup": 48}, {"warmup": -1}]
)
def test_a_fit_that_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is impossible"):
        replace(FIT, **changes)


def test_two_checks_at_least() -> None:
    """The fall since the check before is always finite."""
    assert _checks(replace(FIT, updates=2, min_updates=300)) == [1, 2]
    assert _checks(replace(FIT, updates=10, min_updates=10)) == [5, 6, 8, 10]
    assert _checks(replace(FIT, updates=1000, min_updates=300)) == [134, 168, 210, 262, 328, 410, 512, 640, 800, 1000]


def test_clips_just_long_enough() -> None:
    """Every codebook has a code that is measured, in the shortest clips that are taken."""
    short = replace(FIT, updates=2, min_updates=2)
    found = factorisation_gap(independent()[..., :3], BINS, tracks=np.asarray(TRACKS), fit=short)
    assert math.isfinite(found["gap"])
    with pytest.raises(DataError, match="too short"):
        factorisation_gap(independent()[..., :2], BINS, tracks=TRACKS, fit=short)
