"""Side-by-side measurements, each run by hand with one command; tables go to docs/benchmarks."""
