"""audiotok: grids of neural audio codec experiments, trained by one shared solver, coming back as tables."""

__version__ = "0.1.0"
