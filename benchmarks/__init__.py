"""Benchmarks: one script per claim, each `python -m benchmarks.NAME`; `make bench` runs them all."""
