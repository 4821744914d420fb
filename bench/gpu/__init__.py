"""Everything that needs a GPU, in parts: ``make gpu-check``, or ``python -m bench.gpu``."""
