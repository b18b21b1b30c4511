"""Grids of the tiny project."""
