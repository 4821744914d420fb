"""Runnable examples; start with ``python -m examples.train_digits``."""
