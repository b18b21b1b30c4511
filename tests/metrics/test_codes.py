"""Codebook health against SciPy and laws whose entropy is known."""

import math

import numpy as np
import pytest
from scipy import stats

from audiotok.errors import ConfigError
from audiotok.metrics import codebook_metrics


def test_values_are_those_of_scipy_by_codebook() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(20, size=(3, 50)), rng.geometric(0.3, size=(3, 50)).clip(max=31)], axis=1)
    found = codebook_metrics(codes, bins=32, frame_rate=75)
    rate = 0.0
    for q in range(2):
        counts = np.bincount(codes[:, q].ravel(), minlength=32)
        bits, used = float(stats.entropy(counts, base=2)), int((counts > 0).sum())
        madow = bits + (used - 1) / (300 * math.log(2))
        rate += 75 * madow / 1000
        assert found[f"entropy_q{q}"] == pytest.approx(bits)
        assert found[f"entropy_mm_q{q}"] == pytest.approx(madow)
        assert found[f"perplexity_q{q}"] == pytest.approx(2**bits)
        assert (found[f"usage_q{q}"], found[f"dead_q{q}"]) == (used / 32, 32 - used)
    assert found["entropy_bitrate"] == pytest.approx(rate)
    for name in ("entropy", "entropy_mm", "perplexity", "usage"):
        assert found[name] == pytest.approx((found[f"{name}_q0"] + found[f"{name}_q1"]) / 2)
    assert found["dead"] == found["dead_q0"] + found["dead_q1"]


def test_evenly_used_codes_need_the_nominal_bitrate_and_no_more() -> None:
    even = np.arange(1024).reshape(1, 1, 1024).repeat(4, axis=1)
    found = codebook_metrics(even, bins=1024, frame_rate=50)
    assert found["entropy_bitrate"] == pytest.approx(2.0)
    assert found["perplexity"] == pytest.approx(1024)
    assert (found["usage"], found["dead"]) == (1, 0)


def test_a_constant_codebook_says_nothing() -> None:
    found = codebook_metrics(np.full((2, 1, 30), 7), bins=64, frame_rate=50)
    assert (found["entropy"], found["perplexity"], found["entropy_bitrate"]) == (0, 1, 0)
    assert (found["usage"], found["dead"]) == (1 / 64, 63)


def test_miller_madow_is_nearer_to_the_entropy_of_the_law() -> None:
    rng = np.random.default_rng(1)
    law = rng.dirichlet(np.ones(64))
    draws = [codebook_metrics(rng.choice(64, p=law, size=(1, 1, 200)), bins=64, frame_rate=50) for _ in range(20)]
    true = float(stats.entropy(law, base=2))
    plugin, madow = (np.mean([draw[name] for draw in draws]) for name in ("entropy", "entropy_mm"))
    assert plugin < madow < true + 0.05
    assert true - plugin > 2 * abs(true - madow)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_frame_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ConfigError, match="frame_rate"):
        codebook_metrics(np.zeros((1, 1, 4), dtype=np.int64), bins=2, frame_rate=rate)
