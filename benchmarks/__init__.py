"""Measurements; `python -m benchmarks.step` and `python -m benchmarks.counts` are the ones that CI runs."""
