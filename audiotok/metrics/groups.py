"""Fewer codes for estimates that need many frames per code: codes whose vectors are close together count as one.

Telling fewer codes apart can only lose information (the data processing inequality), so what groups of codes tell
about each other is a lower bound of what the codes do, and one that far fewer frames estimate well.
"""

from collections.abc import Sequence

import torch

from audiotok.errors import DataError
from audiotok.metrics.codes import Codes, check_codes
from audiotok.quantization.kmeans import kmeans, nearest

ITERATIONS = 20


def group_codes(codes: Codes, vectors: Sequence[torch.Tensor], groups: int, seed: int = 0) -> torch.Tensor:
    """Replace each code by the group of its vector; groups are k-means clusters of the vectors of one codebook.

    They depend on the codebooks alone, never on the codes, so that no dependence is picked out by the grouping.

    Args:
        codes: integers [B, K, T].
        vectors: of each codebook, K times [bins, D].
        groups: how many groups a codebook is cut into; `bins` or more leaves all codes apart.
        seed: of the starting points.

    Returns:
        Groups [B, K, T] in 0..groups-1.

    Raises:
        ConfigError: if groups < 1.
        DataError: if codes and vectors do not fit together.
    """
    k = codes.shape[1] if codes.ndim == 3 else 0
    if len(vectors) != k or any(v.dim() != 2 or len(v) != len(vectors[0]) for v in vectors):
        shapes = ", ".join(str(list(v.shape)) for v in vectors)
        raise DataError(f"codes {list(codes.shape)} and vectors {shapes}; give [B, K, T] and K times [bins, D].")
    bins = len(vectors[0])
    found = check_codes(codes, bins)
    if groups >= bins:
        return found
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for v in vectors:
        points = v.detach().cpu().float()
        means, _ = kmeans(points, groups, ITERATIONS, generator)
        maps.append(nearest(points, means))
    return torch.stack([table[found[:, q]] for q, table in enumerate(maps)], dim=1)
