"""Measurements behind docs/performance.md: one file a question, `python -m benchmarks` for all of them."""
