"""Codes as samples (checks, entropies of counts, p-values), and how well each codebook is used.

Sources: Miller, "Note on the bias of information estimates", 1955 (entropy correction); Copet et al., "Simple and
Controllable Music Generation", NeurIPS 2023 (delay pattern); van den Oord et al., "Neural Discrete Representation
Learning", NeurIPS 2017 (perplexity); Kumar et al., NeurIPS 2023 (usage, bitrate efficiency).
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from audiotok.errors import ConfigError, DataError

FRAMES_PER_BIN = 10  # at ten, a code that is used as often as the others stays unseen once in e^10 = 22000
Codes = torch.Tensor | npt.NDArray[np.integer]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_DENSE = 8  # a table of counts is kept whole up to this many cells per sample, and sparse beyond


def codebook_metrics(codes: Codes, *, bins: int, frame_rate: float) -> dict[str, float]:
    """Usage, dead codes, entropy and perplexity by codebook and over all, and the bitrate of ideal entropy coding.

    With c the counts of the m codes that occur among N = B * T frames, for each codebook q:

    - `usage_q`: m / bins, in 0..1, higher is better; `dead_q`: bins - m, lower is better;
    - `entropy_q`: plug-in, bits per frame; `entropy_mm_q`: plus (m - 1) / (2 N ln 2), at most log2(bins);
    - `perplexity_q`: 2^entropy_q, in 1..m, the number of evenly used codes with that entropy.

    Without suffix: means over codebooks, of `dead` the sum. `entropy_bitrate`, kb/s: frame_rate * sum of
    entropy_mm_q / 1000, what codebooks coded one by one, without context, would need.

    Args:
        codes: integers [B, K, T].
        bins: size of a codebook.
        frame_rate: Hz.

    Raises:
        ConfigError: if bins or frame_rate cannot be.
        DataError: if codes are not [B, K, T] in 0..bins-1.
    """
    if not (math.isfinite(frame_rate) and frame_rate > 0):
        raise ConfigError(f"frame_rate={frame_rate}; give frames per second, > 0.")
    columns = [_health(column, bins) for column in check_codes(codes, bins).transpose(0, 1).flatten(1)]
    metrics: dict[str, float] = {}
    for name in columns[0]:
        values = [column[name] for column in columns]
        metrics[name] = math.fsum(values) / (1 if name == "dead" else len(values))
        metrics.update({f"{name}_q{q}": value for q, value in enumerate(values)})
    rate = frame_rate * math.fsum(column["entropy_mm"] for column in columns) / 1000
    return {**metrics, "entropy_bitrate": rate}


def check_codes(codes: Codes, bins: int) -> torch.Tensor:
    """Codes [B, K, T] as int64 on the CPU, from a tensor or an array of integers.

    ConfigError if bins < 1; DataError if codes are not integers [B, K, T] in 0..bins-1, or there are none.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}; a codebook holds 1 code or more.")
    found = codes if isinstance(codes, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(codes))
    if found.dim() != 3 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise DataError(f"codes {list(found.shape)} of {found.dtype}; expected integers [B, K, T].")
    if found.numel() == 0:
        raise DataError(f"codes {list(found.shape)} are empty; give one clip, codebook and frame or more.")
    found = found.detach().to("cpu", torch.int64)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= bins:
        raise DataError(f"codes from {low} to {high}; bins={bins} allows 0 to {bins - 1}.")
    return found


def count_cells(cells: Ints, size: int) -> Ints:
    """How often each cell that occurs does, for cells [N] in 0..size-1; memory grows with N, not with size."""
    if size <= _DENSE * len(cells):
        counts = np.bincount(cells, minlength=1)
        return counts[counts > 0]
    return np.unique(cells, return_counts=True)[1]


def entropy_bits(counts: Ints) -> float:
    """Plug-in entropy in bits of counts that are all > 0: the entropy of the observed frequencies, biased low."""
    n = counts.sum()
    # log2 N - sum c log2 c / N needs one division; rounding may leave a little below 0.
    return max(0.0, float(np.log2(n) - (counts * np.log2(counts)).sum() / n))


def miller_madow(occupied: int, samples: int) -> float:
    """Bits that Miller's correction adds to a plug-in entropy: (occupied cells - 1) / (2 N ln 2)."""
    return (occupied - 1) / (2 * samples * math.log(2))


def p_value(observed: float, null: Floats, slack: float = 1e-12) -> float:
    """(1 + how many of the R null values reach the observed one) / (1 + R); ties within `slack` count as reached."""
    return float((1 + (null >= observed - slack).sum()) / (1 + len(null)))


def _health(column: torch.Tensor, bins: int) -> dict[str, float]:
    counts = count_cells(column.numpy(), bins)
    entropy = entropy_bits(counts)
    return {
        "usage": len(counts) / bins,
        "dead": float(bins - len(counts)),
        "entropy": entropy,
        "entropy_mm": min(entropy + miller_madow(len(counts), len(column)), math.log2(bins)),
        "perplexity": 2**entropy,
    }
