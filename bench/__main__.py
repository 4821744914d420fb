"""Every benchmark in turn, results under bench/results/<device>/: python -m bench [--quick]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench import (
    channel_moments,
    compact,
    depthwise_wgrad,
    layers,
    overhead,
    pack_channels,
    protect,
    pruning,
    row_optimizers,
    train,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes, a few minutes")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    quick, device = arguments.quick, ["--device", arguments.device]
    if arguments.device == "cpu":
        pack_channels.main(["--quick", "--seconds", "0.3"] if quick else [])
        depthwise_wgrad.main(["--quick", "--seconds", "0.3"] if quick else [])
        channel_moments.main(["--quick", "--seconds", "0.3"] if quick else [])
        compact.main(["--seconds", "0.1"] if quick else [])
    layers.main([*device, *(["--quick"] if quick else [])])
    overhead.main([*device, *(["--seconds", "8"] if quick else [])])
    protect.main([*device, *(["--seconds", "5", "--frozen", "0.5"] if quick else [])])
    pruning.main([*device, *(["--seconds", "10"] if quick else [])])
    row_optimizers.main([*device, *(["--quick", "--seconds", "0.5"] if quick else [])])
    if arguments.device == "cpu":
        train.main(["--quick"] if quick else [])


if __name__ == "__main__":
    main()
