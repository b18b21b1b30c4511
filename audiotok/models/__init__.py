"""Codecs: the interface of all of them, EnCodec, and how to make one from a configuration."""

from audiotok.models.encodec import CompressionModel, EncodecModel, get_compression_model

__all__ = ["CompressionModel", "EncodecModel", "get_compression_model"]
