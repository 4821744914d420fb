"""The papers' experiments, over one trainer: ``python -m examples.experiments.cifar10 --help``."""
