"""Health of each codebook: how many of its codes are used, how evenly, and what they would cost after entropy coding.

Sources: perplexity and usage as reported by van den Oord et al., "Neural Discrete Representation Learning", NeurIPS
2017, and Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023 (bitrate efficiency).
"""

import math

import torch

from audiotok.errors import ConfigError
from audiotok.metrics.codes import Codes, check_codes, count_cells, entropy_bits, miller_madow

FRAMES_PER_BIN = 10  # at ten, a code that is used as often as the others stays unseen once in e^10 = 22000


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
