"""Grids of language models."""
