"""Grids of mycodec: one question a file."""
