"""The table of `dora grid`."""
