"""Shuffles move clips within their recordings, or recordings as a whole, and nothing else."""

import itertools

import numpy as np
import pytest

from audiotok.metrics.shuffles import FRAMES_ALONE, Shuffles, evenly_in_runs


def test_a_shift_turns_the_clips_of_each_recording_in_a_circle() -> None:
    tracks = np.array([1, 0, 1, 0, 0, 1, 1, 0])  # in any order; those of one recording in the order of time
    shuffles = Shuffles(8, 3, tracks, "shifts", FRAMES_ALONE)
    np.testing.assert_array_equal(shuffles.clips, [1, 3, 4, 7, 0, 2, 5, 6])
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(200):
        for order in shuffles.draw(2, rng):
            circles = order.reshape(2, 12) - [[0], [12]]
            turns = circles[:, 0] // 3
            np.testing.assert_array_equal(circles, [np.roll(np.arange(12), -3 * turn) for turn in turns])
            seen.add(tuple(turns))
    assert len(seen) == 16  # every angle of each recording, no turn included
    for _ in range(50):
        first, second = shuffles.draw_apart(2, rng)
        assert not (first == second).any()


@pytest.mark.parametrize(("clips", "codebooks", "gap"), [(40, 2, 5), (40, 4, 2), (4, 4, 1)])
def test_codebooks_of_a_baseline_lie_apart(clips: int, codebooks: int, gap: int) -> None:
    shuffles = Shuffles(clips, 1, [0] * clips, "shifts", FRAMES_ALONE)
    for seed in range(30):
        starts = shuffles.draw_apart(codebooks, np.random.default_rng(seed))[:, 0]
        distances = [abs(a - b) for a, b in itertools.combinations(starts.tolist(), 2)]
        assert min(min(d, clips - d) for d in distances) >= gap


def test_more_codebooks_than_clips_share_places_evenly() -> None:
    starts = Shuffles(3, 1, [0] * 3, "shifts", FRAMES_ALONE).draw_apart(8, np.random.default_rng(0))[:, 0]
    assert sorted(np.bincount(starts).tolist()) == [2, 3, 3]


def test_an_exchange_keeps_recordings_whole_and_equally_long() -> None:
    tracks = np.repeat(np.arange(25), [4] * 24 + [2])
    shuffles = Shuffles(len(tracks), 2, tracks, "recordings", FRAMES_ALONE)
    assert shuffles.missing is None
    np.testing.assert_array_equal(shuffles.clips, np.arange(96))  # 24 × 4 clips are more than 25 × 2
    rng = np.random.default_rng(0)
    for order in (*shuffles.draw(3, rng), *shuffles.draw_apart(3, rng)):
        blocks = order.reshape(24, 8)
        np.testing.assert_array_equal(blocks - blocks[:, :1], np.tile(np.arange(8), (24, 1)))
        np.testing.assert_array_equal(np.sort(blocks[:, 0]), 8 * np.arange(24))
    first, second = shuffles.draw_apart(2, rng)
    assert not (first == second).any()
    few = Shuffles(19, 2, np.arange(19), "recordings", FRAMES_ALONE)
    assert few.missing is not None and "19 recording(s) are too few" in few.missing


def test_a_long_clip_alone_is_turned_by_frames_and_a_short_one_left_out() -> None:
    tracks = [0, 1, 1]
    assert Shuffles(3, FRAMES_ALONE, tracks, "shifts", FRAMES_ALONE).samples == 3 * FRAMES_ALONE
    short = Shuffles(3, 30, tracks, "shifts", FRAMES_ALONE)
    np.testing.assert_array_equal(short.clips, [1, 2])
    assert short.missing is None and short.missing_p is not None and "2 way(s)" in short.missing_p


def test_runs_are_spread_evenly() -> None:
    np.testing.assert_array_equal(evenly_in_runs(10, 40), np.arange(10))
    np.testing.assert_array_equal(evenly_in_runs(100, 4), [0, 25, 50, 75])
    chosen = evenly_in_runs(1000, 32).reshape(4, 8)
    np.testing.assert_array_equal(chosen - chosen[:, :1], np.tile(np.arange(8), (4, 1)))
    assert (np.diff(chosen[:, 0]) >= 240).all()
