"""Every benchmark in turn, results under bench/results/<device>/, and their pictures:
python -m bench [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from bench import (
    channel_moments,
    compact,
    conv_dgrad,
    conv_wgrad,
    depthwise_wgrad,
    layers,
    memory,
    never_slower,
    overhead,
    pack_channels,
    planning,
    plot,
    protect,
    pruning,
    row_optimizers,
    shrink,
    sizes,
    train,
)
from bench.harness import results_path

Main = Callable[[Sequence[str]], object]
# (benchmark, whether it takes --device, arguments of the quick run)
SUITE: tuple[tuple[Main, bool, tuple[str, ...]], ...] = (
    (pack_channels.main, True, ("--quick", "--seconds", "0.1")),
    (depthwise_wgrad.main, True, ("--quick", "--seconds", "0.1")),
    (conv_wgrad.main, False, ("--quick", "--seconds", "0.1")),
    (conv_dgrad.main, False, ("--quick", "--seconds", "0.1")),
    (channel_moments.main, True, ("--quick", "--seconds", "0.1")),
    (compact.main, True, ("--seconds", "0.05")),
    (layers.main, True, ("--quick", "--seconds", "0.1")),
    (overhead.main, True, ("--seconds", "2")),
    (protect.main, True, ("--seconds", "2", "--frozen", "0.5", "--batch", "32", "--large")),
    (row_optimizers.main, True, ("--quick", "--seconds", "0.1")),
    (never_slower.main, False, ("--quick", "--seconds", "0.1")),
    (sizes.main, False, ("--quick",)),
    (planning.main, False, ("--quick",)),
    (memory.main, False, ("--quick",)),
    (pruning.main, True, ("--seconds", "3", "--batch", "32")),
    (shrink.main, False, ("--seconds", "0.5", "--networks", "MobileNetV2")),
    (train.main, False, ("--quick",)),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few shapes, three minutes")
    parser.add_argument("--device", default="cpu", help="others run what is not of a CPU alone")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    for run, takes_device, quick in SUITE:
        if takes_device or arguments.device == "cpu":
            device = ["--device", arguments.device] if takes_device else []
            run([*device, *(quick if arguments.quick else ())])
    plot.main(["--folder", str(results_path("layers", arguments.device).parent)])
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
