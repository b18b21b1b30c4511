"""SI-SNR of clips against its formula in NumPy."""

import math

import numpy as np
import pytest
import torch

from audiotok.errors import DataError
from audiotok.metrics import si_snr


def make() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 3, 2, 700, generator=generator)
    return pair[0] + torch.tensor([0.1, 0.5, 2.0])[:, None, None] * pair[1], pair[0]


def test_value_is_that_of_the_formula_per_clip() -> None:
    estimate, reference = make()
    wanted = []
    for e_clip, s_clip in zip(estimate.double().numpy(), reference.double().numpy(), strict=True):
        channels = []
        for e, s in zip(e_clip - e_clip.mean(1, keepdims=True), s_clip - s_clip.mean(1, keepdims=True), strict=True):
            cosine = e.dot(s) / np.sqrt(e.dot(e) * s.dot(s))
            channels.append(10 * np.log10(cosine**2 / (1 - cosine**2)))
        wanted.append(np.mean(channels))
    found = si_snr(estimate=estimate, reference=reference)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("gain", [1e-4, -1.0, 1e4])
def test_level_and_offset_of_either_signal_do_not_matter(gain: float) -> None:
    estimate, reference = make()
    value = si_snr(estimate=estimate, reference=reference)
    torch.testing.assert_close(si_snr(estimate=gain * estimate, reference=reference), value, atol=1e-3, rtol=0)
    torch.testing.assert_close(si_snr(estimate=estimate, reference=gain * reference), value, atol=1e-3, rtol=0)
    torch.testing.assert_close(si_snr(estimate=estimate + 0.5, reference=reference), value, atol=1e-3, rtol=0)


def test_limits_and_silence() -> None:
    _, reference = make()
    assert si_snr(estimate=reference, reference=reference).tolist() == [100.0] * 3
    assert si_snr(estimate=torch.zeros_like(reference), reference=reference).tolist() == [-100.0] * 3
    assert all(math.isnan(v) for v in si_snr(estimate=reference, reference=torch.zeros_like(reference)).tolist())


def test_pairs_of_different_shape_are_refused() -> None:
    estimate, reference = make()
    with pytest.raises(DataError, match="same shape"):
        si_snr(estimate=estimate[..., 1:], reference=reference)
