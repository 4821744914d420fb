"""Benchmarks, one file per operator: ``python -m bench.layers`` and its like."""
