"""Vector quantisers: residual vector quantisation with moving-average codebooks, and none at all."""

from audiotok.quantization.base import BaseQuantizer, DummyQuantizer, QuantizedResult
from audiotok.quantization.kmeans import kmeans
from audiotok.quantization.rvq import STREAM_KINDS, EuclideanCodebook, ResidualVectorQuantizer

__all__ = [
    "STREAM_KINDS",
    "BaseQuantizer",
    "DummyQuantizer",
    "EuclideanCodebook",
    "QuantizedResult",
    "ResidualVectorQuantizer",
    "kmeans",
]
