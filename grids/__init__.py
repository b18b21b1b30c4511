"""Grids: one question a file. `dora grid compression.encodec_mmd_demo` runs grids/compression/encodec_mmd_demo.py."""
