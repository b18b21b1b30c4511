"""Grids of compression models."""
