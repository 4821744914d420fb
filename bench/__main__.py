"""Every benchmark in turn, results under bench/results/<device>/: python -m bench [--quick]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench import layers, overhead


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes only, about 5 minutes")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    device = ["--device", arguments.device]
    layers.main([*device, *(["--quick"] if arguments.quick else [])])
    overhead.main([*device, *(["--seconds", "8"] if arguments.quick else [])])


if __name__ == "__main__":
    main()
