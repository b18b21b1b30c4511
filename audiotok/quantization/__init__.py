"""Vector quantisers: residual vector quantisation with moving-average codebooks, and none at all."""

from audiotok.quantization.base import BaseQuantizer, DummyQuantizer, QuantizedResult
from audiotok.quantization.codebook import EuclideanCodebook
from audiotok.quantization.kmeans import kmeans
from audiotok.quantization.residual import STREAM_KINDS, ResidualVectorQuantizer

__all__ = [
    "STREAM_KINDS",
    "BaseQuantizer",
    "DummyQuantizer",
    "EuclideanCodebook",
    "QuantizedResult",
    "ResidualVectorQuantizer",
    "kmeans",
]
