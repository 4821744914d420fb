"""Microbenchmarks: ``python -m bench.layers``, ``python -m bench.overhead``, one file per operator."""
